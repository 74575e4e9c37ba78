//! A running `kiln serve`, and requests to it over plain sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::{arg, compiled, kiln_ok, root, scratch, shared};

/// Longest wait for anything. Tests fail after it; none asserts a time.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The small model for few steps. Its kernels are those of `shared`, which a driver has compiled.
pub fn turbo() -> &'static str {
    static BUNDLE: OnceLock<String> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let tiny = ["--tiny-decoder", "models/emoji-256-tiny.safetensors"];
        let lora = ["--lora", "models/emoji-256-turbo.safetensors"];
        let path = compiled(&["--with-encoder", tiny[0], tiny[1], lora[0], lora[1]]);
        kiln_ok(&["prepare", arg(&path)]);
        named("turbo.kiln", &path)
    })
}

/// The small model for many steps.
pub fn emoji() -> &'static str {
    static BUNDLE: OnceLock<String> = OnceLock::new();
    BUNDLE.get_or_init(|| named("emoji.kiln", &shared()))
}

/// Another name for a bundle. Clients choose by the name.
fn named(name: &str, bundle: &Path) -> String {
    let link = scratch("serve").join(name);
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(bundle, &link).expect("the target folder can be written");
    arg(&link).to_owned()
}

/// A server, which is stopped when this is dropped.
pub struct Server {
    child: Mutex<Child>,
    pub port: u16,
    /// The line about memory that it prints.
    pub memory: String,
    /// What it prints later.
    _rest: BufReader<ChildStderr>,
}

impl Server {
    /// Starts a server on a free port, and waits until it listens.
    pub fn start(bundles: &[&str], options: &[&str]) -> Server {
        let listen = ["--listen", "127.0.0.1:0"];
        let listen = if options.contains(&"--listen") { &[][..] } else { &listen };
        let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
            .arg("serve")
            .args(bundles)
            .args(listen)
            .args(options)
            .current_dir(root())
            .env_remove("KILN_TOKEN")
            .stderr(Stdio::piped())
            .spawn()
            .expect("kiln starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped"));
        let (mut all, mut memory) = (String::new(), String::new());
        let port = loop {
            let mut line = String::new();
            let read = lines.read_line(&mut line).expect("kiln prints");
            assert!(read > 0, "the server ended: {all}");
            all += &line;
            if line.starts_with("memory:") {
                memory = line.trim().to_owned();
            }
            if let Some(address) = line.strip_prefix("listening on http://") {
                let address = address.split_whitespace().next().expect("an address");
                break address.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
            }
        };
        Server { child: Mutex::new(child), port, memory, _rest: lines }
    }

    /// The server of two bundles that tests share. It ends with the last of them.
    pub fn shared() -> Arc<Server> {
        static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut server = SERVER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        server.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Server::start(&[turbo(), emoji()], &["--queue", "64"]));
            *server = Arc::downgrade(&started);
            started
        })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends a request with these headers, and reads the answer.
    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(&head(method, path, headers, body.len())).expect("the head is taken");
        // A server that refuses does not read all.
        let _ = stream.write_all(body);
        Answer::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &["Host: localhost"], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        let headers = ["Host: localhost", "Content-Type: application/json"];
        self.send("POST", path, &headers, body.to_string().as_bytes())
    }

    /// Asks for a picture; returns the job's id.
    pub fn ask(&self, body: &Value) -> String {
        let answer = self.post("/v1/pictures", body);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// The events of a job until it is over: their data.
    pub fn events(&self, id: &str) -> Vec<Value> {
        let text = self.get(&format!("/v1/pictures/{id}/events")).text();
        let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }

    /// The last state of a job.
    pub fn over(&self, id: &str) -> Value {
        self.events(id).pop().expect("an event")
    }

    /// The value of a metric, with its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().expect("a number")
    }

    /// Waits until something holds.
    pub fn until(&self, what: &str, holds: impl Fn(&Server) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < PATIENCE, "never: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The bound of the memory, and the peak of the process, in bytes.
    pub fn memory_bytes(&self) -> (u64, u64) {
        let memory = self.get("/v1/server").json()["memory"].clone();
        let number = |name: &str| memory[name].as_u64().expect("a number");
        (number("total_bytes"), number("process_peak_bytes"))
    }

    /// Sends a signal, and waits for the exit code.
    pub fn signal(&self, name: &str) -> Option<i32> {
        let mut child = self.child.lock().expect("nobody panicked");
        let pid = child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().expect("kill runs");
        assert!(sent.success(), "the server has ended already");
        child.wait().expect("it ends").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(mut child) = self.child.lock() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The head of a request, after whose answer the connection ends.
pub fn head(method: &str, path: &str, headers: &[&str], length: usize) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length =
        if method == "GET" { String::new() } else { format!("Content-Length: {length}\r\n") };
    format!("{method} {path} HTTP/1.0\r\n{headers}{length}\r\n").into_bytes()
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn read(stream: &mut TcpStream) -> Answer {
        let mut bytes = Vec::new();
        // A server that refuses may reset the connection after its answer.
        let _ = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|part| part == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&bytes)));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer { status: status.expect("a status"), body: bytes.split_off(end + 4), head }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}
