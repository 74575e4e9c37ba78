//! The shipped model's graphs as text, compared exactly with `tests/golden/*.graph.txt`.
//!
//! After an intended change, `KILN_UPDATE_GOLDEN=1 cargo test --release -p kiln-graphs --test
//! dumps` writes them again. Read the difference and explain it in the commit. Automated runs never
//! set the variable.

use kiln_graphs::{model, text_encoder, unet, vae_decoder, vae_encoder};
use kiln_ir::Graph;
use std::path::PathBuf;

fn assert_golden(name: &str, graph: &Graph) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = folder.join(format!("{name}.graph.txt"));
    let found = kiln_ir::text::dump(graph).unwrap();
    if std::env::var_os("KILN_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let first = found.lines().zip(expected.lines()).position(|(a, b)| a != b);
    let line = first.unwrap_or_else(|| found.lines().count().min(expected.lines().count())) + 1;
    assert!(found == expected, "{path:?} differs from line {line} on");
}

#[test]
fn graphs_are_as_recorded() {
    let config = model("emoji-256").unwrap();
    assert_golden("emoji-256.text_encoder", &text_encoder(config, 1).unwrap());
    assert_golden("emoji-256.unet", &unet(config, 1).unwrap());
    assert_golden("emoji-256.vae_decoder", &vae_decoder(config).unwrap());
    assert_golden("emoji-256.vae_encoder", &vae_encoder(config).unwrap());
}
