//! What a first-time user finds: help, completions and manual pages for every command.

mod harness;

use harness::{arg, kiln, kiln_err, kiln_ok, scratch};
use std::collections::BTreeSet;

/// Shells, and how their scripts write a subcommand.
const SHELLS: [(&str, &str, &str); 5] = [
    ("bash", "kiln,", ")"),
    ("elvish", "cand ", " "),
    ("fish", "-a \"", "\""),
    ("powershell", "[CompletionResult]::new('", "'"),
    ("zsh", "'", ":"),
];

/// The subcommands that `kiln --help` lists.
fn subcommands() -> Vec<String> {
    let help = kiln_ok(&["--help"]);
    let list = help.split("Commands:").nth(1).expect("a list of commands");
    let list = list.split("\n\n").next().expect("an end of the list");
    let is_entry = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let names = list.lines().filter(is_entry).filter_map(|l| l.split_whitespace().next());
    let names: Vec<String> = names.filter(|n| *n != "help").map(str::to_string).collect();
    assert!(names.len() >= 11, "{names:?}");
    names
}

#[test]
fn the_first_commands_are_those_of_the_first_hour() {
    assert_eq!(subcommands()[..3], ["compile", "run", "inspect"]);
    let help = kiln_ok(&["--help"]);
    let examples = help.split("Examples:").nth(1).expect("examples");
    for command in ["kiln doctor", "kiln compile --model", "kiln run", "kiln inspect"] {
        assert!(examples.contains(command), "{command} is not in {examples}");
    }
}

#[test]
fn every_subcommand_has_an_example_that_calls_it() {
    for name in subcommands() {
        let help = kiln_ok(&[&name, "--help"]);
        let examples = help.split("\nExample").nth(1);
        let examples = examples.unwrap_or_else(|| panic!("kiln {name} --help has no example"));
        assert!(examples.contains(&format!("kiln {name}")), "{examples}");
        assert!(help.starts_with(|c: char| c.is_uppercase()), "{name}: {help}");
    }
}

#[test]
fn every_line_of_help_fits_a_terminal() {
    for name in subcommands() {
        let help = kiln_ok(&[&name, "--help"]);
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "kiln {name} --help: {line}");
        }
    }
}

#[test]
fn completions_name_every_subcommand() {
    for (shell, before, after) in SHELLS {
        let script = kiln_ok(&["completions", shell]);
        for name in subcommands() {
            assert!(script.contains(&format!("{before}{name}{after}")), "{shell}: {name}");
        }
    }
    let output = kiln(&["completions", "teletype"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn every_subcommand_has_a_page() {
    let folder = scratch("man").join("man1");
    let _ = std::fs::remove_dir_all(&folder);
    kiln_ok(&["man", arg(&folder)]);
    let written: BTreeSet<String> = (std::fs::read_dir(&folder).expect("it was made"))
        .map(|e| e.expect("an entry").file_name().into_string().expect("ASCII names"))
        .collect();
    let mut expected: BTreeSet<String> =
        subcommands().iter().map(|name| format!("kiln-{name}.1")).collect();
    expected.insert("kiln.1".into());
    assert_eq!(written, expected);
    for file in written {
        let page = std::fs::read_to_string(folder.join(&file)).expect("it was written");
        assert!(page.contains(".TH") && page.contains(".SH EXAMPLES"), "{file}: {page}");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let error = kiln_err(&["man", "/dev/null/pages"], 2);
    assert!(error.contains("/dev/null/pages"), "{error}");
}

#[test]
fn help_of_an_unknown_command_names_the_near_one() {
    let output = kiln(&["complie"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("compile"), "{error}");
}

fn stderr(args: &[&str]) -> String {
    String::from_utf8_lossy(&kiln(args).stderr).into_owned()
}

#[test]
fn options_of_other_programs_are_understood() {
    for other in [
        &["-W", "512", "-H", "512"][..],
        &["--width", "512", "--height", "512"],
        &["--cfg-scale", "3"],
        &["--guidance-scale", "3"],
        &["--num-inference-steps", "9"],
        &["--sampling-method", "euler_a"],
        &["--batch-count", "2"],
        &["--seed", "-1"],
    ] {
        let run = ["run", "not-there.kiln", "-p", "x", "-o", "target/never.png"];
        let text = stderr(&[&run[..], other].concat());
        assert!(text.starts_with("error: cannot open not-there.kiln"), "{other:?}: {text}");
    }
    let text = stderr(&["run", "x.kiln", "-p", "x", "-o", "x.png", "--verbose"]);
    assert!(text.contains("unexpected argument '--verbose'"), "{text}");
    assert!(!text.contains("to pass"), "{text}");
}

#[test]
fn the_device_takes_the_options_of_run() {
    let options = |help: &str| -> BTreeSet<String> {
        let words = help.split(|c: char| !(c.is_alphanumeric() || c == '-'));
        let long = words.filter(|word| word.starts_with("--") && word.len() > 2);
        long.map(str::to_string).collect()
    };
    let host = kiln_ok(&["run", "--help"]);
    let host = host.split("\nExample").next().expect("a beginning");
    let mut device = options(kiln_runtime::cli::HELP);
    for own in ["--prepare", "--version"] {
        assert!(device.remove(own), "{own} is not in the help of kiln-run");
    }
    let mut host = options(host);
    // Named where it is said what a bundle needs.
    host.remove("--with-encoder");
    // Of a format that the device does not write.
    assert!(host.remove("--quality"));
    assert_eq!(host, device);
}
