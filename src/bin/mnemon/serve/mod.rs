//! `mnemon serve`: live streams of a model over the network.

mod metrics;
mod registry;
mod routes;
mod rows;
mod socket;

use crate::options::DeviceOptions;
use crate::summary::ModelOptions;
use crate::tune_memory::MemoryOptions;
use axum::Extension;
use clap::Args;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::nn::WorkingMemory;
use mnemon::streams::{StreamOptions, Streams};
use routes::{App, Connection, Limits};
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal;
use tokio::sync::{Semaphore, mpsc, watch};

const EXAMPLES: &str = "\
Examples:
  mnemon serve model.keras
  curl -s localhost:8080/v1/run --json '{\"x\": [[0.1, 0.2], [0.3, 0.4]]}'

Every answer that a client has is of steps that were run once and in order. A stream is opened with POST /v1/streams, and goes on
with each POST /v1/streams/ID or message of the WebSocket /v1/streams/ID/ws; /v1/ws is a stream that lasts as long as its
connection. Bodies are JSON, {\"x\": [[...], ...]} or {\"x\": [...]} of integers, or 32-bit little-endian values as
application/octet-stream. GET /openapi.json describes all of it; GET /metrics is for Prometheus; GET /health says whether it runs.

SIGTERM or Ctrl-C stops it: what was read is answered, and streams are closed.";

/// Serve a model to live streams over HTTP and WebSocket
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,

    /// Where to listen; others than this machine are let in only where this says so
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// What clients must send as `Authorization: Bearer TOKEN` [default: nothing]
    #[arg(long, env = "MNEMON_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,

    /// Streams that may be open at a time
    #[arg(long, value_name = "N", default_value_t = 1024)]
    streams: usize,

    /// Connections that may be open at a time; more wait
    #[arg(long, value_name = "N", default_value_t = 2048)]
    connections: usize,

    /// The largest body or message
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    body: usize,

    /// How long a request may take to arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,

    /// How long a stream may be idle before it is closed
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0, value_parser = seconds)]
    idle: f64,

    /// How long a batch may take: an answer takes at most about two of them while the device keeps up
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10.0, value_parser = seconds)]
    bound: f64,

    /// Which output to give, if not the model's first
    #[arg(long, value_name = "NAME")]
    output: Option<String>,

    #[command(flatten)]
    memory: MemoryOptions,

    #[command(flatten)]
    device: DeviceOptions,
}

/// A time that is neither negative nor for ever.
fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        _ => Err(format!("expected a number above 0 and up to 1000000, got `{text}`")),
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut imported = arguments.model.read(None)?;
    if let Some(window) = arguments.memory.window() {
        let memory = WorkingMemory::of(window, imported.network.memory(), imported.memory.as_ref());
        imported.network = imported.network.with_memory(Some(memory))?;
    }
    let options = StreamOptions {
        streams: arguments.streams,
        bound: Duration::from_secs_f64(arguments.bound / 1e3),
        output: arguments.output.clone(),
        ..StreamOptions::default()
    };
    if arguments.token.as_deref() == Some("") || arguments.connections == 0 || arguments.body == 0 {
        return Err(Error::new(
            ErrorKind::Argument,
            "serve: a token must not be empty, nor --connections and --body 0",
        ));
    }
    let streams = Streams::open(&arguments.device.open()?, &imported.network, imported.parameters, options)?;
    let limits = Limits {
        body: arguments.body,
        timeout: Duration::from_secs_f64(arguments.timeout),
        idle: Duration::from_secs_f64(arguments.idle),
    };
    let title = arguments.model.model.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let failed = |e: std::io::Error| Error::new(ErrorKind::Device, format!("serve: {e}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(serve(arguments, title, streams, limits))?;
    Ok(ExitCode::SUCCESS)
}

/// Serves until a signal comes, and then until all that was read is answered.
async fn serve(arguments: &Arguments, title: String, streams: Streams, limits: Limits) -> Result<()> {
    let address = arguments.listen;
    let cannot = |e: std::io::Error| Error::new(ErrorKind::Device, format!("serve: cannot listen on {address}: {e}"));
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    if !address.ip().is_loopback() && arguments.token.is_none() {
        log::warn!("serve: {address} is open to everyone who reaches it; --token asks for a token");
    }
    let (stop, stopping) = watch::channel(false);
    // Every connection has one end until it ends, and its socket with it, so that the other hears when all have.
    let (theirs, mut alive) = mpsc::channel::<()>(1);
    // A server goes on where nobody reads what it says.
    let _ = writeln!(std::io::stdout(), "serving {title} on http://{address}, {}", streams.device());
    let app = Arc::new(App::new(title, streams, limits, arguments.token.clone(), stopping));
    let sweeper = tokio::spawn(Arc::clone(&app).close_idle());
    let router = routes::router(Arc::clone(&app));
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.timeout);
    let permits = Arc::new(Semaphore::new(arguments.connections));
    let mut signal = std::pin::pin!(stopped());
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut signal => break,
        };
        match accepted {
            Ok((connection, _)) => {
                let held = Connection::new(permit, theirs.clone());
                let service = TowerToHyperService::new(router.clone().layer(Extension(Arc::clone(&held))));
                let connection = builder.serve_connection(TokioIo::new(connection), service).with_upgrades();
                let stopping = app.stopping();
                tokio::spawn(async move {
                    let mut connection = std::pin::pin!(connection);
                    let done = tokio::select! {
                        done = connection.as_mut() => done,
                        () = stop_comes(stopping) => {
                            // What it has begun to answer it answers.
                            connection.as_mut().graceful_shutdown();
                            connection.await
                        }
                    };
                    if let Err(error) = done {
                        log::debug!("serve: a connection has failed: {error}");
                    }
                    drop(held);
                });
            }
            Err(error) => {
                // As where there are too many files open: what runs goes on.
                log::warn!("serve: a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    log::info!("serve: stopping");
    drop(listener);
    let _ = stop.send(true);
    sweeper.abort();
    drop(theirs);
    // Requests come within their time; whoever does not read an answer cannot hold the server for ever.
    if tokio::time::timeout(2 * limits.timeout, alive.recv()).await.is_err() {
        log::warn!("serve: clients have not read their answers; their connections are cut");
    }
    app.finish().await;
    Ok(())
}

/// Comes back when the server stops.
async fn stop_comes(mut stopping: watch::Receiver<bool>) {
    // Where nobody can say so any more it does, too.
    drop(stopping.wait_for(|stops| *stops).await);
}

/// Comes back when the process is asked to stop.
async fn stopped() {
    let interrupt = async {
        if let Err(error) = signal::ctrl_c().await {
            log::warn!("serve: Ctrl-C is not heard: {error}");
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match signal::unix::signal(signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(error) => {
                log::warn!("serve: SIGTERM is not heard: {error}");
                std::future::pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
