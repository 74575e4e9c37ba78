//! The page, in one piece, with a policy that allows nothing from elsewhere.

use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::upload::base64;

const PAGE: &str = include_str!("../assets/page.html");
const LOGIN: &str = include_str!("../assets/login.html");
const STYLE: &str = include_str!("../assets/page.css");
const SCRIPTS: [&str; 6] = [
    include_str!("../assets/page-text.js"),
    include_str!("../assets/page-draw.js"),
    include_str!("../assets/page-memory.js"),
    include_str!("../assets/page-gallery.js"),
    include_str!("../assets/page-job.js"),
    include_str!("../assets/page-main.js"),
];

/// The pages as they are sent.
pub struct Pages {
    page: Page,
    login: Page,
    wrong: Page,
}

struct Page {
    html: String,
    policy: HeaderValue,
}

impl Page {
    /// Fills the style and the script in. The policy names both by their hashes.
    fn new(template: &str, script: &str) -> Page {
        let html = template.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", script);
        let hash = |text: &str| format!("'sha256-{}'", base64(&Sha256::digest(text)));
        let within = |open: &str, close: &str| {
            let text = html.split_once(open).and_then(|(_, rest)| rest.split_once(close));
            text.map_or("'none'".to_owned(), |(text, _)| hash(text))
        };
        let (style, script) = (within("<style>", "</style>"), within("<script>", "</script>"));
        let policy = format!(
            "default-src 'none'; style-src {style}; script-src {script}; \
             img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        );
        let policy = HeaderValue::from_str(&policy);
        Page { policy: policy.unwrap_or(HeaderValue::from_static("default-src 'none'")), html }
    }

    fn answer(&self) -> Response {
        let mut response = Html(self.html.clone()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, self.policy.clone());
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        response
    }
}

impl Pages {
    pub fn new() -> Pages {
        let script = format!("\"use strict\";\n{}", SCRIPTS.concat());
        let wrong = LOGIN.replace("<!--MESSAGE-->", "The token is wrong.");
        Pages {
            page: Page::new(PAGE, &script),
            login: Page::new(LOGIN, ""),
            wrong: Page::new(&wrong, ""),
        }
    }

    pub fn page(&self) -> Response {
        self.page.answer()
    }

    /// `is_wrong`: after a wrong token.
    pub fn login(&self, is_wrong: bool) -> Response {
        if is_wrong { self.wrong.answer() } else { self.login.answer() }
    }
}
