//! `kiln inspect` and `kiln explain`: the numbers agree with each other, and the page with them.

mod harness;

use harness::{arg, compiled, emoji, kiln, kiln_err, kiln_ok, root, scratch, shared};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A bundle in which everything fits.
fn roomy() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| compiled(&[]))
}

/// A bundle that streams in every network: there is room for a quarter of the weights that the
/// roomy one keeps.
fn tight() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let account = json(roomy());
        let resident_bytes = int(&account["weights"], "resident_bytes");
        let budget = int(&account["memory"], "peak_bytes") - resident_bytes * 3 / 4;
        compiled(&["--budget", &budget.to_string()])
    })
}

fn json(bundle: &Path) -> Value {
    let text = kiln_ok(&["inspect", arg(bundle), "--json"]);
    serde_json::from_str(&text).expect("JSON")
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("{name} is a list"))
}

fn int(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} is a number: {}", value[name]))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", (bytes as f64 / 1048576.0 * 10.0).ceil() / 10.0)
}

/// The names of all fields, at any depth.
fn fields(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| fields(item, names)),
        Value::Object(object) => {
            names.extend(object.keys().cloned());
            object.values().for_each(|item| fields(item, names));
        }
        _ => {}
    }
}

#[test]
fn every_field_of_the_json_is_documented() {
    let page = std::fs::read_to_string(root().join("docs/reference/inspect-json.md"));
    let page = page.expect("it is in the repository").replace("[]", "");
    let documented: BTreeSet<&str> = page.split('`').skip(1).step_by(2).collect();
    let mut names = BTreeSet::new();
    fields(&json(tight()), &mut names);
    let missing = names.iter().filter(|name| !documented.contains(name.as_str()));
    assert_eq!(missing.collect::<Vec<_>>(), [] as [&String; 0]);
}

#[test]
fn the_summary_fits_one_screen() {
    for bundle in [roomy(), tight()] {
        let text = kiln_ok(&["inspect", arg(bundle)]);
        assert!(text.lines().count() <= 40, "{text}");
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= 100, "{widest} columns:\n{text}");
    }
}

#[test]
fn the_numbers_add_up() {
    for account in [json(roomy()), json(tight())] {
        let memory = &account["memory"];
        let slots: u64 = list(memory, "slot_bytes").iter().filter_map(Value::as_u64).sum();
        let parts =
            ["arena_bytes", "staging_bytes", "host_bytes", "program_bytes", "baseline_bytes"];
        let sum: u64 = parts.iter().map(|part| int(memory, part)).sum();
        assert_eq!(int(memory, "peak_bytes"), sum + slots);
        assert_eq!(int(&account["peak"], "live_bytes"), int(memory, "arena_lower_bound_bytes"));
        let (ops, networks) = (list(&account, "ops"), list(&account, "networks"));
        for (index, network) in networks.iter().enumerate() {
            let own = || ops.iter().filter(|op| int(op, "network") == index as u64);
            let ns: u64 = own().map(|op| int(op, "predicted_ns")).sum();
            // Each load passes the device's memory twice, and is rounded to nanoseconds.
            let rate = account["rates"]["memory_bytes_per_s"].as_f64().expect("a rate");
            let taken_ns = 2e9 * int(network, "streamed_bytes") as f64 / rate;
            let sum_ns = (ns + int(network, "stall_ns")) as f64 + taken_ns;
            let loads = list(&account, "loads").len() as f64;
            let off_ns = (int(network, "pass_ns") as f64 - sum_ns).abs();
            assert!(off_ns <= loads + 1.0, "{off_ns}: {network}");
            let flops: u64 = own().map(|op| int(op, "flops")).sum();
            assert_eq!(int(network, "flops"), flops, "{network}");
        }
        let total = |field| list(&account, "kernels").iter().map(|k| int(k, field)).sum::<u64>();
        assert_eq!(total("flops"), ops.iter().map(|op| int(op, "flops")).sum::<u64>());
        let instants = list(&account, "live_bytes").len();
        assert_eq!(list(&account, "start_ns").len(), instants + 1);
        assert!(ops.iter().all(|op| !list(op, "shape").is_empty()), "every op has its choice");
    }
}

#[test]
fn loads_follow_one_another_and_their_slots_are_free() {
    let account = json(tight());
    let loads = list(&account, "loads");
    assert!(loads.len() > 100, "{} loads", loads.len());
    let number = |load: &Value, name: &str| load[name].as_i64().expect("a number");
    for network in list(&account, "networks") {
        let inside = |load: &&Value| {
            (int(network, "lower")..int(network, "upper")).contains(&int(load, "step"))
        };
        let own: Vec<&Value> = loads.iter().filter(inside).collect();
        for pair in own.windows(2) {
            let end = number(pair[0], "start_ns") + number(pair[0], "ns");
            assert!(number(pair[1], "start_ns") >= end, "{} {}", pair[0], pair[1]);
        }
    }
    let starts = list(&account, "start_ns");
    for (index, load) in loads.iter().enumerate() {
        let begins = starts[int(load, "step") as usize + 1].as_i64().expect("a time");
        assert!(number(load, "start_ns") + number(load, "ns") <= begins, "{load}");
        let earlier = loads[..index].iter().rev().find(|l| l["slot"] == load["slot"]);
        assert!(earlier.is_none_or(|l| int(l, "free") <= int(load, "step")), "{load}");
    }
}

#[test]
fn each_part_has_its_listing() {
    let bundle = arg(roomy());
    let account = json(roomy());
    let lines = |flag| kiln_ok(&["inspect", bundle, flag]).lines().count();
    assert_eq!(lines("--ops"), 1 + list(&account, "ops").len());
    assert!(lines("--memory") > list(&account, "arena").len());
    assert!(lines("--weights") > list(&account, "loads").len());
    assert!(lines("--kernels") > list(&account, "kernels").len());
    let dot = kiln_ok(&["inspect", bundle, "--dot"]);
    assert!(dot.starts_with("digraph plan {") && dot.ends_with("}\n"));
    let boxes = dot.matches("[shape=box").count();
    assert_eq!(boxes, list(&account, "ops").len());
    let source = kiln_ok(&["inspect", bundle, "--source", "0"]);
    // By its entry point without the source's suffix.
    let kernel = source.split("__kernel").nth(1).and_then(|rest| rest.split("void ").nth(1));
    let entry = kernel.and_then(|rest| rest.split('(').next()).unwrap();
    assert!(kiln_ok(&["inspect", bundle, "--source", entry]).contains(source.trim_end()));
    assert!(source.contains("__kernel"), "{source}");
    let line = kiln_err(&["inspect", bundle, "--source", "no such kernel"], 2);
    assert!(line.contains("--kernels"), "{line}");
}

#[test]
fn a_comparison_names_what_changed() {
    let (roomy, tight) = (arg(roomy()), arg(tight()));
    let same = kiln_ok(&["inspect", roomy, "--compare", roomy]);
    assert!(
        same.contains("ops: same") && same.contains("launches of each variant: same"),
        "{same}"
    );
    let text = kiln_ok(&["inspect", roomy, "--compare", tight]);
    for name in ["planned peak", "streamed a pass of the U-Net", "predicted step", "ops differ"] {
        assert!(text.contains(name), "{name} is not in:\n{text}");
    }
    assert!(text.lines().any(|l| l.starts_with("streamed a pass") && l.contains('+')), "{text}");
}

#[test]
fn an_explanation_gives_the_alternatives_and_the_place() {
    let op = "unet.input_blocks.1.0.in_layers.2";
    let text = kiln_ok(&["explain", arg(tight()), op]);
    for part in ["chosen", "naive", "does not apply", "strategy taken", "live over", "below it"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(text.contains("streamed:") || text.contains("resident at"), "{text}");
    let latent = kiln_ok(&["explain", arg(tight()), "unet.latent"]);
    assert!(latent.contains("buffer unet.latent (port"), "{latent}");
    let many = kiln_err(&["explain", arg(tight()), "attn1"], 2);
    assert!(many.contains("attn1.to_out"), "{many}");
    kiln_err(&["explain", arg(tight()), "no such thing"], 2);
}

/// Opens a page in a browser without a window; returns the document after its scripts.
fn browse(page: &Path, fragment: &str, extra: &[&str]) -> String {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let profile = scratch("inspect").join(format!("browser-{number}"));
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(extra)
        .arg(format!("file://{}#{fragment}", page.display()))
        .output()
        .expect("chromium starts; tools/setup/opencl.sh --tests installs it");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).expect("the document is UTF-8")
}

/// What the page saw when it used itself.
fn selftest(page: &Path, size: &str) -> Value {
    let size = format!("--window-size={size}");
    let document = browse(page, "selftest", &["--dump-dom", &size]);
    let start = document.find("<pre id=\"selftest\"").expect("the element of the results");
    let text = &document[start..];
    let text = &text[text.find('>').map_or(0, |at| at + 1)..text.find("</pre>").expect("its end")];
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    let results: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(results["errors"], Value::Array(vec![]), "errors of the page");
    results
}

fn page(bundle: &Path, name: &str, extra: &[&str]) -> PathBuf {
    let path = scratch("inspect").join(name);
    kiln_ok(&[&["inspect", arg(bundle), "--html", arg(&path)], extra].concat());
    path
}

#[test]
fn the_page_holds_the_json_and_nothing_from_elsewhere() {
    let path = page(tight(), "alone.html", &[]);
    let text = std::fs::read_to_string(&path).expect("the page was written");
    let start = "<script type=\"application/json\" id=\"account\">";
    let from = text.find(start).expect("the account") + start.len();
    let held = &text[from..from + text[from..].find("</script>").expect("its end")];
    let held: Value = serde_json::from_str(held).expect("JSON");
    assert!(held == json(tight()), "the page's numbers are those of --json");
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!text.contains(outside), "{outside}");
    }
}

#[test]
fn the_page_works_in_a_browser() {
    let path = page(tight(), "works.html", &[]);
    let account = json(tight());
    for size in ["1400,1000", "500,900"] {
        let seen = selftest(&path, size);
        let tiles = seen["tiles"].to_string();
        let (memory, ops) = (&account["memory"], list(&account, "ops"));
        assert!(tiles.contains(&mib(int(memory, "peak_bytes"))), "{tiles}");
        assert!(tiles.contains(&mib(int(&account["weights"], "streamed_bytes_a_pass"))), "{tiles}");
        let budget = seen["budget"].to_string();
        for part in ["host_bytes", "program_bytes", "baseline_bytes"] {
            assert!(budget.contains(&mib(int(memory, part))), "{part}: {budget}");
        }
        assert_eq!(int(&seen, "rows") as usize, ops.len());
        assert!(int(&seen, "rows_in_document") < 60, "only the rows in sight are in the document");

        let (peak, tip) = (&account["peak"], seen["hovered"]["tip"].as_str().expect("a text"));
        let op = peak["op"].as_str().expect("a name");
        assert!(tip.contains(op), "{op} is not in {tip}");
        let largest = &list(peak, "live")[0];
        assert!(tip.contains(largest["name"].as_str().expect("a name")), "{tip}");
        assert!(tip.contains(&mib(int(largest, "len_bytes"))), "{tip}");

        assert!(seen["wheel_zoom"].as_f64().expect("a ratio") < 0.8, "the wheel zooms in");
        assert!(seen["box_zoom"].as_f64().expect("a ratio") < 0.8, "a box zooms in");
        assert_eq!((&seen["panned"], &seen["reset"]), (&true.into(), &true.into()));
        assert_eq!(
            seen["time_extent_ns"].as_u64(),
            list(&account, "start_ns").last().and_then(Value::as_u64)
        );
        assert!((1..ops.len()).contains(&(int(&seen, "found") as usize)), "the search filters");
        let slowest = ops.iter().map(|op| int(op, "predicted_ns")).max().unwrap_or(0);
        let selected = &ops[int(&seen, "selected") as usize];
        assert_eq!(int(selected, "predicted_ns"), slowest, "sorted by predicted time");
        assert_eq!(seen["slowest"][0], int(selected, "step").to_string());
    }
}

#[test]
fn the_page_is_drawn_in_light_and_dark() {
    let path = page(roomy(), "drawn.html", &[]);
    let draw = |name: &str, scheme: &str| {
        let picture = scratch("inspect").join(name);
        let (to, scheme) = (
            format!("--screenshot={}", picture.display()),
            format!("--blink-settings=preferredColorScheme={scheme}"),
        );
        browse(&path, "", &[&to, &scheme, "--window-size=1200,900"]);
        std::fs::read(&picture).expect("a picture")
    };
    let (dark, light) = (draw("dark.png", "0"), draw("light.png", "1"));
    assert!(dark.len() > 30_000 && light.len() > 30_000, "{} {}", dark.len(), light.len());
    assert!(dark != light);
}

#[test]
fn measured_times_stand_beside_the_predicted_ones() {
    let folder = scratch("inspect");
    let (profile, picture) = (folder.join("profile.json"), folder.join("profiled.png"));
    let (bundle, image) = (shared(), emoji("1.png"));
    let run = ["run", arg(&bundle), "--prompt", "a red heart", "--steps", "2", "--strength", "1"];
    let more = ["--init-image", arg(&image), "--profile", arg(&profile), "-o", arg(&picture)];
    // Previews run the tiny decoder.
    kiln_ok(&[&run[..], &more, &["--preview-every", "1"]].concat());
    let text = kiln_ok(&["inspect", arg(&bundle), "--report", arg(&profile), "--json"]);
    let account: Value = serde_json::from_str(&text).expect("JSON");
    let launches = list(&account, "ops").iter().filter(|op| !op["kernel"].is_null());
    assert!(launches.into_iter().all(|op| op["measured_ns"].as_u64() > Some(0)));
    assert!(list(&account, "networks").iter().all(|n| n["measured_ns"].as_u64() > Some(0)));
    let path = page(&bundle, "measured.html", &["--report", arg(&profile)]);
    assert!(selftest(&path, "1400,1000")["tiles"].to_string().contains("measured, unet"));
    let other = kiln(&["inspect", arg(tight()), "--report", arg(&profile)]);
    assert_eq!(other.status.code(), Some(2), "another bundle's times are refused");
}
