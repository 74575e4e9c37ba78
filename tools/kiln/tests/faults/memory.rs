//! Memory does not grow with what the user gives: it is streamed, or limited.

use super::harness::{arg, kiln_ok};
use super::{bash, bundle, empty, said};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes a picture of one colour.
fn write_picture(path: &Path, side: u32) {
    let file = BufWriter::new(File::create(path).expect("the target folder can be written"));
    let mut encoder = png::Encoder::new(file, side, side);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().expect("a header");
    let mut writer = writer.stream_writer().expect("a writer");
    let row = vec![200; side as usize * 4];
    (0..side).for_each(|_| writer.write_all(&row).expect("a row"));
    writer.finish().expect("the end");
}

/// Peak of the process and of its plan in bytes, as a run reports them.
fn peaks(folder: &Path, picture: &Path) -> (u64, u64) {
    let (output, report) = (folder.join("out.png"), folder.join("report.json"));
    let run = ["run", arg(bundle()), "-p", "a", "--steps", "2", "-o", arg(&output)];
    let init = ["--init-image", arg(picture), "--strength", "1", "--report", arg(&report)];
    kiln_ok(&[&run[..], &init[..]].concat());
    let report = fs::read_to_string(report).expect("it was written");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let bytes = |value: &serde_json::Value| value.as_u64().expect("bytes");
    (bytes(&report["measured"]["process_peak_bytes"]), bytes(&report["planned"]["peak_bytes"]))
}

#[test]
fn a_large_picture_to_begin_with_stays_within_the_plan() {
    let folder = empty("picture");
    let (small, large) = (folder.join("small.png"), folder.join("large.png"));
    write_picture(&small, 256);
    write_picture(&large, 8000);
    let (small_bytes, planned_bytes) = peaks(&folder, &small);
    let (large_bytes, _) = peaks(&folder, &large);
    println!("{small_bytes} and {large_bytes} bytes of {planned_bytes}");
    assert!(large_bytes <= planned_bytes, "{large_bytes} of {planned_bytes} bytes");
    // The whole picture has 192 MB.
    assert!(large_bytes < small_bytes + (8 << 20), "{large_bytes} after {small_bytes} bytes");
}

/// Runs `kiln` with little memory. It must fail with one line.
fn refused(kib: usize, arguments: &[&str]) -> String {
    let output = bash(&format!("ulimit -v {kib}; exec \"$0\" \"$@\""), arguments);
    let line = said(&output);
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    line
}

#[test]
fn many_pictures_and_long_files_are_limited() {
    let folder = empty("many");
    let (output, prompts) = (folder.join("o.png"), folder.join("p.jsonl"));
    let run = ["run", arg(bundle()), "-o", arg(&output)];
    let count = ["-p", "a", "--count", "1000000000"];
    let line = refused(96 << 10, &[&run[..], &count[..]].concat());
    assert!(line.contains("--count is at most 100000"), "{line}");
    let batch = [&run[..], &["--prompts", arg(&prompts)]].concat();
    let line = |number: usize| format!("{{\"prompt\":\"a rocket, number {number}\"}}\n");
    let lines: String = (0..80_000).map(line).collect();
    fs::write(&prompts, lines.clone() + "{}").expect("the target folder can be written");
    let error = refused(96 << 10, &batch);
    assert!(error.contains("line 80001: missing field `prompt`"), "{error}");
    fs::write(&prompts, lines.repeat(2)).expect("written");
    assert!(refused(96 << 10, &batch).contains("has over 4194304 bytes; split it"));
    let long = format!("{{\"prompt\":\"{}\"}}", "a ".repeat(1_000_000));
    fs::write(&prompts, long).expect("written");
    assert!(refused(96 << 10, &batch).contains("line 1: the prompt has 2000000 bytes"));
    fs::write(&prompts, vec![b'"'; 3 << 20]).expect("written");
    let output = bash("ulimit -v 98304; \"$0\" tokenize < \"$1\"", &[arg(&prompts)]);
    assert!(said(&output).contains("line 1: over 1048576 bytes"), "{}", said(&output));
}

#[test]
fn text_that_decompresses_to_much_is_refused() {
    let picture = empty("text").join("bomb.png");
    let file = File::create(&picture).expect("the target folder can be written");
    let mut encoder = png::Encoder::new(file, 1, 1);
    let text = "A".repeat(128 << 20);
    encoder.add_ztxt_chunk("Comment".into(), text).expect("a text");
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&[0]).expect("a pixel");
    writer.finish().expect("the end");
    let line = refused(96 << 10, &["show", arg(&picture)]);
    assert!(line.contains("bomb.png") && line.contains("8388608 bytes of text"), "{line}");
}
