//! Many clients, bad clients, clients that leave, and the end of the server.

use std::io::{Read, Write};
use std::thread;

use serde_json::{Value, json};

use super::server::{Answer, Server, head, turbo};

/// One step, decoded by the tiny decoder: the least work.
fn least(seed: u64) -> Value {
    json!({
        "prompt": "a red heart", "seed": seed, "steps": 1, "sampler": "lcm", "guidance": 1,
        "decoder": "tiny",
    })
}

fn long() -> Value {
    json!({ "prompt": "a rocket", "steps": 200, "sampler": "euler", "guidance": 1 })
}

fn generation(fields: &Value) -> Vec<u8> {
    let body = fields.to_string();
    let headers = ["Host: localhost", "Content-Type: application/json"];
    let mut request = head("POST", "/v1/images/generations", &headers, body.len());
    request.extend(body.as_bytes());
    request
}

/// Nothing is left of requests: no job, no connection but the one that asks.
fn is_idle(server: &Server) -> bool {
    let none = |name| server.metric(name) == 0.0;
    none("kiln_queue_jobs") && none("kiln_running_jobs") && server.metric("kiln_connections") == 1.0
}

fn expect_idle_within_memory(server: &Server) {
    server.until("the server is idle", is_idle);
    let (bound, peak) = server.memory_bytes();
    assert!(peak <= bound, "{peak} bytes, bound {bound}: {}", server.memory);
}

#[test]
fn of_200_clients_at_once_all_are_answered() {
    let server = Server::start(&[turbo()], &["--queue", "6"]);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let clients = (0..200).map(|seed| {
            let server = &server;
            scope.spawn(move || {
                let mut stream = server.connect();
                stream.write_all(&generation(&json!({
                    "prompt": "a red heart", "seed": seed, "steps": 1, "sampler": "lcm", "guidance": 1,
                }))).expect("it is taken");
                Answer::read(&mut stream).status
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().map(|client| client.join().expect("it is answered")).collect()
    });
    let count = |status| statuses.iter().filter(|&&found| found == status).count();
    assert_eq!(count(200) + count(503), 200, "{statuses:?}");
    assert!(count(200) >= 7, "the queue's places were used: {}", count(200));
    expect_idle_within_memory(&server);
    assert_eq!(server.signal("-INT"), Some(0));
}

#[test]
fn bad_clients_do_not_keep_others_from_their_pictures() {
    let server = Server::start(&[turbo()], &["--queue", "4"]);
    let mut held = Vec::new();
    // Silent connections, and heads and bodies that never end.
    for request in [&b""[..], b"GET /", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "].repeat(30) {
        let mut stream = server.connect();
        stream.write_all(request).expect("it is taken");
        held.push(stream);
    }
    let headers = ["Host: localhost", "Content-Type: application/json"];
    for length in [100, 4 << 20] {
        let mut stream = server.connect();
        stream.write_all(&head("POST", "/v1/pictures", &headers, length)).expect("it is taken");
        stream.write_all(b"{\"prompt\": \"").expect("it is taken");
        held.push(stream);
    }
    // Garbage, and heads that are too large.
    let mut noise = fastrand::Rng::with_seed(7);
    for length in [1, 100, 10_000, 100_000] {
        let mut stream = server.connect();
        let bytes: Vec<u8> = (0..length).map(|_| noise.u8(..)).collect();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let mut stream = server.connect();
    let _ = stream.write_all(format!("GET /{} HTTP/1.1\r\n", "x".repeat(100_000)).as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    // Bodies that are too large, or no JSON.
    assert_eq!(server.send("POST", "/v1/pictures", &headers, &[b'['; 60_000]).status, 400);
    let mut stream = server.connect();
    stream.write_all(&head("POST", "/v1/pictures", &headers, 9 << 20)).expect("it is taken");
    assert_eq!(Answer::read(&mut stream).status, 413);
    // A client that never reads its answers.
    let mut slow = server.connect();
    for _ in 0..200 {
        slow.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("buffered");
    }
    for seed in 0..2 {
        assert_eq!(server.over(&server.ask(&least(seed)))["stage"], "done");
    }
    drop(slow);
    drop(held);
    expect_idle_within_memory(&server);
}

#[test]
fn a_client_that_leaves_takes_its_job_along() {
    let server = Server::start(&[turbo()], &["--queue", "4"]);
    let cancelled = || server.metric("kiln_jobs_total{result=\"cancelled\"}");
    // While it runs, from its first stage on, and while it waits.
    for stage in ["sampling", "queued"] {
        let mut running = server.connect();
        running.write_all(&generation(&long())).expect("it is taken");
        let first = |server: &Server| server.get("/v1/pictures").json()["pictures"][0].clone();
        server.until("it runs", |server| first(server)["stage"] == "sampling");
        let before = cancelled();
        if stage == "queued" {
            let mut waiting = server.connect();
            waiting.write_all(&generation(&long())).expect("it is taken");
            server.until("it waits", |server| server.metric("kiln_queue_jobs") == 1.0);
            drop(waiting);
            server.until("it is cancelled", |_| cancelled() == before + 1.0);
            assert_eq!(first(&server)["stage"], "sampling", "the other goes on");
        }
        let before = cancelled();
        drop(running);
        server.until("it is cancelled", |_| cancelled() == before + 1.0);
    }
    // A page that is closed: its events end, and nobody asks again.
    let id = server.ask(&long());
    let mut events = server.connect();
    let path = format!("/v1/pictures/{id}/events");
    events.write_all(&head("GET", &path, &["Host: localhost"], 0)).expect("it is taken");
    let mut byte = [0];
    events.read_exact(&mut byte).expect("events begin");
    let before = cancelled();
    drop(events);
    server.until("it is cancelled", |_| cancelled() == before + 1.0);
    // While its answer is sent.
    let mut stream = server.connect();
    stream
        .write_all(&generation(&json!({
            "prompt": "a crown", "steps": 1, "sampler": "lcm", "guidance": 1,
        })))
        .expect("it is taken");
    stream.read_exact(&mut byte).expect("an answer begins");
    drop(stream);
    expect_idle_within_memory(&server);
    assert_eq!(server.over(&server.ask(&least(1)))["stage"], "done");
}

#[test]
fn a_signal_cancels_the_queue_and_ends_cleanly() {
    let server = Server::start(&[turbo()], &["--queue", "4"]);
    let mut clients: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.write_all(&generation(&long())).expect("it is taken");
    }
    server.until("all wait", |server| server.metric("kiln_queue_jobs") == 3.0);
    assert_eq!(server.signal("-TERM"), Some(0));
    for mut client in clients {
        assert_eq!(Answer::read(&mut client).status, 409);
    }
}
