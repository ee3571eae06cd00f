//! The threads of a run: those of the pool that it runs on, or the caller's alone.

use rayon::prelude::*;
use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` on this thread, and all that is spread over threads there: what is shorter than waking another up.
pub(super) fn alone<R>(work: impl FnOnce() -> R) -> R {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _before = Before(ALONE.replace(true));
    work()
}

/// How many there are.
pub(super) fn count() -> usize {
    if ALONE.get() { 1 } else { rayon::current_num_threads() }
}

/// Calls `work` for each of `tasks`, on all threads.
pub(super) fn each<T: Send>(tasks: impl Iterator<Item = T>, work: impl Fn(T) + Sync + Send) {
    if count() == 1 {
        return tasks.for_each(work);
    }
    let tasks: Vec<T> = tasks.collect();
    match tasks.len() {
        0 | 1 => tasks.into_iter().for_each(work),
        // In their order, so that a thread that is done takes what others have not begun.
        n => {
            let tasks = Mutex::new(tasks.into_iter());
            let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
            (0..count().min(n)).into_par_iter().with_max_len(1).for_each(|_| {
                while let Some(task) = next() {
                    work(task);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{ThreadId, current};

    fn on(tasks: usize) -> Vec<ThreadId> {
        let mut ids = vec![current().id(); tasks];
        each(ids.iter_mut(), |id| *id = current().id());
        ids
    }

    #[test]
    fn what_is_done_alone_is_done_here_and_then_no_longer() {
        let here = current().id();
        assert_eq!(alone(|| (count(), on(50))), (1, vec![here; 50]));
        let failed = std::panic::catch_unwind(|| alone(|| panic!("as planned")));
        assert!(failed.is_err());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(count), 3);
        assert!(pool.install(|| on(50)).iter().all(|id| *id != here));
        assert_eq!(count(), rayon::current_num_threads());
    }
}
