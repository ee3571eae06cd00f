//! What is served: routes, who may use them, and what is said where something is refused.

use super::metrics::{self, Requests};
use super::registry::{Held, Registry};
use super::rows::{BINARY, Format, read, write};
use super::socket::converse;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use mnemon::error::{Error, ErrorKind};
use mnemon::io;
use mnemon::streams::{StreamState, Streams};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

/// What a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub body: usize,
    pub timeout: Duration,
    pub idle: Duration,
}

/// What all requests share.
pub struct App {
    title: String,
    streams: Mutex<Option<Arc<Streams>>>,
    pub limits: Limits,
    token: Option<String>,
    registry: Registry,
    requests: Requests,
    stopping: watch::Receiver<bool>,
}

/// What a connection holds until it ends, or the socket that it has become: a place among those that may be open, and one end of what
/// tells the server that all have ended.
#[derive(Debug)]
pub struct Connection {
    _permit: OwnedSemaphorePermit,
    _alive: mpsc::Sender<()>,
}

impl Connection {
    pub fn new(permit: OwnedSemaphorePermit, alive: mpsc::Sender<()>) -> Arc<Self> {
        Arc::new(Self { _permit: permit, _alive: alive })
    }
}

/// Why a request is not answered as it was meant.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, message: String) -> Self {
        Self { status, message }
    }

    pub fn json(&self) -> Value {
        json!({ "error": self.message })
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::Shape | ErrorKind::Argument | ErrorKind::Unsupported | ErrorKind::Data | ErrorKind::File => {
                StatusCode::BAD_REQUEST
            }
            ErrorKind::Memory | ErrorKind::Device => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.json())).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

type Answer = Result<Response, Refusal>;

impl App {
    pub fn new(
        title: String,
        streams: Streams,
        limits: Limits,
        token: Option<String>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let streams = Mutex::new(Some(Arc::new(streams)));
        let (registry, requests) = (Registry::default(), Requests::default());
        Self { title, streams, limits, token, registry, requests, stopping }
    }

    /// The streams, until they are finished.
    pub fn streams(&self) -> Result<Arc<Streams>, Refusal> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone();
        streams.ok_or_else(|| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the server stops".to_string()))
    }

    /// Changes to true when the server stops.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.clone()
    }

    /// Closes streams that nobody uses, again and again.
    pub async fn close_idle(self: Arc<Self>) {
        let every = (self.limits.idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(10));
        loop {
            tokio::time::sleep(every).await;
            self.registry.close_idle(self.limits.idle);
        }
    }

    /// Runs what waits and closes all streams.
    pub async fn finish(&self) {
        self.registry.clear();
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(streams) = streams.and_then(Arc::into_inner)
            && let Err(error) = tokio::task::spawn_blocking(|| streams.finish()).await
        {
            log::error!("serve: the streams have not finished: {error}");
        }
    }

    fn is_allowed(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let given = headers.get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        // As long for a wrong one as for the right one, whatever they have in common.
        given.is_some_and(|given| {
            given.len() == token.len() && given.iter().zip(token.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
        })
    }

    /// The body of a request, within the limits.
    async fn body(&self, body: Body) -> Result<Bytes, Refusal> {
        self.body_within(body, self.limits.body).await
    }

    /// The body of a request, of at most so many bytes.
    async fn body_within(&self, body: Body, limit: usize) -> Result<Bytes, Refusal> {
        match tokio::time::timeout(self.limits.timeout, to_bytes(body, limit)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) if is_too_long(&error) => {
                Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("expected at most {limit} bytes")))
            }
            Ok(Err(error)) => Err(Refusal::new(StatusCode::BAD_REQUEST, format!("the body ends early: {error}"))),
            Err(_) => Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("expected the body within {:?}", self.limits.timeout),
            )),
        }
    }
}

fn is_too_long(error: &axum::Error) -> bool {
    std::iter::successors(std::error::Error::source(error), |e| e.source())
        .any(|e| e.to_string().contains("length limit"))
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(prometheus))
        .route("/openapi.json", get(openapi))
        .route("/v1/model", get(model))
        .route("/v1/run", post(run))
        .route("/v1/ws", get(new_socket))
        .route("/v1/streams", post(open))
        .route("/v1/streams/{id}", post(push).delete(close))
        .route("/v1/streams/{id}/state", get(state))
        .route("/v1/streams/{id}/fork", post(fork))
        .route("/v1/streams/{id}/ws", get(socket))
        .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "there is nothing here".to_string()) })
        .layer(from_fn_with_state(Arc::clone(&app), admit))
        .with_state(app)
}

/// Lets in who may come, and counts.
async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let response = if request.uri().path() == "/health" || app.is_allowed(request.headers()) {
        next.run(request).await
    } else {
        let why = "expected the server's token as `Authorization: Bearer TOKEN`".to_string();
        Refusal::new(StatusCode::UNAUTHORIZED, why).into_response()
    };
    app.requests.note(response.status().as_u16());
    response
}

async fn health(State(app): State<Arc<App>>) -> Answer {
    app.streams()?.check()?;
    Ok(axum::Json(json!({ "status": "ok" })).into_response())
}

async fn prometheus(State(app): State<Arc<App>>) -> Answer {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, metrics::text(&app.streams()?.stats(), &app.requests)).into_response())
}

async fn openapi() -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, include_str!("openapi.json")).into_response()
}

async fn model(State(app): State<Arc<App>>) -> Answer {
    let streams = app.streams()?;
    let (input, output) = (streams.input_features(), streams.output_features());
    let answer = json!({ "model": app.title, "device": streams.device(), "input": input, "output": output });
    Ok(axum::Json(answer).into_response())
}

/// Runs the steps of a request on `held`.
async fn answer(app: &App, held: Arc<Held>, headers: &HeaderMap, body: Body) -> Answer {
    let format = Format::of(headers)?;
    let x = read(&app.body(body).await?, format, app.streams()?.input_features())?;
    let y = write(&held.exchange(x).await?, format)?;
    let kind = if format == Format::Json { "application/json" } else { BINARY };
    Ok(([(header::CONTENT_TYPE, kind)], y).into_response())
}

async fn run(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Answer {
    let held = Held::new(app.streams()?.stream()?);
    answer(&app, held, &headers, body).await
}

async fn push(State(app): State<Arc<App>>, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Answer {
    let held = app.registry.find(&id)?;
    answer(&app, held, &headers, body).await
}

async fn open(State(app): State<Arc<App>>, body: Body) -> Answer {
    let streams = app.streams()?;
    // A state that was given out is taken back, however large what a stream remembers is.
    let bytes = app.body_within(body, app.limits.body.max(streams.state_bytes())).await?;
    let stream = if bytes.is_empty() {
        streams.stream()?
    } else {
        let state = StreamState::from_tensors(io::tensors_from_bytes(&bytes)?)?;
        let restored = tokio::task::spawn_blocking(move || streams.restore(&state));
        super::registry::finished(restored).await?
    };
    named(&app, stream)
}

/// Answers with the name of a new stream.
fn named(app: &App, stream: mnemon::streams::Stream) -> Answer {
    let id = app.registry.add(stream)?;
    Ok((StatusCode::CREATED, axum::Json(json!({ "id": id }))).into_response())
}

async fn close(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    app.registry.remove(&id)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn state(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    let state = app.registry.find(&id)?.block(mnemon::streams::Stream::save).await?;
    let bytes = io::tensors_to_bytes(&state.into_tensors()?)?;
    Ok(([(header::CONTENT_TYPE, BINARY)], bytes).into_response())
}

async fn fork(State(app): State<Arc<App>>, Path(id): Path<String>) -> Answer {
    let stream = app.registry.find(&id)?.block(mnemon::streams::Stream::fork).await?;
    named(&app, stream)
}

type Connected = Extension<Arc<Connection>>;

async fn new_socket(State(app): State<Arc<App>>, connection: Connected, upgrade: WebSocketUpgrade) -> Answer {
    let held = Held::new(app.streams()?.stream()?);
    Ok(upgraded(app, held, connection, upgrade))
}

async fn socket(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    connection: Connected,
    upgrade: WebSocketUpgrade,
) -> Answer {
    let held = app.registry.find(&id)?;
    Ok(upgraded(app, held, connection, upgrade))
}

fn upgraded(app: Arc<App>, held: Arc<Held>, connection: Connected, upgrade: WebSocketUpgrade) -> Response {
    let upgrade = upgrade.max_message_size(app.limits.body).max_frame_size(app.limits.body);
    upgrade.on_upgrade(move |socket| async move {
        converse(app, held, socket).await;
        drop(connection);
    })
}
