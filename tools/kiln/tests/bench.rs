//! Measuring and tuning on the small model: figures agree with the plan, and a tuned bundle is
//! right.

mod harness;

use harness::{arg, emoji, kiln_answers, kiln_err, kiln_ok, npy, scratch, shared};
use kiln_testkit::{bounds, relative_l2};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&kiln_ok(args)).expect("JSON")
}

fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(shared)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key} in {value}"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {value}"))
}

#[test]
fn networks_are_measured_as_the_plan_has_them() {
    let plan = json(&["inspect", arg(bundle()), "--json"]);
    let found = json(&["bench", "networks", arg(bundle()), "--runs", "1", "--json"]);
    assert!(found["peak_flops_per_s"].as_f64() > Some(1e8), "{found}");
    assert_eq!(list(&found, "networks").len(), list(&plan, "networks").len());
    for (found, planned) in list(&found, "networks").iter().zip(list(&plan, "networks")) {
        for key in ["name", "launches", "flops"] {
            assert_eq!(found[key], planned[key]);
        }
        let again = if planned["name"] == "unet" { 0 } else { number(planned, "resident_bytes") };
        assert_eq!(number(found, "read_bytes"), number(planned, "streamed_bytes") + again);
        assert!(number(found, "bytes") >= number(found, "weight_bytes"));
        for key in ["launch_seconds", "pass_seconds"] {
            assert_eq!(list(found, key).len(), 1);
            assert!(found[key][0].as_f64() > Some(0.0), "{found}");
        }
        assert_eq!(found["median_seconds"], found["launch_seconds"][0]);
    }
}

#[test]
fn ops_add_up_to_their_network() {
    let plan = json(&["inspect", arg(bundle()), "--json"]);
    let args = ["bench", "ops", arg(bundle()), "--network", "text_encoder", "--chosen", "--json"];
    let found = json(&args);
    let launches = |op: &Value| number(op, "count") * number(&op["variants"][0], "launches");
    let sum: u64 = list(&found, "ops").iter().map(launches).sum();
    let networks = list(&plan, "networks");
    let network = networks.iter().find(|n| n["name"] == "text_encoder").expect("it has one");
    // Rows of the token table are no launch.
    assert_eq!(sum, number(network, "launches"));
    let shares: f64 = list(&found, "ops").iter().filter_map(|op| op["share"].as_f64()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
}

/// 4096 rows of 320 columns, read and written once, with a scale and a shift a column.
const LAYER_NORM: (&str, u64, u64) =
    ("layer_norm 4096x320", 7 * 4096 * 320, (2 * 4096 * 320 + 2 * 320) * 4);

#[test]
fn bare_kernels_have_the_work_of_their_shape() {
    let (name, flops, bytes) = LAYER_NORM;
    let found = json(&["bench", "kernels", "--filter", "layer_norm", "--json"]);
    let positive = |value: &Value| assert!(value.as_f64() > Some(0.0), "{found}");
    let [kernel] = list(&found, "kernels") else { panic!("not one kernel: {found}") };
    assert_eq!((kernel["name"].as_str(), kernel["bound"].as_str()), (Some(name), Some("memory")));
    assert_eq!((number(kernel, "flops"), number(kernel, "bytes")), (flops, bytes));
    assert_eq!(kernel["inputs"], serde_json::json!([[4096, 320], [320], [320]]));
    assert!(number(kernel, "launches") > 0 && kernel["variant"].is_string(), "{kernel}");
    for key in ["peak_flops_per_s", "copy_bytes_per_s"] {
        positive(&found[key]);
    }
    positive(&kernel["seconds"]);
    let seconds = bytes as f64 / kernel["bytes_per_s"].as_f64().expect("a rate");
    let copied = seconds * found["copy_bytes_per_s"].as_f64().expect("a rate");
    let share = kernel["share"].as_f64().expect("a share");
    assert!((share * copied / bytes as f64 - 1.0).abs() < 1e-9, "{found}");
    assert_eq!((number(kernel, "moved_bytes"), &kernel["moved_share"]), (bytes, &kernel["share"]));
}

/// What a group norm reads twice is moved twice.
#[test]
fn what_launches_move_is_told() {
    let found = json(&["bench", "kernels", "--filter", "group_norm_silu 320", "--json"]);
    let [kernel] = list(&found, "kernels") else { panic!("not one kernel: {found}") };
    let picture_bytes = 64 * 64 * 320 * 4;
    let reads = if kernel["variant"] == "chunked" { 2 } else { 1 };
    let moved_bytes = number(kernel, "moved_bytes");
    let statistics_bytes = moved_bytes - (reads + 1) * picture_bytes;
    assert!(statistics_bytes < picture_bytes / 8, "{found}");
    let ratio = |key: &str, by: &str| {
        kernel[key].as_f64().expect("a number") / kernel[by].as_f64().expect("a number")
    };
    let shares = ratio("moved_share", "share");
    assert!((shares / ratio("moved_bytes", "bytes") - 1.0).abs() < 1e-9, "{found}");
}

#[test]
fn kernels_are_measured_on_request() {
    let (name, flops, bytes) = LAYER_NORM;
    let args = ["bench", "kernels", "--filter", name, "--precision", "fp16", "--on-request"];
    let answers = kiln_answers(&args, &format!("{name}\n{name}\n"));
    let lines = answers.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let lines: Vec<Value> = lines.collect();
    let [ready, first, second] = &lines[..] else { panic!("not three lines: {answers}") };
    assert_eq!(ready["ready"], true);
    let [kernel] = list(ready, "kernels") else { panic!("not one kernel: {ready}") };
    assert_eq!(kernel["name"], name);
    assert_eq!(number(kernel, "flops"), flops);
    // Half as many where values are stored in FP16, but for the scales and shifts.
    let halved = kernel["problem"].as_str().is_some_and(|p| p.starts_with("f16"));
    let values_bytes = bytes - 2 * 320 * 4;
    let expected = if halved { bytes - values_bytes / 2 } else { bytes };
    assert_eq!(number(kernel, "bytes"), expected);
    for answer in [first, second] {
        assert_eq!(answer["name"], name);
        assert!(answer["seconds"].as_f64() > Some(0.0), "{answer}");
    }
}

#[test]
fn the_table_has_figures_of_what_was_measured_only() {
    let table =
        |seconds: &str| json(&["bench", "table2", arg(bundle()), "--seconds", seconds, "--json"]);
    for row in list(&table("0"), "rows") {
        for cell in list(row, "networks") {
            assert!(cell["seconds"].is_null() && cell["seconds_with_io"].is_null(), "{cell}");
            assert_eq!(cell["measured_part"], 0.0);
        }
    }
    let text = kiln_ok(&["bench", "table2", arg(bundle()), "--seconds", "0"]);
    let row = text.lines().find(|line| line.starts_with("kiln, % of peak")).expect("a row");
    assert!(row.split_whitespace().skip(5).all(|word| word == "-"), "{text}");
    assert!(!text.contains("inf") && !text.contains("0.000"), "{text}");
    for row in list(&table("1"), "rows") {
        for cell in list(row, "networks") {
            assert!(cell["seconds"].as_f64() > Some(0.0), "{row}");
            assert!(cell["seconds_with_io"].as_f64() >= cell["seconds"].as_f64(), "{row}");
            assert!(cell["measured_part"].as_f64() > Some(0.0), "{row}");
        }
    }
}

#[test]
fn a_tuned_bundle_computes_the_same() {
    let profile = scratch("bench").join("tuned.toml");
    let fixed = ["tune", "--model", "emoji-256", "--network", "text_encoder", "--seconds", "4"];
    kiln_ok(&[&fixed[..], &["--filter", "-> f32[2,77,192]", "-o", arg(&profile)]].concat());
    let text = std::fs::read_to_string(&profile).expect("it was written");
    assert!(text.contains("[[target.tuning]]\nop = \"matmul\""), "{text}");
    // Its own choice may stay, so one entry is set to what no rule would choose.
    let rows = text.lines().filter(|l| l.starts_with("tile_rows")).nth(1).expect("an entry");
    let edited = text.replace(rows, "tile_rows = 5");
    std::fs::write(&profile, edited).expect("the folder can be written");
    let tuned = scratch("bench").join("tuned.kiln");
    let fixed = ["compile", "--model", "emoji-256", "--device", arg(&profile)];
    kiln_ok(&[&fixed[..], &["-o", arg(&tuned)]].concat());
    let sources = kiln_ok(&["inspect", arg(&tuned), "--source", "matmul"]);
    assert_ne!(sources, kiln_ok(&["inspect", arg(bundle()), "--source", "matmul"]));
    let out = scratch("bench").join("text.npy");
    let tokens = format!("tokens={}", arg(&emoji("0-ids.npy")));
    let eval = ["eval", arg(&tuned), "--network", "text_encoder", "--input", &tokens];
    kiln_ok(&[&eval[..], &["--output", arg(&out)]].concat());
    let error = relative_l2(&npy(&out), &npy(&emoji("0-text.npy")));
    assert!(error <= bounds::NETWORK_FP32, "relative L2 {error:e}");
}

#[test]
fn what_is_not_there_is_named() {
    let error = kiln_err(&["bench", "networks", arg(bundle()), "--network", "none"], 2);
    assert!(error.contains("'none'") && error.contains("text_encoder"), "{error}");
    let error = kiln_err(&["bench", "ops", "--model", "emoji-256", "--network", "none"], 2);
    assert!(error.contains("'none'") && error.contains("decoder"), "{error}");
    let error = kiln_err(&["bench", "kernels", "--filter", "conv9x9"], 2);
    assert!(error.contains("'conv9x9'") && error.contains("conv3x3 320->320@64x64"), "{error}");
    let error = kiln_err(&["tune", "--model", "sd14", "-o", "target/never.toml"], 2);
    assert!(error.contains("'sd14'"), "{error}");
}
