//! The folders are the registry, and the templates of a folder are its variants.

use kiln_kernels::REGISTRY;
use std::collections::BTreeSet;
use std::path::Path;

const SUFFIX: &str = ".cl.tera";

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Folders that hold kernels of an op: those with a family.
fn folders() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_op = |name: &String| {
        let module = std::fs::read_to_string(root.join(name).join("mod.rs"));
        module.is_ok_and(|text| text.contains("pub const FAMILY"))
    };
    names(root).into_iter().filter(is_op).collect()
}

#[test]
fn every_folder_is_registered_once() {
    let registered: Vec<String> = REGISTRY.iter().map(|f| f.op.to_string()).collect();
    let unique: BTreeSet<String> = registered.iter().cloned().collect();
    assert_eq!(registered.len(), unique.len(), "{registered:?}");
    assert_eq!(folders(), unique);
}

#[test]
fn every_folder_names_an_op_of_the_ir() {
    for family in REGISTRY {
        assert!(kiln_ir::Op::NAMES.contains(&family.op), "{}", family.op);
    }
}

#[test]
fn naive_is_the_last_variant_and_names_are_unique() {
    for family in REGISTRY {
        let variants: Vec<&str> = family.variants.iter().map(|v| v.name).collect();
        let unique: BTreeSet<&str> = variants.iter().copied().collect();
        assert_eq!(variants.len(), unique.len(), "{}: {variants:?}", family.op);
        assert_eq!(variants.last(), Some(&"naive"), "{}", family.op);
    }
}

#[test]
fn every_template_of_a_folder_belongs_to_a_variant() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for family in REGISTRY {
        let variants: BTreeSet<&str> = family.variants.iter().map(|v| v.name).collect();
        for file in names(&root.join(family.op)) {
            let Some(template) = file.strip_suffix(SUFFIX) else { continue };
            let known =
                variants.iter().any(|v| template == *v || template.starts_with(&format!("{v}_")));
            assert!(known, "{}/{file} belongs to none of {variants:?}", family.op);
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

/// A plan asks a device for OpenCL C 1.2 and, for half arithmetic, one extension: kernels use no
/// images and no subgroups, whose limits differ from device to device, and count work-items so that
/// a launch may be cut in parts.
#[test]
fn templates_use_nothing_that_devices_lack() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = names(root).into_iter().map(|name| root.join(name)).filter(|path| path.is_dir());
    let mut count = 0;
    for folder in folders.chain([root.to_owned()]) {
        for file in names(&folder).into_iter().filter(|file| file.ends_with(SUFFIX)) {
            let text = std::fs::read_to_string(folder.join(&file)).unwrap();
            for word in ["image1d", "image2d", "image3d", "sub_group", "get_num_groups"] {
                assert!(!text.contains(word), "{file} uses {word}");
            }
            // GROUP counts what these do not: the work-groups before a part.
            let own = file == format!("common{SUFFIX}");
            for word in ["get_group_id", "get_global_size"] {
                assert!(own || !text.contains(word), "{file} uses {word}");
            }
            let half = file == format!("half{SUFFIX}");
            assert!(half || !text.contains("EXTENSION"), "{file} uses an extension");
            count += 1;
        }
    }
    assert!(count > 50, "{count} templates");
}
