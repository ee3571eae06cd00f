//! The threads that run ticks: one gathers what is ready or hands outputs out while the device runs the other's tick.

use super::engine::Engine;
use super::exchange::{choose, deliver, gather};
use super::journal::Event;
use super::queue::Shared;
use super::state::StreamState;
use crate::error::{Error, Result};
use crate::params::Tensor;
use crate::scheduler::TickLimits;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How many there are: the tick on the device, and the one that comes next.
pub(super) const WORKERS: usize = 2;

/// What handles ask of a worker, done between ticks.
#[derive(Debug)]
pub(super) enum Command {
    /// The state of a stream once all that was pushed has run.
    Save { slot: usize, id: u64, reply: Sender<Result<StreamState>> },
    /// Gives a new stream's slot the state of another, once all that was pushed there has run.
    Fork { slot: usize, id: u64, child: usize, reply: Sender<Result<()>> },
    /// Gives a new stream's slot the state after so many steps, a row for each table.
    Write { slot: usize, rows: Vec<Tensor>, steps: u64, reply: Sender<Result<()>> },
}

/// One of the threads. Who needs the engine and the table takes the engine first.
pub(super) struct Worker<'a> {
    pub shared: &'a Shared,
    pub engine: &'a Mutex<Engine>,
    pub limits: TickLimits,
    /// The row that new streams begin from.
    pub zero: u32,
    /// Room for what a tick reads, and for what it gives.
    pub x: Vec<u32>,
    pub y: Vec<f32>,
}

impl Worker<'_> {
    /// Works until told to stop, or until no device does any more.
    pub fn run(mut self) {
        let _end = End(self.shared);
        let why = loop {
            match self.once() {
                Ok(true) => {}
                Ok(false) => break "they were closed".to_string(),
                Err(error) => {
                    log::error!("streams: {error}");
                    break error.to_string();
                }
            }
        };
        self.shared.fail(why);
    }

    /// Waits for something to do and does it; false when there is to be no more.
    fn once(&mut self) -> Result<bool> {
        let shared = self.shared;
        let mut table = shared.lock();
        loop {
            if table.stops || table.failure.is_some() || table.drains && table.is_done() {
                return Ok(false);
            }
            if table.next_command().is_some() {
                drop(table);
                return self.command().map(|()| true);
            }
            if table.may_begin() {
                break;
            }
            table.idle += 1;
            table = shared.work.wait(table).unwrap_or_else(PoisonError::into_inner);
            table.idle -= 1;
        }
        let begin = Instant::now();
        let members = choose(&mut table, &self.limits, shared.options.outputs)?;
        table.running += 1;
        // As many as wait again are worth being gathered while this runs.
        table.enough = if table.queue.is_empty() { usize::MAX } else { members.all.len() };
        shared.rouse(&table);
        drop(table);
        let event = gather(shared, &members, std::mem::take(&mut self.x), self.zero)?;
        let gathered = begin.elapsed();
        let mut engine = lock(self.engine)?;
        let begin = Instant::now();
        self.y.clear();
        engine.run(event, |y| self.y.extend_from_slice(y))?;
        let recoveries = engine.recoveries;
        self.x = engine.spare();
        drop(engine);
        deliver(shared, &members, &self.y)?;
        let seconds = (gathered + begin.elapsed()).as_secs_f64();
        let mut table = shared.lock();
        table.running -= 1;
        table.pace.learn(members.steps(), members.rows(), seconds);
        let stats = &mut table.stats;
        (stats.ticks, stats.seconds, stats.recoveries) = (stats.ticks + 1, stats.seconds + seconds, recoveries);
        if table.drains {
            // The other waits for the end.
            shared.work.notify_one();
        }
        Ok(true)
    }

    /// Does the first command that can be done, if there still is one.
    fn command(&mut self) -> Result<()> {
        // No tick runs from here on, and those that have run are delivered where their streams do not run.
        let mut engine = lock(self.engine)?;
        let mut table = self.shared.lock();
        let Some(command) = table.next_command().map(|at| table.commands.remove(at)) else { return Ok(()) };
        let mut state = |slot, id| table.entry(slot, id).map(|entry| (entry.has_state, entry.done));
        match command {
            Command::Save { slot, id, reply } => {
                let state = state(slot, id);
                drop(table);
                // Whoever asked may have gone.
                let _ = reply.send(state.and_then(|state| save(&mut engine, slot, state)));
            }
            Command::Fork { slot, id, child, reply } => {
                let parent = state(slot, id);
                drop(table);
                let done = parent.and_then(|(has_state, done)| {
                    if has_state {
                        engine.run(Event::Fork { from: slot as u32, to: child as u32 }, |_| {})?;
                    }
                    Ok((has_state, done))
                });
                self.begin(child, &reply, done);
            }
            Command::Write { slot, rows, steps, reply } => {
                drop(table);
                let done = engine.run(Event::Write { to: slot as u32, rows }, |_| {}).map(|()| (true, steps));
                self.begin(slot, &reply, done);
            }
        }
        Ok(())
    }

    /// Lets the new stream in `slot` begin after so many steps, from its slot where that holds a state.
    fn begin(&self, slot: usize, reply: &Sender<Result<()>>, done: Result<(bool, u64)>) {
        if let (&Ok((has_state, steps)), Some(entry)) = (&done, self.shared.lock().entries[slot].as_mut()) {
            (entry.has_state, entry.done) = (has_state, steps);
        }
        let _ = reply.send(done.map(drop));
    }
}

/// The device, once nobody else uses it.
fn lock(engine: &Mutex<Engine>) -> Result<MutexGuard<'_, Engine>> {
    engine.lock().map_err(|_| Error::internal("streams: a thread has panicked"))
}

/// The state in `slot`, of a stream that has one and has run so many steps.
fn save(engine: &mut Engine, slot: usize, (has_state, steps): (bool, u64)) -> Result<StreamState> {
    if !has_state {
        return Ok(StreamState { steps, values: Default::default() });
    }
    let rows = engine.read(slot as u32)?;
    let names = engine.tables().iter().map(|t| t.state_name().to_string());
    Ok(StreamState { steps, values: names.zip(rows).collect() })
}

/// Wakes everyone who waits when a worker ends, however it does.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.fail("their thread has panicked".to_string());
    }
}
