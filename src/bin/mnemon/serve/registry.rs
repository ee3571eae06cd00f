//! The streams that clients have opened, by their names.

use super::routes::Refusal;
use axum::http::StatusCode;
use mnemon::params::Tensor;
use mnemon::streams::Stream;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Mutex as Turn;

/// A stream, whose requests are answered one after the other.
pub struct Held {
    stream: Stream,
    turn: Turn<()>,
    used: Mutex<Instant>,
}

impl Held {
    pub fn new(stream: Stream) -> Arc<Self> {
        Arc::new(Self { stream, turn: Turn::new(()), used: Mutex::new(Instant::now()) })
    }

    /// Runs the steps x and gives their outputs. Once it has begun it ends, whoever still listens, so that what comes after finds
    /// the stream where it should be.
    pub async fn exchange(self: Arc<Self>, x: Tensor) -> Result<Tensor, Refusal> {
        let work = async move {
            let _turn = self.turn.lock().await;
            let steps = x.shape()[0];
            let mut outputs: Vec<Tensor> = Vec::new();
            let receive = async {
                let mut got = 0;
                while got < steps {
                    let part = self.stream.receive_async().await?;
                    if part.is_empty() {
                        // Nothing was pushed yet.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    got += part.shape()[0];
                    outputs.push(part);
                }
                Ok(())
            };
            tokio::try_join!(self.stream.push_async(&x), receive)?;
            self.touch();
            let Some(width) = outputs.first().map(|y| y.shape()[1]) else { return self.stream.try_receive() };
            let values = outputs.iter().map(Tensor::f32s).collect::<mnemon::error::Result<Vec<_>>>()?.concat();
            Tensor::new(&[steps, width], values)
        };
        finished(tokio::spawn(work)).await
    }

    /// Does `work`, which blocks, with the stream, after all requests so far.
    pub async fn block<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Stream) -> mnemon::error::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = async move {
            let _turn = self.turn.lock().await;
            self.touch();
            let held = Arc::clone(&self);
            // The inner task ends before its turn does.
            tokio::task::spawn_blocking(move || work(&held.stream)).await
        };
        match tokio::spawn(turn).await {
            Ok(Ok(done)) => Ok(done?),
            Ok(Err(error)) | Err(error) => Err(panicked(&error)),
        }
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_idle(&self, longer: Duration) -> bool {
        self.turn.try_lock().is_ok() && self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > longer
    }
}

fn panicked(error: &tokio::task::JoinError) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("a task has failed: {error}"))
}

/// What a task gives.
pub async fn finished<T>(task: tokio::task::JoinHandle<mnemon::error::Result<T>>) -> Result<T, Refusal> {
    match task.await {
        Ok(done) => Ok(done?),
        Err(error) => Err(panicked(&error)),
    }
}

/// All streams that have a name.
#[derive(Default)]
pub struct Registry {
    streams: Mutex<HashMap<String, Arc<Held>>>,
}

impl Registry {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Held>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a stream a name that nobody can guess.
    pub fn add(&self, stream: Stream) -> Result<String, Refusal> {
        let mut random = [0; 16];
        let failed = |e: getrandom::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("no name: {e}"));
        getrandom::fill(&mut random).map_err(failed)?;
        let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        self.all().insert(name.clone(), Held::new(stream));
        Ok(name)
    }

    pub fn find(&self, name: &str) -> Result<Arc<Held>, Refusal> {
        let found = self.all().get(name).cloned();
        found.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("no stream `{name}` is open")))
    }

    /// Closes a stream once the request that it runs is answered.
    pub fn remove(&self, name: &str) -> Result<(), Refusal> {
        let removed = self.all().remove(name);
        removed.map(drop).ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("no stream `{name}` is open")))
    }

    /// Closes all that nobody has used for `longer`.
    pub fn close_idle(&self, longer: Duration) {
        self.all().retain(|_, held| Arc::strong_count(held) > 1 || !held.is_idle(longer));
    }

    pub fn clear(&self) {
        self.all().clear();
    }
}
