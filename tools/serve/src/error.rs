//! Reasons why a server does not start, and why a request is refused.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kiln_bundle::BundleError;
use kiln_runtime::RuntimeError;
use serde_json::json;
use thiserror::Error;

/// A server that does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A bundle cannot be opened.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The first bundle cannot be loaded.
    #[error(transparent)]
    Session(#[from] RuntimeError),
    /// Two bundles would have the same name.
    #[error("two bundles are named {0:?}; clients choose by the file's name, so rename one")]
    SameName(String),
    /// The address is not loopback, and there is no token.
    #[error(
        "{0} can be reached by others, who could use this server; give --token, or listen on \
         127.0.0.1"
    )]
    NoToken(SocketAddr),
    /// The token is unfit.
    #[error("the token {0}")]
    Token(&'static str),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The plan and the server need more than the caller allows.
    #[error(
        "the largest plan takes {plan_bytes} bytes and the server {server_bytes}, {budget_bytes} \
         are allowed; lower --queue or --keep, or compile the bundle for less"
    )]
    Budget {
        /// The largest plan's peak.
        plan_bytes: u64,
        /// The server's bound.
        server_bytes: u64,
        /// The caller's limit.
        budget_bytes: u64,
    },
    /// The operating system refuses threads, signals or sockets.
    #[error("the server cannot run: {0}")]
    Runtime(io::Error),
    /// The thread that makes pictures has ended early.
    #[error("the thread that makes pictures stopped; see the error before this one")]
    Engine,
}

/// A request that is refused. The message is one line for the client.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Display) -> Refusal {
        Refusal { status, message: message.to_string() }
    }

    /// The request itself is wrong.
    pub fn bad(message: impl Display) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, message)
    }

    /// The server is at one of its limits. The client may try again.
    pub fn busy(message: impl Display) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub fn not_found(message: impl Display) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, message)
    }
}

impl From<RuntimeError> for Refusal {
    /// Errors of the request are 400, all others 500.
    fn from(error: RuntimeError) -> Refusal {
        let is_request = matches!(
            error,
            RuntimeError::Input(_) | RuntimeError::Sampler(_) | RuntimeError::Png(_)
        );
        let status = match is_request {
            true => StatusCode::BAD_REQUEST,
            false => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal::new(status, error)
    }
}

impl IntoResponse for Refusal {
    /// One body for all interfaces: OpenAI's clients read `error.message`, AUTOMATIC1111's
    /// `detail`.
    fn into_response(self) -> Response {
        let kind = match self.status.is_server_error() {
            true => "server_error",
            false => "invalid_request_error",
        };
        let code = self.status.as_u16();
        let error = json!({ "message": self.message, "type": kind, "code": code, "param": null });
        let body = Json(json!({ "error": error, "detail": self.message }));
        let mut response = (self.status, body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response
    }
}
