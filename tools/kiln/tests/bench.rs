//! Measuring and tuning on the small model: figures agree with the plan, and a tuned bundle is right.

mod harness;

use harness::{arg, emoji, kiln_err, kiln_ok, npy, relative_l2, scratch};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&kiln_ok(args)).expect("JSON")
}

fn compile(name: &str, extra: &[&str]) -> PathBuf {
    let path = scratch("bench").join(name);
    kiln_ok(&[&["compile", "--model", "emoji-256", "-o", arg(&path)], extra].concat());
    path
}

fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| compile("emoji.kiln", &[]))
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
    let tuned = compile("tuned.kiln", &["--device", arg(&profile)]);
    let sources = kiln_ok(&["inspect", arg(&tuned), "--source", "matmul"]);
    assert_ne!(sources, kiln_ok(&["inspect", arg(bundle()), "--source", "matmul"]));
    let out = scratch("bench").join("text.npy");
    let tokens = format!("tokens={}", arg(&emoji("0-ids.npy")));
    let eval = ["eval", arg(&tuned), "--network", "text_encoder", "--input", &tokens];
    kiln_ok(&[&eval[..], &["--output", arg(&out)]].concat());
    let error = relative_l2(&npy(&out), &npy(&emoji("0-text.npy")));
    assert!(error <= 1e-4, "relative L2 {error:e}");
}

#[test]
fn what_is_not_there_is_named() {
    let error = kiln_err(&["bench", "networks", arg(bundle()), "--network", "none"], 2);
    assert!(error.contains("'none'") && error.contains("text_encoder"), "{error}");
    let error = kiln_err(&["bench", "ops", "--model", "emoji-256", "--network", "none"], 2);
    assert!(error.contains("'none'") && error.contains("decoder"), "{error}");
    let error = kiln_err(&["tune", "--model", "sd15", "-o", "target/never.toml"], 2);
    assert!(error.contains("'sd15'"), "{error}");
}
