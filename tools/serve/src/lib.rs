//! The HTTP server of `kiln serve`: a page, and the interfaces of other programs.
//!
//! One thread (`engine`) has the session and makes one picture after the other. Another runs all
//! connections (`listen`): each request is checked (`guard`), read within limits (`upload`),
//! resolved to an order for a bundle (`order`, `models`) and put into a bounded queue (`queue`). The
//! interfaces are in `api`, the page in `page`.
//!
//! **Invariant**: memory stays within the sum that is printed at the start. Every part of it has a
//! bound in `account`. **Invariant**: a client names no file.
#![forbid(unsafe_code)]

mod account;
mod api;
mod engine;
mod error;
mod guard;
mod job;
mod listen;
mod models;
mod order;
mod page;
mod queue;
mod upload;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_bundle::sign::PublicKey;
use kiln_runtime::SessionOptions;

pub use account::{DEFAULT_KEEP_BYTES, MIN_KEEP_BYTES};
pub use error::ServeError;
pub use guard::MIN_TOKEN_CHARS;

use api::App;
use engine::Engine;
use guard::Guard;
use models::Models;
use queue::Queue;

/// How a server runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Compiled models. The first is loaded at the start.
    pub bundles: Vec<PathBuf>,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Secret of the clients. Needed for an address that is not loopback.
    pub token: Option<String>,
    /// Names under which clients reach the server, beside IP addresses and `localhost`.
    pub names: Vec<String>,
    /// Most requests that wait.
    pub queue: usize,
    /// Memory for pictures that are done.
    pub keep_bytes: u64,
    /// Largest sum of plan and server that is accepted; `None` accepts any.
    pub budget_bytes: Option<u64>,
    /// Who must have signed the bundles.
    pub trust: Option<PublicKey>,
    /// How bundles are loaded.
    pub session: SessionOptions,
}

/// Longest wait for the picture that is being made when the server is stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the process is told to stop by SIGINT or SIGTERM.
///
/// `tell` receives lines for the person who started it, and `load` the progress of kernels.
/// Errors: those of opening and loading the first bundle; `Token`, `Listen`, `Budget`.
pub fn serve(
    options: Options,
    tell: &dyn Fn(&str),
    load: impl FnMut(usize, usize) + Send + 'static,
) -> Result<(), ServeError> {
    let guard = Guard::new(&options)?;
    let models = Arc::new(Models::open(&options.bundles, options.trust)?);
    let account = account::Account::of(&options, &models)?;
    let cannot = |source| ServeError::Listen { address: options.listen, source };
    let listener = TcpListener::bind(options.listen).map_err(cannot)?;
    listener.set_nonblocking(true).map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(ServeError::Runtime)?;
    let queue = Arc::new(Queue::new(options.queue, account.clone()));
    runtime.block_on(async {
        let mut stop = listen::Stop::listen().map_err(ServeError::Runtime)?;
        let engine = Engine::start(&models, &queue, options.session, load)?;
        tokio::select! {
            loaded = engine.loaded => loaded.unwrap_or(Err(ServeError::Engine))?,
            () = stop.asked() => return Ok(()),
        }
        let app = Arc::new(App::new(models, Arc::clone(&queue), guard, account));
        tell(&app.account.line(&app.models));
        tell(&app.guard.line(address));
        listen::run(listener, api::router(&app), &app, &mut stop)
            .await
            .map_err(ServeError::Runtime)?;
        let ended = tokio::time::timeout(STOP_TIMEOUT, engine.ended);
        tokio::select! {
            _ = ended => {}
            () = stop.asked() => {}
        }
        Ok(())
    })
}
