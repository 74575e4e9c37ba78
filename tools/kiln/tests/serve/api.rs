//! The server's own interface, metrics and documents.

use serde_json::{Value, json};

use super::harness::{arg, emoji, kiln_ok, scratch};
use super::server::{Server, turbo};

/// Two steps, decoded by the tiny decoder: the least work.
fn quick(prompt: &str) -> Value {
    json!({
        "prompt": prompt, "steps": 2, "sampler": "lcm", "guidance": 1, "decoder": "tiny",
        "model": "turbo",
    })
}

#[test]
fn a_picture_is_that_of_kiln_run() {
    let server = Server::shared();
    let mut wish = quick("a red heart");
    wish["seed"] = 3.into();
    let job = server.over(&server.ask(&wish));
    assert_eq!((&job["stage"], &job["model"]), (&json!("done"), &json!("turbo")), "{job}");
    let png = server.get(job["files"][0]["path"].as_str().expect("a path")).body;
    let picture = scratch("serve").join("run.png");
    let fixed = ["run", turbo(), "-p", "a red heart", "--seed", "3", "--steps", "2"];
    let more = ["--sampler", "lcm", "--guidance", "1", "--decoder", "tiny", "-o", arg(&picture)];
    kiln_ok(&[&fixed[..], &more].concat());
    assert!(png == std::fs::read(&picture).expect("it was written"), "the files are the same");
}

#[test]
fn events_tell_each_step_with_its_memory_and_waits() {
    let server = Server::shared();
    let mut wish = quick("a robot");
    (wish["count"], wish["preview"]) = (2.into(), "decoder".into());
    let id = server.ask(&wish);
    let events = server.events(&id);
    let traces = events.iter().flat_map(|event| event["trace"].as_array().expect("a list"));
    let steps: Vec<_> = traces.map(|s| (s["picture"].as_u64(), s["step"].as_u64())).collect();
    let at = |picture, step| (Some(picture), Some(step));
    assert_eq!(steps, [at(0, 1), at(0, 2), at(1, 1), at(1, 2)]);
    let whole = server.get(&format!("/v1/pictures/{id}")).json();
    for step in whole["trace"].as_array().expect("a list") {
        assert!(step["waited_seconds"].as_f64() <= step["seconds"].as_f64(), "{step}");
        assert!(step["process_bytes"].as_u64() > Some(1 << 20), "{step}");
    }
    let end = events.last().expect("an end");
    assert_eq!(end["files"].as_array().map(Vec::len), Some(2));
    let seeds = [0, 1].map(|index| end["files"][index]["seed"].as_u64().expect("a seed"));
    assert_eq!(seeds[1], seeds[0] + 1);
    assert!(events.iter().any(|event| event["preview_path"].is_string()), "a preview was there");
    // A picture that is over can be forgotten.
    let path = format!("/v1/pictures/{id}");
    assert_eq!(server.send("DELETE", &path, &["Host: localhost"], b"").status, 204);
    assert_eq!(server.get(&path).status, 404);
}

#[test]
fn another_bundle_is_loaded_on_request() {
    let server = Server::shared();
    let loads = server.metric("kiln_bundle_loads_total");
    let mut wish = quick("a crown");
    wish["model"] = "emoji".into();
    let job = server.over(&server.ask(&wish));
    assert_eq!((&job["stage"], &job["model"]), (&json!("done"), &json!("emoji")), "{job}");
    assert!(server.metric("kiln_bundle_loads_total") > loads);
}

#[test]
fn a_picture_to_begin_with_changes_little_at_low_strength() {
    let server = Server::shared();
    let png = std::fs::read(emoji("1.png")).expect("it is in the repository");
    let mut wish = quick("a slice of pizza");
    wish["init_image"] = base64(&png).into();
    wish["strength"] = 0.5.into();
    wish["seed"] = 1.into();
    let job = server.over(&server.ask(&wish));
    assert_eq!(job["stage"], "done", "{job}");
    let info = job["files"][0]["info"].as_str().expect("a text");
    assert!(info.contains("Denoising strength: 0.5"), "{info}");
}

#[test]
fn a_mask_keeps_what_kiln_run_keeps() {
    let server = Server::shared();
    let [image, mask] = ["1.png", "1-mask.png"].map(emoji);
    let read = |path: &std::path::Path| base64(&std::fs::read(path).expect("it is there"));
    let mut wish = quick("a red heart");
    (wish["init_image"], wish["mask"]) = (read(&image).into(), read(&mask).into());
    wish["seed"] = 4.into();
    let job = server.over(&server.ask(&wish));
    assert_eq!(job["stage"], "done", "{job}");
    let png = server.get(job["files"][0]["path"].as_str().expect("a path")).body;
    let picture = scratch("serve").join("masked.png");
    let fixed = ["run", turbo(), "-p", "a red heart", "--seed", "4", "--steps", "2"];
    let more = ["--sampler", "lcm", "--guidance", "1", "--decoder", "tiny", "-o", arg(&picture)];
    let masks = ["--init-image", arg(&image), "--mask", arg(&mask)];
    kiln_ok(&[&fixed[..], &more, &masks].concat());
    assert!(png == std::fs::read(&picture).expect("it was written"), "the files are the same");
    let alone = server.post("/v1/pictures", &json!({ "mask": read(&mask) }));
    assert_eq!(alone.status, 400, "{}", alone.text());
}

#[test]
fn cancelled_jobs_leave_at_once() {
    let server = Server::shared();
    let mut long = quick("a rocket");
    (long["steps"], long["count"]) = (50.into(), 8.into());
    let ids = [server.ask(&long), server.ask(&long)];
    for id in ids.iter().rev() {
        let path = format!("/v1/pictures/{id}");
        assert_eq!(server.send("DELETE", &path, &["Host: localhost"], b"").status, 204);
        assert_eq!(server.over(id)["stage"], "cancelled");
    }
}

#[test]
fn what_is_wrong_is_said_before_the_work() {
    let server = Server::shared();
    let cases = [
        (json!({ "steps": 0 }), 400, "0 sampling steps"),
        (json!({ "sampler": "none" }), 400, "euler"),
        (json!({ "size": "512x512" }), 400, "it makes 256x256"),
        (json!({ "size": "large" }), 400, "WIDTHxHEIGHT"),
        (json!({ "model": "../../etc/passwd" }), 404, "there are: turbo, emoji"),
        (json!({ "guidance": 1e30 }), 400, "guidance is 1e30"),
        (json!({ "count": 99 }), 400, "from 1 to 8"),
        (json!({ "promt": "a" }), 400, "unknown field"),
        (json!({ "prompt": "x".repeat(9000) }), 400, "9000 bytes"),
        (json!({ "init_image": "AAAA" }), 400, "no PNG"),
        (json!({ "init_image": "!" }), 400, "base64"),
        (json!({ "decoder": "best" }), 400, "full and tiny"),
    ];
    for (body, status, expected) in cases {
        let answer = server.post("/v1/pictures", &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        let json = answer.json();
        let message = json["error"]["message"].as_str().expect("a message");
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        assert_eq!(json["detail"], json["error"]["message"]);
    }
    assert_eq!(server.get("/v1/pictures/0").status, 404);
    assert_eq!(server.get("/no/such").status, 404);
    let headers = ["Host: localhost", "Content-Type: text/plain"];
    assert_eq!(server.send("POST", "/v1/pictures", &headers, b"{}").status, 415);
}

#[test]
fn metrics_and_the_document_are_served() {
    let server = Server::shared();
    let text = server.get("/metrics").text();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(name.starts_with("kiln_") && value.parse::<f64>().is_ok(), "{line}");
    }
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(server.get("/health").text(), "ok\n");
}

/// Source: RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |index| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > group.len() { '=' } else { char::from(digit) });
        }
    }
    text
}
