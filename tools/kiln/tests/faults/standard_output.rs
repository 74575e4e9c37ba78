//! A reader that closes its pipe ends a command quietly; a full device is one line.

use super::harness::{arg, emoji};
use super::{bash, bundle, said};

/// Commands that print without a device.
fn commands() -> Vec<Vec<String>> {
    let (picture, bundle) = (emoji("1.png"), bundle());
    let lines: [&[&str]; 10] = [
        &["show", arg(&picture)],
        &["show", arg(&picture), "--json"],
        &["inspect", arg(bundle), "--ops"],
        &["inspect", arg(bundle), "--json"],
        &["explain", arg(bundle), "decoder.decoder.conv_in"],
        &["devices"],
        &["devices", "--json"],
        &["graph", "--model", "emoji-256", "--network", "decoder", "--plain"],
        &["completions", "bash"],
        &["--help"],
    ];
    lines.iter().map(|line| line.iter().map(|arg| arg.to_string()).collect()).collect()
}

#[test]
fn a_closed_pipe_is_no_failure() {
    for command in commands() {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        // The reader has ended before the first byte.
        let output = bash("set -o pipefail; (sleep 0.2; exec \"$0\" \"$@\") | true", &args);
        assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), ""), "{args:?}");
    }
    let output =
        bash("set -o pipefail; yes '\"a\"' | head -20000 | \"$0\" tokenize | head -1", &[]);
    assert!(!said(&output).contains("error"), "{}", said(&output));
}

#[test]
fn a_full_device_is_one_line() {
    for command in commands() {
        let args: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = bash("exec \"$0\" \"$@\" >/dev/full", &args);
        let line = said(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {line}");
        assert!(line.starts_with("error: cannot write to standard output: No space"), "{line}");
        assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    }
}

#[test]
fn errors_need_no_reader() {
    let absent = ["run", "no/such.kiln", "-p", "a", "-o", "/dev/null"];
    for stream in ["2>/dev/full", "2>&-", "2> >(true)"] {
        let output = bash(&format!("\"$0\" \"$@\" {stream}"), &absent);
        assert_eq!(output.status.code(), Some(2), "{stream}");
    }
}
