//! The clients that people have, from PyPI, against the server.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{self, arg, root, scratch};
use super::server::{Server, emoji, turbo};

/// The folder with the clients, which the script installs if it is missing.
fn clients() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../clients");
    let script = root().join("tools/setup/clients.sh");
    let installed = Command::new(script).arg(&folder).status().expect("sh runs");
    assert!(installed.success(), "tools/setup/clients.sh fails");
    folder
}

/// Runs the tests of a client.
fn run(script: &str, server: &Server) {
    let output = Command::new(clients().join("bin/python"))
        .arg("-B")
        .arg(root().join("tools/kiln/tests/serve").join(script))
        .args([server.url().as_str(), arg(&harness::emoji("1.png")), arg(&scratch("serve"))])
        .output()
        .expect("Python runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
}

#[test]
fn webuiapi_makes_pictures() {
    // It changes the default bundle.
    run("automatic.py", &Server::start(&[turbo(), emoji()], &[]));
}

#[test]
fn openai_makes_pictures() {
    run("openai_images.py", &Server::shared());
}
