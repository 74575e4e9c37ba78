//! The heads of templates: each declares its inputs, and the defaults alone make a program.

use kiln_kernels::template::{Head, render_defaults};
use kiln_kernels::{Launch, program};
use kiln_testkit::Runner;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".cl.tera";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A template's path without suffix, and its text.
type Template = (String, String);

fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let own = files.into_iter().filter(|path| path.to_string_lossy().ends_with(SUFFIX));
    own.chain(folders.iter().flat_map(|folder| paths(folder))).collect()
}

fn templates() -> Vec<Template> {
    let template = |path: PathBuf| {
        let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap();
        let name = name.strip_suffix(SUFFIX).unwrap().to_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    let mut list: Vec<_> = paths(Path::new(ROOT)).into_iter().map(template).collect();
    list.sort();
    assert!(list.len() > 60, "{} templates", list.len());
    list
}

fn head<'a>((name, text): &'a Template) -> Head<'a> {
    Head::of(text).unwrap_or_else(|error| panic!("{name}: {error:#}"))
}

/// Shared files that a template names.
fn named(template: &Template) -> Vec<&str> {
    let head = head(template);
    let names = head.needs.into_iter().chain(head.then);
    names.map(|name| name.split(" if ").next().unwrap_or(name)).collect()
}

/// Words in tera's tags after the head of a template.
fn words((_, text): &Template) -> Vec<&str> {
    let body = text.split_once("#}").unwrap().1;
    let tags = |open, close: &'static str| {
        body.split(open).skip(1).map(move |t| t.split(close).next().unwrap())
    };
    let all = tags("{{", "}}").chain(tags("{%", "%}"));
    all.flat_map(|tag| tag.split(|c: char| !c.is_alphanumeric() && c != '_')).collect()
}

/// A plan requires OpenCL C 1.2 and, for half arithmetic, one extension. Kernels therefore use no
/// images and no subgroups, whose limits differ between devices. They count work-items, so that a
/// launch may be split into parts.
#[test]
fn templates_use_nothing_that_devices_lack() {
    for (file, text) in templates() {
        for word in ["image1d", "image2d", "image3d", "sub_group", "get_num_groups"] {
            assert!(!text.contains(word), "{file} uses {word}");
        }
        // GROUP includes the work-groups before a slice of a launch. These functions do not.
        for word in ["get_group_id", "get_global_size"] {
            assert!(file == "common" || !text.contains(word), "{file} uses {word}");
        }
        assert!(file == "half" || !text.contains("EXTENSION"), "{file} uses an extension");
    }
}

/// What drivers of phones are known to break. clspv, through which some phones have OpenCL, refuses
/// `printf`, and a choice between pointers to global and to constant memory: kernels have no constant
/// memory. Vectors of three have the size of four, which is easily mistaken. Unrolled loops spill
/// registers on mobile GPUs.
#[test]
fn templates_use_nothing_that_drivers_break() {
    let threes =
        ["char", "short", "ushort", "int", "uint", "half", "float"].map(|t| format!("{t}3"));
    for (file, text) in templates() {
        let words: BTreeSet<&str> =
            text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        let named = ["__constant", "printf", "vload3", "vstore3", "goto"];
        let mut named = named.into_iter().chain(threes.iter().map(String::as_str));
        let used = named.find(|word| words.contains(word));
        assert_eq!(used, None, "{file} uses it");
        assert!(!file.contains("mobile") || !text.contains("pragma unroll"), "{file} unrolls");
    }
}

/// A parameter that a head declares is read by its file, or by another file of the same program.
/// (Every rendering refuses a parameter that is set but not declared, or read but not set.)
#[test]
fn declared_parameters_are_read() {
    let templates = templates();
    let mut unread = vec![];
    for template in &templates {
        let name = template.0.as_str();
        let own = named(template);
        let together =
            |other: &&Template| own.contains(&other.0.as_str()) || named(other).contains(&name);
        let places = templates.iter().filter(together).chain([template]);
        let read: BTreeSet<&str> = places.flat_map(words).collect();
        let declared = head(template).parameters.into_iter().map(|(parameter, _)| parameter);
        let others = declared.filter(|parameter| !read.contains(parameter));
        unread.extend(others.map(|parameter| format!("{name} {parameter}")));
    }
    assert!(unread.is_empty(), "{unread:?}");
}

/// Every template that is a kernel makes a program of its defaults alone, and one with all others.
/// A kernel names every other template.
#[test]
fn defaults_alone_make_programs() {
    let templates = templates();
    let shared: BTreeSet<&str> = templates.iter().flat_map(named).chain(["common"]).collect();
    let (mut parts, mut kernels) = (vec![], 0);
    for (name, text) in templates.iter().filter(|(name, _)| !shared.contains(name.as_str())) {
        let source = render_defaults(text).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let entry = source.split_once("__kernel").and_then(|(_, rest)| rest.split_once("void "));
        let entry = entry.and_then(|(_, rest)| rest.split_once('('));
        let (entry, _) = entry.unwrap_or_else(|| panic!("{name} is no kernel, and none names it"));
        let entry: &'static str = entry.to_string().leak();
        println!("{name}: {entry}");
        // PTX is replaced where there is none, in programs of one kernel.
        parts.extend((!source.contains("asm")).then(|| program::part(&source, entry)));
        kernels += 1;
        Runner::shared().build(&Launch::new(source, entry, vec![], [1; 3], None));
    }
    assert!(kernels > 50 && parts.len() > 40, "{kernels} kernels, {} together", parts.len());
    let together: String = parts.iter().map(|part| &*part.source).collect();
    let last = parts.pop().unwrap().entry.leak();
    Runner::shared().build(&Launch::new(together.into(), last, vec![], [1; 3], None));
}
