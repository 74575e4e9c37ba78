//! Chromium without a window, driven over the DevTools protocol by pipes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command};

use serde_json::{Value, json};

use super::harness::{arg, scratch};

/// A browser with one page.
pub struct Browser {
    child: Child,
    requests: File,
    answers: BufReader<File>,
    session: String,
    next: u64,
    /// Errors of the page: exceptions, refusals of its policy, failed requests.
    pub errors: Vec<String>,
}

impl Browser {
    /// Starts a browser. `name`: of its folder.
    pub fn start(name: &str) -> Browser {
        let folder = scratch("serve").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        let (requests, answers) = (folder.join("requests"), folder.join("answers"));
        let made = Command::new("mkfifo").args([&requests, &answers]).status();
        assert!(made.expect("mkfifo runs").success());
        let script = format!(
            "exec chromium --headless --no-sandbox --disable-gpu --remote-debugging-pipe \
             --user-data-dir='{}' about:blank 3<'{}' 4>'{}' 2>'{}'",
            arg(&folder.join("profile")),
            arg(&requests),
            arg(&answers),
            arg(&folder.join("log"))
        );
        let child = Command::new("sh").args(["-c", &script]).spawn().expect("sh runs");
        // Each waits for the browser's end of it.
        let requests = OpenOptions::new().write(true).open(&requests).expect("a pipe");
        let answers = BufReader::new(File::open(&answers).expect("a pipe"));
        let (session, errors) = (String::new(), Vec::new());
        let mut browser = Browser { child, requests, answers, session, next: 0, errors };
        let page = json!({ "url": "about:blank" });
        let target = browser.call("Target.createTarget", page)["targetId"].clone();
        let attach = json!({ "targetId": target, "flatten": true });
        let session = browser.call("Target.attachToTarget", attach)["sessionId"].clone();
        browser.session = session.as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Calls a method, and returns its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut request = json!({ "id": self.next, "method": method, "params": params });
        if !self.session.is_empty() {
            request["sessionId"] = self.session.clone().into();
        }
        self.requests.write_all(format!("{request}\0").as_bytes()).expect("the browser reads");
        loop {
            let message = self.receive();
            if message["id"] == self.next {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn receive(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.answers.read_until(0, &mut bytes).expect("the browser answers");
        assert_eq!(bytes.pop(), Some(0), "the browser has ended");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    /// Keeps the errors that a message tells of.
    fn note(&mut self, message: &Value) {
        let params = &message["params"];
        let error = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => params["exceptionDetails"].to_string(),
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                params["entry"]["text"].to_string()
            }
            _ => return,
        };
        self.errors.push(error);
    }

    /// Evaluates an expression in the page, and waits for it if it is a promise.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
            "userGesture": true,
        });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub fn until(&mut self, expression: &str) {
        let script = format!(
            "new Promise((done, fail) => {{ const begun = Date.now(); const look = () => {{ \
             if ({expression}) done(true); else if (Date.now() - begun > 120000) fail('never'); \
             else setTimeout(look, 20); }}; look(); }})"
        );
        self.evaluate(&script);
    }

    /// Opens a page in a window of this size, and waits until its script has begun.
    pub fn open(&mut self, url: &str, (width, height): (u32, u32), scheme: &str) {
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        self.call("Emulation.setScrollbarsHidden", json!({ "hidden": true }));
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        self.evaluate("delete document.body?.dataset.ready");
        self.call("Page.navigate", json!({ "url": url }));
        self.until("document.body && document.body.dataset.ready");
    }

    /// Types text, or presses a key with `modifiers` (2: Ctrl).
    pub fn press(&mut self, key: &str, text: &str, modifiers: u32) {
        for kind in ["keyDown", "keyUp"] {
            let mut params = json!({ "type": kind, "key": key, "modifiers": modifiers });
            params["code"] = key.into();
            if key == "Tab" {
                params["windowsVirtualKeyCode"] = 9.into();
            }
            if key == "Enter" {
                params["windowsVirtualKeyCode"] = 13.into();
            }
            if kind == "keyDown" && !text.is_empty() {
                params["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// Writes a picture of the page.
    pub fn screenshot(&mut self, path: &Path) {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let data = self.call("Page.captureScreenshot", params)["data"].clone();
        std::fs::write(path, decode(data.as_str().expect("base64"))).expect("it can be written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Source: RFC 4648, section 4.
fn decode(text: &str) -> Vec<u8> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> =
        text.chars().filter_map(|c| ALPHABET.find(c).map(|d| d as u32)).collect();
    let group = |digits: &[u32]| {
        let bits = (0..4).fold(0, |bits, at| bits << 6 | digits.get(at).copied().unwrap_or(0));
        [16, 8, 0]
            .map(|shift| (bits >> shift) as u8)
            .into_iter()
            .take(digits.len() - 1)
            .collect::<Vec<_>>()
    };
    digits.chunks(4).flat_map(group).collect()
}
