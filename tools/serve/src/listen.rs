//! Connections: how many, how long they may be silent, and how they end.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;

use crate::account::{CONNECTION_BUFFER_BYTES, CONNECTIONS};
use crate::api::Shared;

/// Longest time for the head of a request, from the connection or from the last answer on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time in which a client takes nothing of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time for the answers that are being sent when the server is stopped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Silence after which the system asks whether the other end is still there.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Interval at which abandoned jobs are looked for.
const TICK: Duration = Duration::from_secs(1);
/// Pause after the system has refused a connection.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// The answer of a server that has no place for a connection.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 2\r\n\
    connection: close\r\n\r\n";

/// Signals that stop the server.
pub struct Stop {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    /// Begins to listen, within a runtime.
    pub fn listen() -> io::Result<Stop> {
        #[cfg(unix)]
        let terminate = {
            use tokio::signal::unix::{SignalKind, signal};
            signal(SignalKind::terminate())?
        };
        Ok(Stop {
            #[cfg(unix)]
            terminate,
        })
    }

    /// Waits for SIGINT or SIGTERM.
    pub async fn asked(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// Serves connections until `stop`; then no more are taken, jobs are cancelled, and answers that are
/// being sent have [`CLOSE_TIMEOUT`].
pub async fn run(
    listener: TcpListener,
    router: Router,
    app: &Shared,
    stop: &mut Stop,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (close, _) = watch::channel(false);
    let mut tick = tokio::time::interval(TICK);
    loop {
        let accepted = tokio::select! {
            () = stop.asked() => break,
            _ = tick.tick() => {
                app.queue.cancel_abandoned();
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptors are left, or the client has gone already.
            tokio::time::sleep(REFUSED_PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tokio::spawn(refuse(stream));
            continue;
        };
        let (router, app, closed) = (router.clone(), Arc::clone(app), close.subscribe());
        tokio::spawn(async move {
            app.connection(1);
            serve(stream, router, closed).await;
            app.connection(-1);
            drop(place);
        });
    }
    drop(listener);
    app.queue.close();
    close.send_replace(true);
    let _ = timeout(CLOSE_TIMEOUT, places.acquire_many(CONNECTIONS as u32)).await;
    Ok(())
}

/// Tells a client that there is no place for it.
async fn refuse(mut stream: TcpStream) {
    // The client may have gone.
    let _ = timeout(Duration::from_secs(1), stream.write_all(FULL)).await;
}

async fn serve(stream: TcpStream, router: Router, mut closed: watch::Receiver<bool>) {
    // A socket without these options works too.
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(CONNECTION_BUFFER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = closed.wait_for(|closed| *closed) => {}
    }
    connection.as_mut().graceful_shutdown();
    // Errors are the client's.
    let _ = connection.await;
}
