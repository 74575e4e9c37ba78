//! The interfaces for C and Java follow the sources. `KILN_WRITE_HEADER=1` writes the C header.

use std::path::Path;

use cbindgen::{Config, DocumentationStyle, EnumConfig, Language, RenameRule, Style};

const TOP: &str =
    "/* The Kiln runtime for C: makes images with a compiled model on an OpenCL device.
 *
 * Made from runtime/src/ffi by `KILN_WRITE_HEADER=1 cargo test -p kiln-runtime --test header`.
 *
 * Texts are UTF-8 and end with a NUL. `open`, `create`, `list` and `generate` make objects, which
 * the caller owns and ends with `close` or `free`. A call that fails returns a status other than
 * KILN_STATUS_OK, or NULL; kiln_last_error() has the reason. */";

fn header() -> String {
    let mut config = Config {
        language: Language::C,
        header: Some(TOP.into()),
        include_guard: Some("KILN_H".into()),
        cpp_compat: true,
        style: Style::Both,
        usize_is_size_t: true,
        documentation_style: DocumentationStyle::C99,
        line_length: 100,
        ..Config::default()
    };
    config.enumeration =
        EnumConfig { rename_variants: RenameRule::ScreamingSnakeCase, ..EnumConfig::default() };
    config.enumeration.prefix_with_name = true;
    // The module names its files, which are read with it.
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ffi/mod.rs");
    let builder = cbindgen::Builder::new().with_config(config).with_src(module);
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/kiln.h");
    let made = header();
    if std::env::var_os("KILN_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "{} is old: set KILN_WRITE_HEADER=1 and test again", path.display());
}

#[test]
fn every_interface_has_the_same_defaults() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let (java, c) = (read("java/kiln/KilnRuntime.java"), read("include/kiln.h"));
    for (own, said) in [
        ("int steps = 0;", "sampler; 0 is the model's default"),
        ("float guidance = Float.NaN;", "NaN is the model's default"),
        ("String sampler = null;", "the sampler"),
    ] {
        assert!(java.contains(own) && java.contains(said) && c.contains(said), "{own}");
    }
}
