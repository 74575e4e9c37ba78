//! Who may use the server: addresses, tokens, hosts, origins.

use std::io::Write;

use serde_json::json;

use super::harness::kiln_err;
use super::server::{Answer, Server, head, turbo};

const TOKEN: &str = "a-token-of-16-characters";

#[test]
fn other_addresses_need_a_token() {
    let line = kiln_err(&["serve", turbo(), "--listen", "0.0.0.0:0"], 2);
    assert!(line.contains("give --token"), "{line}");
    let line = kiln_err(&["serve", turbo(), "--token", "short"], 2);
    assert!(line.contains("16 characters"), "{line}");
    let line = kiln_err(&["serve", turbo(), turbo()], 2);
    assert!(line.contains("two bundles are named"), "{line}");
    let line = kiln_err(&["serve", turbo(), "--budget", "64MiB"], 2);
    assert!(line.contains("are allowed") && line.contains("--queue"), "{line}");
    let line = kiln_err(&["serve", "no.kiln"], 2);
    assert!(line.contains("no.kiln"), "{line}");
}

#[test]
fn pages_of_others_are_refused() {
    let server = Server::shared();
    let json = "Content-Type: application/json";
    let post = |headers: &[&str]| server.send("POST", "/v1/pictures", headers, b"{}").status;
    for host in ["Host: evil.example", "Host: 192.168.0.7", "Host: "] {
        assert_eq!(post(&[host, json]), 403, "{host}");
        assert_eq!(server.send("GET", "/", &[host], b"").status, 403, "{host}");
    }
    for origin in ["http://evil.example", "null", "http://localhost:1"] {
        let origin = format!("Origin: {origin}");
        assert_eq!(post(&["Host: localhost", json, &origin]), 403, "{origin}");
    }
    assert_eq!(post(&["Host: localhost", json, "Sec-Fetch-Site: same-site"]), 403);
    let page = server.get("/");
    assert_eq!(page.status, 200);
    for header in ["frame-ancestors 'none'", "nosniff", "default-src 'none'", "no-store"] {
        assert!(page.head.contains(header), "{header}: {}", page.head);
    }
    assert!(!page.head.contains("unsafe"), "{}", page.head);
}

#[test]
fn a_token_opens_everything_but_the_sign_in() {
    let options = ["--listen", "0.0.0.0:0", "--token", TOKEN, "--queue", "2"];
    let server = Server::start(&[turbo()], &options);
    let host = "Host: 127.0.0.1";
    for path in ["/v1/server", "/metrics", "/v1/models", "/sdapi/v1/options", "/openapi.json"] {
        assert_eq!(server.send("GET", path, &[host], b"").status, 401, "{path}");
        let bearer = format!("Authorization: Bearer {TOKEN}");
        assert_eq!(server.send("GET", path, &[host, &bearer], b"").status, 200, "{path}");
    }
    // Nothing of a stranger's body is read.
    let mut stream = server.connect();
    stream.write_all(&head("POST", "/v1/pictures", &[host], 8 << 20)).expect("it is taken");
    assert_eq!(Answer::read(&mut stream).status, 401);
    let sign_in = server.send("GET", "/", &[host], b"");
    assert!(sign_in.text().contains("Sign in") && !sign_in.text().contains("/v1/"));
    let form = "Content-Type: application/x-www-form-urlencoded";
    let login = |token: &str| {
        server.send("POST", "/login", &[host, form], format!("token={token}").as_bytes())
    };
    assert_eq!(login("a-wrong-token-of-16").status, 401);
    let answer = login(TOKEN);
    assert_eq!(answer.status, 303);
    let cookie = answer.head.lines().find_map(|line| line.strip_prefix("set-cookie: "));
    let cookie = cookie.expect("a cookie");
    assert!(cookie.contains("HttpOnly; SameSite=Strict") && !cookie.contains(TOKEN), "{cookie}");
    let cookie = format!("Cookie: {}", cookie.split(';').next().expect("a value"));
    assert_eq!(server.send("GET", "/v1/server", &[host, &cookie], b"").status, 200);
    assert!(server.send("GET", "/", &[host, &cookie], b"").text().contains("/v1/pictures"));
    let body = json!({ "steps": 0 }).to_string();
    let json = "Content-Type: application/json";
    let wrong = server.send("POST", "/v1/pictures", &[host, &cookie, json], body.as_bytes());
    assert_eq!(wrong.status, 400, "{}", wrong.text());
}
