//! The small model's picture from `kiln run`, from C and from Java.

mod harness;

use std::process::Command;

use harness::{arg, kiln_ok, scratch, shared};
use kiln_testkit::native;

#[test]
fn an_emoji_is_the_same_from_the_command_from_c_and_from_java() {
    let folder = scratch("abi");
    let at = |name: &str| folder.join(name);
    let (bundle, picture) = (shared(), at("run.png"));
    let request = ["a red heart", "2", "3"];
    let run = ["run", arg(&bundle), "--prompt", request[0], "--steps", request[1], "--seed"];
    kiln_ok(&[&run[..], &[request[2], "-o", arg(&picture)]].concat());
    let expected = native::rgba(&picture);

    let program = native::c_program(&folder, "generate", false);
    native::output(Command::new(program).args([&bundle, &at("c")]).args(request));
    assert!(std::fs::read(at("c")).expect("pixels") == expected, "C makes another picture");

    let mut java = native::java_program(&folder);
    let said = native::output(java.args([&bundle, &at("java")]).args(request));
    assert!(said.contains("SAMPLE 2 of 2, preview 256 x 256"), "{said}");
    assert!(std::fs::read(at("java")).expect("pixels") == expected, "Java makes another picture");
}
