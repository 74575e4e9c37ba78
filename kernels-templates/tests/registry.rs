//! The folders' families are the registry, and the templates of a folder are their variants.

use kiln_kernels::families;
use std::collections::BTreeSet;
use std::path::Path;

const SUFFIX: &str = ".cl.tera";

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Each folder with families, and the ops that the families name. The lines of a table name its
/// ops.
fn folders() -> Vec<(String, Vec<String>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ops = |folder: &String| {
        let text = std::fs::read_to_string(root.join(folder).join("mod.rs")).ok()?;
        text.contains("pub const FAMILIES").then_some(())?;
        let named = |op: &&str| {
            [format!("op: \"{op}\""), format!("\n    \"{op}\", ")].iter().any(|t| text.contains(t))
        };
        Some(kiln_ir::Op::NAMES.iter().copied().filter(named).map(String::from).collect())
    };
    let list = names(root).into_iter().filter_map(|folder| Some((ops(&folder)?, folder)));
    list.map(|(ops, folder)| (folder, ops)).collect()
}

#[test]
fn every_family_is_registered_once_and_named_as_its_folder_or_in_one_of_several() {
    let registered: Vec<String> = families().map(|f| f.op.to_string()).collect();
    let unique: BTreeSet<String> = registered.iter().cloned().collect();
    assert_eq!(registered.len(), unique.len(), "{registered:?}");
    let folders = folders();
    let found: Vec<&String> = folders.iter().flat_map(|(_, ops)| ops).collect();
    assert_eq!(found.len(), registered.len(), "{found:?}");
    assert_eq!(found.into_iter().cloned().collect::<BTreeSet<_>>(), unique);
    for (folder, ops) in folders {
        assert!(ops.len() > 1 || ops[0] == folder, "{folder} has {ops:?}");
    }
}

#[test]
fn every_family_names_an_op_of_the_ir() {
    for family in families() {
        assert!(kiln_ir::Op::NAMES.contains(&family.op), "{}", family.op);
    }
}

#[test]
fn the_oracle_is_the_last_variant_and_names_are_unique() {
    for family in families() {
        let variants: Vec<&str> = family.variants.iter().map(|v| v.name).collect();
        let unique: BTreeSet<&str> = variants.iter().copied().collect();
        assert_eq!(variants.len(), unique.len(), "{}: {variants:?}", family.op);
        let oracles = family.variants.iter().filter(|v| v.oracle).map(|v| v.name);
        assert_eq!(oracles.collect::<Vec<_>>(), ["naive"], "{}", family.op);
        assert_eq!(variants.last(), Some(&"naive"), "{}", family.op);
    }
}

/// A template is named `variant` or `variant_part`. In a folder of several ops, the name begins
/// with `op_` unless all ops share the template. `extents` has the common declarations of a folder.
#[test]
fn every_template_of_a_folder_belongs_to_a_variant() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (folder, ops) in folders() {
        let variants = |op: &String| {
            let family = kiln_kernels::family(op).expect("it is registered");
            let names = family.variants.iter().map(|v| v.name);
            names.flat_map(|v| [v.to_string(), format!("{op}_{v}")]).collect::<Vec<_>>()
        };
        let known: Vec<String> = ops.iter().flat_map(variants).collect();
        for file in names(&root.join(&folder)) {
            let Some(template) = file.strip_suffix(SUFFIX) else { continue };
            if template == "extents" {
                continue;
            }
            let of = |v: &String| template == v || template.starts_with(&format!("{v}_"));
            assert!(known.iter().any(of), "{folder}/{file} belongs to none of {known:?}");
        }
    }
}

#[test]
fn every_op_with_kernels_has_a_family() {
    let missing: Vec<&str> = kiln_ir::Op::NAMES
        .iter()
        .copied()
        .filter(|op| *op != "embedding" && kiln_kernels::family(op).is_none())
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}
