//! The server's memory beside the plan: a bound for each part.

use kiln_bundle::plan::Size;

use crate::Options;
use crate::error::ServeError;
use crate::models::Models;

/// Most connections at a time.
pub const CONNECTIONS: usize = 256;
/// Buffer of a connection, each way.
pub const CONNECTION_BUFFER_BYTES: usize = 16 << 10;
/// Bound for a connection: its buffers, and the state of its request.
const CONNECTION_BYTES: u64 = 48 << 10;
/// Largest body of a request without a picture.
pub const SMALL_BODY_BYTES: usize = 64 << 10;
/// Small bodies that are read at a time.
pub const SMALL_BODIES: usize = 32;
/// Largest body of a request.
pub const BODY_BYTES: usize = 8 << 20;
/// Larger bodies that are read and decoded at a time.
pub const LARGE_BODIES: usize = 1;
/// Bound for reading a PNG file, beside the file itself: chunks, a row, the scaled picture.
const DECODING_BYTES: u64 = 12 << 20;
/// Longest prompt, and longest negative prompt.
pub const PROMPT_BYTES: usize = 8 << 10;
/// Answers with pictures that are being sent. A larger answer is sent alone.
pub const ANSWER_BYTES: usize = 16 << 20;
/// Code and tables of the server.
const PROGRAM_BYTES: u64 = 12 << 20;
/// Records of ended jobs, without their pictures.
pub const ENDED_JOBS: usize = 128;
/// Bound for a job without pictures: its settings, error and steps.
const JOB_BYTES: u64 = 48 << 10;
/// Text chunks and other overhead of a picture's file.
const PICTURE_OVERHEAD_BYTES: u64 = 64 << 10;

/// Default of [`Options::keep_bytes`].
pub const DEFAULT_KEEP_BYTES: u64 = 16 << 20;
/// Least [`Options::keep_bytes`].
pub const MIN_KEEP_BYTES: u64 = 1 << 20;

/// Bounds of the memory of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Peak of the largest plan.
    pub plan_bytes: u64,
    /// Connections with their buffers.
    pub connections_bytes: u64,
    /// Bodies that are read, and pictures that are decoded.
    pub uploads_bytes: u64,
    /// Requests that wait, with their decoded pictures, and records of ended ones.
    pub queue_bytes: u64,
    /// Pictures that are done.
    pub pictures_bytes: u64,
    /// Answers that are sent.
    pub answers_bytes: u64,
    /// Code and tables.
    pub program_bytes: u64,
    /// Bound of the file of one picture of the largest size.
    pub picture_bytes: u64,
}

impl Account {
    /// Errors: `Budget`.
    pub fn of(options: &Options, models: &Models) -> Result<Account, ServeError> {
        let sizes = || models.all().iter().flat_map(|model| &model.sizes);
        let plan_bytes = sizes().map(|s| s.planned.peak_bytes).max().unwrap_or(0);
        let pixels = sizes().map(|size| size.size.pixels()).max().unwrap_or(0);
        // A picture to begin with, and a mask, 3 bytes a pixel each.
        let decoded_bytes = match models.all().iter().any(|model| model.has_encoder) {
            true => pixels * 6,
            false => 0,
        };
        let order_bytes = JOB_BYTES + decoded_bytes;
        let picture_bytes = picture_bytes(pixels);
        let large_bytes = 2 * BODY_BYTES as u64 + DECODING_BYTES + pixels * 16;
        let account = Account {
            plan_bytes,
            connections_bytes: CONNECTIONS as u64 * CONNECTION_BYTES,
            uploads_bytes: LARGE_BODIES as u64 * large_bytes
                + (SMALL_BODIES * 2 * SMALL_BODY_BYTES) as u64,
            // One more is being made.
            queue_bytes: (options.queue as u64 + 1) * order_bytes + ENDED_JOBS as u64 * JOB_BYTES,
            // At least one is kept while the next is made, with a preview.
            pictures_bytes: options.keep_bytes.max(3 * picture_bytes),
            answers_bytes: ANSWER_BYTES as u64,
            program_bytes: PROGRAM_BYTES,
            picture_bytes,
        };
        match options.budget_bytes {
            Some(budget_bytes) if account.total_bytes() > budget_bytes => {
                let server_bytes = account.server_bytes();
                Err(ServeError::Budget { plan_bytes, server_bytes, budget_bytes })
            }
            _ => Ok(account),
        }
    }

    /// Bound of everything beside the plan.
    pub fn server_bytes(&self) -> u64 {
        self.connections_bytes
            + self.uploads_bytes
            + self.queue_bytes
            + self.pictures_bytes
            + self.answers_bytes
            + self.program_bytes
    }

    /// Bound of the process.
    pub fn total_bytes(&self) -> u64 {
        self.plan_bytes + self.server_bytes()
    }

    /// The parts beside the plan, with names.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("connections", self.connections_bytes),
            ("uploads", self.uploads_bytes),
            ("queue", self.queue_bytes),
            ("pictures", self.pictures_bytes),
            ("answers", self.answers_bytes),
            ("program", self.program_bytes),
        ]
    }

    /// The line that is printed at the start.
    pub fn line(&self, models: &Models) -> String {
        let parts = self.parts().map(|(name, bytes)| format!("{name} {}", mib(bytes))).join(", ");
        let of = if models.all().len() > 1 { "the largest of the plans" } else { "the plan" };
        format!(
            "memory: at most {} = {} for {of} + {} for the server ({parts})",
            mib(self.total_bytes()),
            mib(self.plan_bytes),
            mib(self.server_bytes())
        )
    }
}

/// Bound of the file of a picture. Deflate adds less than a thousandth to what it cannot pack.
pub fn picture_bytes(pixels: u64) -> u64 {
    pixels * 3 + pixels / 64 + PICTURE_OVERHEAD_BYTES
}

/// Bound of the file of a picture of a size.
pub fn picture_bytes_of(size: Size) -> u64 {
    picture_bytes(size.pixels())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
