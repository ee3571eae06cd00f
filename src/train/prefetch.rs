//! Batches that are made ready on a thread of their own while the device computes.

use crate::error::{Error, Result};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, Scope};
use std::time::{Duration, Instant};

/// Batches that may be ready and waiting.
const READY: usize = 2;

/// What another thread makes, in order.
pub(super) struct Prefetch<T> {
    made: Receiver<Result<T>>,
    waited: Duration,
}

impl<T: Send> Prefetch<T> {
    /// Begins to make `all` on a thread of `scope`. The thread ends with the last of them, or after the first error, or
    /// when nobody asks any more.
    pub(super) fn begin<'scope, I>(scope: &'scope Scope<'scope, '_>, all: I) -> Result<Self>
    where
        I: Iterator<Item = Result<T>> + Send + 'scope,
        T: 'scope,
    {
        let (work, prefetch) = Self::new(all);
        thread().spawn_scoped(scope, work).map_err(no_thread)?;
        Ok(prefetch)
    }

    /// [`Self::begin`] on a thread that nobody joins; it too ends when nobody asks any more.
    pub(super) fn spawn<I>(all: I) -> Result<Self>
    where
        I: Iterator<Item = Result<T>> + Send + 'static,
        T: 'static,
    {
        let (work, prefetch) = Self::new(all);
        thread().spawn(work).map_err(no_thread)?;
        Ok(prefetch)
    }

    fn new<I: Iterator<Item = Result<T>> + Send>(all: I) -> (impl FnOnce() + Send + use<I, T>, Self) {
        let (send, made) = sync_channel(READY);
        let work = move || {
            for one in all {
                let failed = one.is_err();
                if send.send(one).is_err() || failed {
                    break;
                }
            }
        };
        (work, Self { made, waited: Duration::ZERO })
    }

    /// The next, once it is ready; `None` after the last.
    pub(super) fn next(&mut self) -> Option<Result<T>> {
        let begin = Instant::now();
        let next = self.made.recv().ok();
        self.waited += begin.elapsed();
        next
    }

    /// How long [`Self::next`] has waited in all.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }
}

fn thread() -> Builder {
    Builder::new().name("mnemon-batches".to_string())
}

fn no_thread(error: std::io::Error) -> Error {
    Error::device(format!("batches: cannot start a thread: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_come_in_order_and_an_error_ends_them() {
        std::thread::scope(|scope| {
            let mut all = Prefetch::begin(scope, (0..100).map(Ok)).unwrap();
            assert_eq!(
                (0..100).map(|_| all.next().unwrap().unwrap()).collect::<Vec<i32>>(),
                (0..100).collect::<Vec<_>>()
            );
            assert!(all.next().is_none());
            let some = (0..).map(|n| if n < 3 { Ok(n) } else { Err(Error::data("the fourth")) });
            let mut some = Prefetch::begin(scope, some).unwrap();
            assert!((0..3).all(|n| some.next().unwrap().unwrap() == n));
            assert_eq!(some.next().unwrap().unwrap_err().to_string(), "the fourth");
            assert!(some.next().is_none());
            // Nobody asks for the rest.
            drop(Prefetch::begin(scope, (0..1_000_000).map(Ok)).unwrap());
        });
    }
}
