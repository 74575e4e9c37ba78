//! Who may use the server: the token, and the checks that keep other web pages out.
//!
//! A page of another site can make a browser send requests here. It cannot change their `Host`
//! and `Origin` headers: a name of its own that it has pointed at this machine (DNS rebinding) is
//! in `Host`, and its address in `Origin`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::Options;
use crate::api::Shared;
use crate::error::{Refusal, ServeError};

/// Fewest characters of a token.
pub const MIN_TOKEN_CHARS: usize = 16;
/// Name of the cookie that a login sets.
const COOKIE: &str = "kiln";
/// Delay of the answer to a wrong token.
const WRONG_DELAY: Duration = Duration::from_secs(1);
/// Paths that need no token: the page asks for it.
const OPEN: [&str; 3] = ["/", "/login", "/health"];

/// The checks of every request.
pub struct Guard {
    is_loopback: bool,
    names: Vec<String>,
    token: Option<Secret>,
    /// Value of the cookie, drawn at the start.
    cookie: String,
    cookie_secret: Option<Secret>,
}

/// A secret that is compared in constant time.
struct Secret {
    key: [u8; 32],
    mac: Vec<u8>,
}

impl Secret {
    fn new(secret: &str, key: [u8; 32]) -> Secret {
        let mac = mac(&key, secret).finalize().into_bytes().to_vec();
        Secret { key, mac }
    }

    /// Whether a text is the secret. The time does not depend on where they differ.
    fn is(&self, text: &str) -> bool {
        mac(&self.key, text).verify_slice(&self.mac).is_ok()
    }
}

fn mac(key: &[u8; 32], text: &str) -> Hmac<Sha256> {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::new(&block.into());
    mac.update(text.as_bytes());
    mac
}

impl Guard {
    /// Errors: `NoToken`, `Token`.
    pub fn new(options: &Options) -> Result<Guard, ServeError> {
        let is_loopback = options.listen.ip().is_loopback();
        if !is_loopback && options.token.is_none() {
            return Err(ServeError::NoToken(options.listen));
        }
        let random = || {
            let mut bytes = [0; 32];
            let filled = getrandom::fill(&mut bytes);
            filled.map_err(|error| ServeError::Runtime(std::io::Error::other(error)))?;
            Ok::<_, ServeError>(bytes)
        };
        let token = match &options.token {
            Some(token) if token.len() < MIN_TOKEN_CHARS => {
                return Err(ServeError::Token("has under 16 characters"));
            }
            Some(token) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Err(ServeError::Token("has other characters than printable ASCII"));
            }
            Some(token) => Some(Secret::new(token, random()?)),
            None => None,
        };
        let cookie: String = random()?.iter().map(|byte| format!("{byte:02x}")).collect();
        let cookie_secret = token.is_some().then(random).transpose()?;
        let cookie_secret = cookie_secret.map(|key| Secret::new(&cookie, key));
        let names = options.names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Ok(Guard { is_loopback, names, token, cookie, cookie_secret })
    }

    /// The line that is printed at the start.
    pub fn line(&self, address: SocketAddr) -> String {
        match self.token.is_some() {
            true => format!("listening on http://{address} (with the token)"),
            false => format!("listening on http://{address}"),
        }
    }

    pub fn needs_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether a request comes with the token: as a bearer, as the password of basic
    /// authentication, or as the cookie of a login.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let (Some(token), Some(cookie)) = (&self.token, &self.cookie_secret) else { return true };
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let given = text(header::AUTHORIZATION).and_then(|value| value.split_once(' '));
        match given {
            Some((scheme, value)) if scheme.eq_ignore_ascii_case("bearer") => {
                return token.is(value.trim());
            }
            Some((scheme, value)) if scheme.eq_ignore_ascii_case("basic") => {
                let pair = STANDARD.decode(value.trim()).ok();
                let pair = pair.and_then(|bytes| String::from_utf8(bytes).ok());
                let password = pair.as_deref().and_then(|pair| pair.split_once(':'));
                return password.is_some_and(|(_, password)| token.is(password));
            }
            _ => {}
        }
        let mut cookies = text(header::COOKIE).unwrap_or("").split(';');
        let own = cookies.find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='));
        own.is_some_and(|value| cookie.is(value))
    }

    /// The `Set-Cookie` header for one who knows the token.
    ///
    /// Errors: 401.
    pub async fn login(&self, token: &str) -> Result<HeaderValue, Refusal> {
        if !self.token.as_ref().is_some_and(|known| known.is(token)) {
            tokio::time::sleep(WRONG_DELAY).await;
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "the token is wrong"));
        }
        let cookie = format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie);
        HeaderValue::from_str(&cookie).map_err(Refusal::bad)
    }

    /// Errors: 403 if the request names another host, or comes from another site's page.
    fn check_origin(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let forbidden = |message: String| Refusal::new(StatusCode::FORBIDDEN, message);
        let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or("");
        if !self.knows(host) {
            return Err(forbidden(format!(
                "the host {host:?} is not this server's; use its IP address, or give --name"
            )));
        }
        if let Some(origin) = headers.get(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or("");
            let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if !own.is_some_and(|own| own.eq_ignore_ascii_case(host)) {
                return Err(forbidden(format!("pages of {origin:?} may not use this server")));
            }
        }
        let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
        let is_link = method == Method::GET && path == "/";
        if matches!(site, Some("cross-site" | "same-site")) && !is_link {
            return Err(forbidden("pages of other sites may not use this server".into()));
        }
        Ok(())
    }

    /// Whether `Host` is one of this server's: no name that a stranger may have pointed here.
    fn knows(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(""),
            None => host.split(':').next().unwrap_or(""),
        };
        let name = name.to_ascii_lowercase();
        match name.parse::<IpAddr>() {
            Ok(address) => !self.is_loopback || address.is_loopback(),
            Err(_) => name == "localhost" || self.names.contains(&name),
        }
    }
}

/// The middleware around all routes.
pub async fn check(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let (path, headers) = (request.uri().path(), request.headers());
    let checked = app.guard.check_origin(request.method(), path, headers);
    let mut response = match checked {
        Err(refusal) => refusal.into_response(),
        Ok(()) if OPEN.contains(&path) || app.guard.admits(headers) => next.run(request).await,
        Ok(()) => {
            if headers.contains_key(header::AUTHORIZATION) {
                tokio::time::sleep(WRONG_DELAY).await;
            }
            let message = "the token is missing or wrong: send Authorization: Bearer TOKEN";
            let mut response = Refusal::new(StatusCode::UNAUTHORIZED, message).into_response();
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
            response
        }
    };
    app.count(response.status());
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::DEFAULT_KEEP_BYTES;

    fn guard(listen: &str, token: Option<&str>, names: &[&str]) -> Result<Guard, ServeError> {
        Guard::new(&Options {
            bundles: Vec::new(),
            listen: listen.parse().unwrap(),
            token: token.map(str::to_owned),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            queue: 1,
            keep_bytes: DEFAULT_KEEP_BYTES,
            budget_bytes: None,
            trust: None,
            session: Default::default(),
        })
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |&(name, value): &(&'static str, &str)| {
            (header::HeaderName::from_static(name), value.parse().unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn another_address_needs_a_token_of_some_length() {
        assert!(guard("127.0.0.1:1", None, &[]).is_ok() && guard("[::1]:1", None, &[]).is_ok());
        let error = guard("0.0.0.0:1", None, &[]).err().unwrap().to_string();
        assert!(error.contains("--token"), "{error}");
        assert!(guard("0.0.0.0:1", Some("short"), &[]).is_err());
        assert!(guard("0.0.0.0:1", Some("with a space in it"), &[]).is_err());
        assert!(guard("0.0.0.0:1", Some("0123456789abcdef"), &[]).is_ok());
    }

    #[test]
    fn hosts_and_origins_of_others_are_refused() {
        let local = guard("127.0.0.1:1", None, &["Kiln.example"]).unwrap();
        let open = guard("0.0.0.0:1", Some("0123456789abcdef"), &[]).unwrap();
        let check = |guard: &Guard, pairs: &[(&'static str, &str)]| {
            guard.check_origin(&Method::POST, "/v1/pictures", &headers(pairs)).is_ok()
        };
        for host in ["127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST:1", "kiln.example:1"] {
            assert!(check(&local, &[("host", host)]), "{host}");
        }
        for host in ["", "evil.example", "127.0.0.1.evil.example", "192.168.0.7", "localhost.x"] {
            assert!(!check(&local, &[("host", host)]), "{host}");
        }
        assert!(check(&open, &[("host", "192.168.0.7:7860")]));
        assert!(!check(&open, &[("host", "evil.example")]));
        let host = ("host", "localhost:7860");
        assert!(check(&local, &[host, ("origin", "http://localhost:7860")]));
        for origin in ["null", "http://evil.example", "http://localhost:8080", "localhost:7860"] {
            assert!(!check(&local, &[host, ("origin", origin)]), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert!(!check(&local, &[host, ("sec-fetch-site", site)]));
            let link = headers(&[host, ("sec-fetch-site", site)]);
            assert!(local.check_origin(&Method::GET, "/", &link).is_ok());
        }
    }

    #[test]
    fn the_token_is_taken_in_three_forms() {
        let token = "0123456789abcdef";
        let guard = guard("0.0.0.0:1", Some(token), &[]).unwrap();
        let admits = |name, value: &str| guard.admits(&headers(&[(name, value)]));
        assert!(admits("authorization", &format!("Bearer {token}")));
        let basic = STANDARD.encode(format!("anyone:{token}"));
        assert!(admits("authorization", &format!("Basic {basic}")));
        assert!(admits("cookie", &format!("a=b; kiln={}", guard.cookie)));
        for (name, value) in [
            ("authorization", "Bearer 0123456789abcdeF"),
            ("authorization", "Bearer "),
            ("authorization", "Basic x"),
            ("cookie", "kiln=0"),
            ("cookie", "kiln=0123456789abcdef"),
            ("x", "y"),
        ] {
            assert!(!admits(name, value), "{value}");
        }
    }
}
