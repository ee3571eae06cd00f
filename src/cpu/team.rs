//! Threads that share the units of a layer and meet at each step.
//!
//! Rows that several threads write, each its own columns, are here and where they are used the `unsafe` of this executor, beside
//! [`super::prefetch`].

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Looks at the others before a thread sleeps: a meeting takes less than a microsecond and looks some twenty, so that only one that the
/// system has taken the processor away from is waited for longer. It gets the sleeper's, where a thread that kept looking would
/// keep it off until its turn comes.
const PATIENCE: u32 = 1000;

/// Where a number of threads meet, again and again.
pub(super) struct Meeting {
    threads: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
    /// How many sleep; changed under the lock.
    asleep: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Meeting {
    pub fn new(threads: usize) -> Self {
        Self {
            threads,
            arrived: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            lock: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Returns once all threads have come; what each wrote before, all can read after. Where one has failed the others fail
    /// too, rather than wait for ever.
    pub fn wait(&self) {
        if self.threads == 1 {
            return;
        }
        let round = self.round.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            // In one order with the count of sleepers: either it is seen here, or who goes to sleep sees the round.
            self.round.store(round + 1, Ordering::SeqCst);
            return self.wake();
        }
        let is_over = || {
            assert!(!self.broken.load(Ordering::SeqCst), "another thread of the layer failed");
            self.round.load(Ordering::SeqCst) != round
        };
        for _ in 0..PATIENCE {
            if is_over() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while !is_over() {
            held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes who sleeps.
    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock());
            self.changed.notify_all();
        }
    }

    /// Runs `work(number)` on every thread of the pool that this is called on, of which there are as many as meet.
    pub fn gather(&self, work: impl Fn(usize) + Sync) {
        struct Watch<'a>(&'a Meeting);
        impl Drop for Watch<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.broken.store(true, Ordering::SeqCst);
                    self.0.wake();
                }
            }
        }
        if self.threads == 1 {
            return work(0);
        }
        rayon::broadcast(|thread| {
            let _watch = Watch(self);
            work(thread.index());
        });
    }
}

/// Values of which threads write their own places.
pub(super) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: it gives access to floats, which any thread may have, through the two functions below, whose callers see to it that
// no thread reads or writes what another writes between two meetings.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(values: &'a mut [f32]) -> Self {
        Self { data: values.as_mut_ptr(), len: values.len(), of: PhantomData }
    }

    fn place(&self, range: &Range<usize>) -> *mut f32 {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: within the slice that it was made of, or one past its end.
        unsafe { self.data.add(range.start) }
    }

    /// Values to read.
    ///
    /// # Safety
    ///
    /// While they are borrowed no thread writes any of them.
    #[inline(always)]
    pub unsafe fn read(&self, range: Range<usize>) -> &[f32] {
        let data = self.place(&range);
        // SAFETY: of a slice that nobody else uses while this exists; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(data, range.len()) }
    }

    /// Values to write.
    ///
    /// # Safety
    ///
    /// While they are borrowed nobody else reads or writes any of them.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the caller sees to it that places differ")]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [f32] {
        let data = self.place(&range);
        // SAFETY: of a slice that nobody else uses while this exists; the caller keeps others away.
        unsafe { std::slice::from_raw_parts_mut(data, range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each thread adds its neighbour's number of the round before: one that came too soon, or saw old values, shows.
    #[test]
    fn threads_see_what_others_wrote_before_they_met() {
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let rounds = if cfg!(miri) { 20 } else { 2000 };
            let mut values = vec![0.0; 2 * threads];
            let shared = Shared::new(&mut values);
            let meeting = Meeting::new(threads);
            pool.install(|| {
                meeting.gather(|number| {
                    for round in 0..rounds {
                        let (from, to) = (round % 2 * threads, (round + 1) % 2 * threads);
                        let neighbour = from + (number + 1) % threads;
                        // SAFETY: a thread writes its own number of this round's half and reads one of the other half.
                        let next = unsafe { shared.read(neighbour..neighbour + 1)[0] } + 1.0;
                        // SAFETY: as above.
                        unsafe { shared.write(to + number..to + number + 1)[0] = next };
                        meeting.wait();
                    }
                });
            });
            assert!(values[rounds % 2 * threads..][..threads].iter().all(|&v| v == rounds as f32), "{values:?}");
        }
    }

    /// One that comes late finds the others asleep.
    #[test]
    fn who_waits_for_long_sleeps_and_is_woken() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let (meeting, late) = (Meeting::new(3), std::time::Duration::from_millis(if cfg!(miri) { 1 } else { 20 }));
        let met = AtomicUsize::new(0);
        pool.install(|| {
            meeting.gather(|number| {
                for round in 0..3 {
                    if number == round {
                        std::thread::sleep(late);
                    }
                    met.fetch_add(1, Ordering::Relaxed);
                    meeting.wait();
                    assert!(met.load(Ordering::Relaxed) >= 3 * (round + 1));
                }
            });
        });
        assert_eq!((met.into_inner(), meeting.asleep.into_inner()), (9, 0));
    }

    #[test]
    fn where_one_thread_fails_the_others_do_not_wait() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let meeting = Meeting::new(2);
        let run = || {
            pool.install(|| {
                meeting.gather(|number| {
                    if number == 0 {
                        // The other is asleep by then.
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        panic!("as planned");
                    }
                    meeting.wait();
                });
            });
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    }

    #[test]
    #[should_panic(expected = "3..9 of 8")]
    fn places_past_the_end_are_refused() {
        let mut values = vec![0.0; 8];
        // SAFETY: nobody else has them.
        unsafe { Shared::new(&mut values).read(3..9) };
    }
}
