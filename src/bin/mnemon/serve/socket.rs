//! Streams over WebSocket: each message is steps, each answer their outputs.

use super::registry::Held;
use super::routes::{App, Refusal};
use super::rows::{Format, read, write};
use super::stop_comes;
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use std::sync::Arc;
use std::time::Duration;

/// Answers messages until the client goes, is idle for too long, or the server stops. What was read is answered first.
pub async fn converse(app: Arc<App>, held: Arc<Held>, mut socket: WebSocket) {
    loop {
        let message = tokio::select! {
            biased;
            message = tokio::time::timeout(app.limits.idle, socket.recv()) => message,
            () = stop_comes(app.stopping()) => return close(socket, close_code::AWAY, "the server stops").await,
        };
        let message = match message {
            Err(_) => return close(socket, close_code::POLICY, "the stream was idle").await,
            // The client has gone, or has sent what no socket does: it is told by the protocol itself.
            Ok(None | Some(Err(_))) => return,
            Ok(Some(Ok(message))) => message,
        };
        let (bytes, format) = match message {
            Message::Text(text) => (Bytes::from(text), Format::Json),
            Message::Binary(bytes) => (bytes, Format::Binary),
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        let answer = match answer(&app, &held, &bytes, format).await {
            Ok(bytes) if format == Format::Binary => Message::Binary(bytes.into()),
            Ok(bytes) => Message::Text(String::from_utf8_lossy(&bytes).into_owned().into()),
            // Nothing of it was run, or the device has gone: either way the client hears why, and may go on.
            Err(refusal) => Message::Text(refusal.json().to_string().into()),
        };
        if socket.send(answer).await.is_err() {
            return;
        }
    }
}

async fn answer(app: &App, held: &Arc<Held>, bytes: &Bytes, format: Format) -> Result<Vec<u8>, Refusal> {
    let x = read(bytes, format, app.streams()?.input_features())?;
    write(&Arc::clone(held).exchange(x).await?, format)
}

async fn close(mut socket: WebSocket, code: u16, reason: &'static str) {
    // One that does not listen any more is closed all the same.
    if socket.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await.is_err() {
        return;
    }
    // What it has sent meanwhile is read and dropped: a connection that is cut before would take the reason with it.
    let rest = async { while let Some(Ok(_)) = socket.recv().await {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), rest).await;
}
