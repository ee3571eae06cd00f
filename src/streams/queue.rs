//! What waits: inputs and outputs of each stream, which streams are ready, and who is to be woken.

use super::StreamOptions;
use super::exchange::Ticks;
use super::stats::Stats;
use super::worker::Command;
use crate::error::{Error, Result};
use crate::params::{DType, Tensor};
use crate::scheduler::Bound;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

/// Values in and out at the two ends. What was taken out is dropped from the front now and then.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    values: Vec<u32>,
    begin: usize,
}

impl Waiting {
    pub fn push(&mut self, values: &[u32]) {
        self.values.extend_from_slice(values);
    }

    /// The first `count` values, taken out by [`Self::drop_first`].
    pub fn first(&self, count: usize) -> &[u32] {
        &self.values[self.begin..self.begin + count]
    }

    pub fn drop_first(&mut self, count: usize) {
        self.begin += count;
        if self.begin == self.values.len() {
            self.values.clear();
            self.begin = 0;
        } else if self.begin > self.values.len() / 2 {
            self.values.drain(..self.begin);
            self.begin = 0;
        }
    }
}

/// A stream that is open, or closed with steps on the device.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: u64,
    /// What waits to run, the bits of floats or of integers.
    pub input: Waiting,
    /// What waits to be received.
    pub output: Vec<f32>,
    /// Steps that wait, steps of outputs that wait, steps that run, and steps that have run.
    pub waiting: usize,
    pub ready: usize,
    pub running: usize,
    pub done: u64,
    /// Whether its slot holds its state; before, it begins from nothing.
    pub has_state: bool,
    /// Whether it is in the queue of those that are served.
    pub is_queued: bool,
    pub is_closed: bool,
    /// When steps came: the number of the last one, and the time.
    pub pushes: VecDeque<(u64, Instant)>,
    /// Who waits for room, or for outputs: threads, how many, and tasks.
    changed: Arc<Condvar>,
    waits: usize,
    wakers: Vec<Waker>,
}

/// All streams, under one lock.
#[derive(Debug)]
pub(super) struct Table {
    pub entries: Vec<Option<Entry>>,
    pub free: Vec<usize>,
    /// Slots with steps to run and room for outputs, in the order in which they are served.
    pub queue: VecDeque<usize>,
    pub commands: Vec<Command>,
    pub ticks: Ticks,
    pub ids: u64,
    /// What has stopped everything, if it has.
    pub failure: Option<String>,
    /// Whether to stop once nothing waits, or now.
    pub drains: bool,
    pub stops: bool,
    pub stats: Stats,
}

/// What a stream reads and gives.
#[derive(Debug)]
pub(super) struct Signature {
    /// Values of a step, or none where it is an integer.
    pub input: Option<usize>,
    /// Values of an output.
    pub output: usize,
    pub bounds: Vec<Bound>,
    /// Whether the integer 0 stands for no step.
    pub pads: bool,
}

impl Signature {
    pub fn width(&self) -> usize {
        self.input.unwrap_or(1)
    }

    /// Refuses what is not `[steps, features]`, or `[steps]` of integers that the network knows; gives the number of steps.
    pub fn check(&self, x: &Tensor) -> Result<usize> {
        let wanted = match self.input {
            Some(features) => x.dtype() == DType::F32 && x.shape().len() == 2 && x.shape()[1] == features,
            None => x.dtype() == DType::U32 && x.shape().len() == 1,
        };
        if !wanted {
            let expected = self.input.map_or("U32 of [steps]".to_string(), |n| format!("F32 of [steps, {n}]"));
            return Err(Error::shape(format!("stream: expected {expected}, got {:?} of {:?}", x.dtype(), x.shape())));
        }
        self.bounds.iter().try_for_each(|bound| bound.check("x", x))?;
        if self.pads && x.u32s()?.contains(&0) {
            return Err(Error::data(
                "stream: 0 stands for no step in this model, and a stream has none that is left out",
            ));
        }
        Ok(x.shape()[0])
    }
}

/// What handles and the worker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub table: Mutex<Table>,
    /// Something to do for the worker, and for its helper.
    pub work: Condvar,
    pub ahead: Condvar,
    pub signature: Signature,
    pub options: StreamOptions,
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those that have something to do.
    pub fn rouse(&self, table: &Table) {
        let has_work = || table.has_tick() || table.next_command().is_some() || table.drains && table.is_done();
        if table.ticks.waits && has_work() {
            self.work.notify_one();
        }
        if table.ticks.helper_waits && (table.ticks.finished.is_some() || table.is_ahead()) {
            self.ahead.notify_one();
        }
    }

    /// Stops everything: whoever waits is woken to see why.
    pub fn fail(&self, why: String) {
        let mut table = self.lock();
        table.failure.get_or_insert(why);
        table.commands.clear();
        table.entries.iter_mut().flatten().for_each(Entry::wake);
        self.stop();
    }

    /// Wakes both workers to see that they are to end.
    pub fn stop(&self) {
        self.work.notify_all();
        self.ahead.notify_all();
    }

    /// Waits for a change of the stream `id` in `slot`.
    pub fn wait<'a>(&self, mut table: MutexGuard<'a, Table>, slot: usize, id: u64) -> Result<MutexGuard<'a, Table>> {
        let entry = table.entry(slot, id)?;
        entry.waits += 1;
        let changed = Arc::clone(&entry.changed);
        let mut table = changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        if let Ok(entry) = table.entry(slot, id) {
            entry.waits -= 1;
        }
        Ok(table)
    }
}

impl Table {
    pub fn new(streams: usize) -> Self {
        Self {
            entries: (0..streams).map(|_| None).collect(),
            // The first is taken first.
            free: (0..streams).rev().collect(),
            queue: VecDeque::new(),
            commands: Vec::new(),
            ticks: Ticks::default(),
            ids: 0,
            failure: None,
            drains: false,
            stops: false,
            stats: Stats::default(),
        }
    }

    /// A slot for another stream.
    pub fn open(&mut self) -> Result<(usize, u64)> {
        self.check()?;
        let most = self.entries.len();
        let slot = self.free.pop().ok_or_else(|| {
            Error::memory(format!("streams: {most} are open, and that is all that there may be; close one"))
        })?;
        self.ids += 1;
        self.entries[slot] = Some(Entry {
            id: self.ids,
            input: Waiting::default(),
            output: Vec::new(),
            waiting: 0,
            ready: 0,
            running: 0,
            done: 0,
            has_state: false,
            is_queued: false,
            is_closed: false,
            pushes: VecDeque::new(),
            changed: Arc::new(Condvar::new()),
            waits: 0,
            wakers: Vec::new(),
        });
        self.stats.open += 1;
        self.stats.opened += 1;
        Ok((slot, self.ids))
    }

    /// Refuses to go on after everything has stopped.
    pub fn check(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(Error::device(format!("streams: stopped: {failure}"))),
            None => Ok(()),
        }
    }

    /// The open stream `id` in `slot`.
    pub fn entry(&mut self, slot: usize, id: u64) -> Result<&mut Entry> {
        let found = self.entries.get_mut(slot).and_then(Option::as_mut).filter(|e| e.id == id && !e.is_closed);
        found.ok_or_else(|| Error::argument("stream: it is closed"))
    }

    /// Queues `slot` if it has something to run and room for what comes of it.
    pub fn enqueue(&mut self, slot: usize, outputs: usize) {
        let Some(entry) = self.entries[slot].as_mut() else { return };
        let can = entry.waiting > 0 && entry.ready < outputs && entry.running == 0;
        if can && !entry.is_queued && !entry.is_closed {
            entry.is_queued = true;
            self.queue.push_back(slot);
        }
    }

    /// Frees `slot` if its stream is closed and nothing of it runs.
    pub fn release(&mut self, slot: usize) {
        if self.entries[slot].as_ref().is_some_and(|e| e.is_closed && e.running == 0) {
            self.entries[slot] = None;
            self.free.push(slot);
            self.stats.open -= 1;
        }
    }

    /// Whether there is a tick to run.
    pub fn has_tick(&self) -> bool {
        self.ticks.gathered.is_some() || !self.queue.is_empty()
    }

    /// Whether the next tick is to be gathered while one runs: as many wait as it would have, so that those who come meanwhile
    /// would have to wait for another all the same.
    pub fn is_ahead(&self) -> bool {
        let Ticks { is_running, gathered, enough, .. } = &self.ticks;
        *is_running && gathered.is_none() && enough.is_some_and(|enough| self.queue.len() >= enough)
    }

    /// Whether nothing runs and nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.queue.is_empty() && self.commands.is_empty() && self.ticks.running == 0
    }

    /// The first command that can be done: whose stream has nothing left to run, or is gone.
    pub fn next_command(&self) -> Option<usize> {
        self.commands.iter().position(|command| {
            let (slot, id) = match command {
                Command::Save { slot, id, .. } | Command::Fork { slot, id, .. } => (*slot, *id),
                Command::Write { .. } => return true,
            };
            let entry = self.entries[slot].as_ref().filter(|e| e.id == id);
            entry.is_none_or(|e| e.is_closed || e.waiting == 0 && e.running == 0)
        })
    }
}

impl Entry {
    /// Wakes who waits for a change of it.
    pub fn wake(&mut self) {
        // Waking nobody costs a call of the system.
        if self.waits > 0 {
            self.changed.notify_all();
        }
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// Wakes a task at the next change.
    pub fn wake_at_change(&mut self, waker: &Waker) {
        if !self.wakers.iter().any(|known| known.will_wake(waker)) {
            self.wakers.push(waker.clone());
        }
    }
}
