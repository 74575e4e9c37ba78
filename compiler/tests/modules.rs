//! The modules of the compiler stand in the order of its pipeline: none uses one that leads back to
//! it.
//!
//! Folders count as one module, but for `plan/`, whose files are steps of the pipeline themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// `a::b::c` -> `a`, `plan::lower` -> `plan::lower`.
fn module_of(path: &str) -> String {
    let depth = if path.starts_with("plan::") { 2 } else { 1 };
    path.split("::").take(depth).collect::<Vec<_>>().join("::")
}

/// Adds the `use` statements of every source in a folder, as paths from the root, by module.
fn read(folder: &Path, path: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in std::fs::read_dir(folder).expect("the sources are there") {
        let file = entry.expect("an entry").path();
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let own = match name.as_str() {
            "lib" => continue,
            "mod" => path.to_string(),
            _ => format!("{path}::{name}").trim_start_matches(':').to_string(),
        };
        if file.is_dir() {
            read(&file, &own, found);
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("sources are UTF-8");
        // Dependencies of unit tests are none of the program.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let parent = own.rsplit_once("::").map_or(String::new(), |(p, _)| format!("{p}::"));
        let uses = found.entry(module_of(&own)).or_default();
        for statement in text.split(';') {
            let start = ["\nuse ", "\npub use "].iter().find_map(|s| statement.split_once(s));
            let Some((_, used)) = start else { continue };
            let used: String = used.split_whitespace().collect();
            let used = match (used.strip_prefix("crate::"), used.strip_prefix("super::")) {
                (Some(used), _) => used.to_string(),
                (_, Some(used)) => format!("{parent}{used}"),
                _ => format!("{own}::{used}"),
            };
            let (base, names) = used.split_once('{').unwrap_or((&used, ""));
            uses.extend(names.split([',', '{', '}']).map(|n| module_of(&format!("{base}{n}"))));
        }
    }
}

#[test]
fn no_module_leads_back_to_itself() {
    let mut left = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut left);
    assert!(left["plan"].contains("plan::lower") && left["plan::lower"].contains("strategy"));
    // Modules go when all that they use is gone. The rest are in a circle, or lead to one.
    while !left.is_empty() {
        let waits = |(module, uses): &(&String, &BTreeSet<String>)| {
            uses.iter().any(|used| used != *module && left.contains_key(used))
        };
        let rest: BTreeSet<String> = left.iter().filter(waits).map(|(m, _)| m.clone()).collect();
        assert!(rest.len() < left.len(), "modules use one another in a circle: {left:#?}");
        left.retain(|module, _| rest.contains(module));
    }
}
