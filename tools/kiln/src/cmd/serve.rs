//! `kiln serve`: a page for a browser, and the interfaces of other programs.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use kiln_bundle::sign::PublicKey;
use kiln_runtime::cli::CacheArgs;
use kiln_runtime::os::library;
use kiln_runtime::{ExecutorOptions, RuntimeError, SessionOptions};
use kiln_serve::{DEFAULT_KEEP_BYTES, MIN_KEEP_BYTES, Options, ServeError};

use crate::size;

/// Serve a page for a browser, and the HTTP interfaces of other programs.
///
/// One picture is made at a time, within the plan's memory. Other requests wait in a queue. The
/// interfaces are those of AUTOMATIC1111 (/sdapi/v1), of OpenAI (/v1/images) and Kiln's own
/// (/v1/pictures); /openapi.json describes them. Ctrl-C or SIGTERM stops the server.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln serve emoji.kiln                     # then open http://127.0.0.1:7860
  kiln serve sd21.kiln emoji.kiln --budget 1200MiB --queue 4
  KILN_TOKEN=$(openssl rand -hex 16) kiln serve sd21.kiln --listen 0.0.0.0:7860")]
pub struct Args {
    /// Compiled models. The first is loaded at the start; one is loaded at a time
    #[arg(value_name = "FILE.kiln", required = true)]
    bundles: Vec<PathBuf>,
    /// Address and port to listen on. Port 0 takes a free one. Another address than this machine's
    /// own (127.0.0.1, [::1]) needs --token
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7860")]
    listen: SocketAddr,
    /// Secret that clients must send, of at least 16 characters: as a bearer token, as the password
    /// of basic authentication, or on the page's sign-in. Other users see arguments: prefer the
    /// variable KILN_TOKEN
    #[arg(long)]
    token: Option<String>,
    /// Name under which clients reach the server, beside IP addresses and localhost. Can be repeated
    #[arg(long, value_name = "HOST")]
    name: Vec<String>,
    /// Most pictures that wait. Further requests are refused
    #[arg(long, value_name = "N", default_value_t = 16,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    queue: usize,
    /// Memory for pictures that are done; the oldest are forgotten [default: 16MiB]
    #[arg(long, value_name = "SIZE", value_parser = keep)]
    keep: Option<u64>,
    /// Refuse to start if the largest plan and the server may take more than this
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    budget: Option<u64>,
    /// Let the system's page cache keep weights, in memory outside the budget
    #[arg(long)]
    page_cache: bool,
    /// OpenCL device: auto, an index, or part of a name
    #[arg(long, value_name = "auto|INDEX|NAME", default_value = "auto")]
    device: String,
    /// OpenCL library. Without this option, one is searched for
    #[arg(long, value_name = "LIBRARY")]
    opencl: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
    /// Refuse bundles that this key has not signed: 64 hexadecimal digits, which kiln key prints
    #[arg(long, value_name = "KEY")]
    trust: Option<PublicKey>,
}

/// Parses a size of the memory for pictures.
fn keep(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if bytes < MIN_KEEP_BYTES => Err(format!("{text} is under 1 MiB")),
        bytes => Ok(bytes),
    }
}

/// Writes a line to standard error. A closed standard error is no failure.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Serves until the process is told to stop.
pub fn run(args: Args) -> Result<()> {
    if let Some(library) = &args.opencl {
        library::use_library(library).map_err(RuntimeError::Input)?;
    }
    let programs = args.cache.programs(&[super::prepare::NAME]);
    let page_cache = args.page_cache;
    let executor = ExecutorOptions { programs, page_cache, ..ExecutorOptions::default() };
    let variable = || std::env::var("KILN_TOKEN").ok().filter(|token| !token.is_empty());
    let options = Options {
        bundles: args.bundles,
        listen: args.listen,
        token: args.token.or_else(variable),
        names: args.name,
        queue: args.queue,
        keep_bytes: args.keep.unwrap_or(DEFAULT_KEEP_BYTES),
        budget_bytes: args.budget,
        trust: args.trust,
        session: SessionOptions { device: args.device, executor, ..SessionOptions::default() },
    };
    let bar = indicatif::ProgressBar::new(0);
    let load = move |done: usize, kernels: usize| {
        bar.set_length(kernels as u64);
        bar.set_message("compiling kernels");
        bar.set_position(done as u64);
        if done == kernels {
            bar.finish_and_clear();
        }
    };
    kiln_serve::serve(options, &tell, load).map_err(|error| match error {
        ServeError::Bundle(error) => RuntimeError::from(error).into(),
        ServeError::Session(error) => error.into(),
        error => error.into(),
    })
}
