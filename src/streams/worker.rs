//! The threads of streams. One runs ticks on the device. The other gathers the next tick and hands the outputs of the last one
//! out meanwhile, where there is so much to do that it pays; else the first does all of it, which is sooner.

use super::engine::Engine;
use super::exchange::{Outputs, deliver, gather};
use super::journal::Event;
use super::queue::Shared;
use super::state::StreamState;
use crate::error::Result;
use crate::params::Tensor;
use std::sync::PoisonError;
use std::sync::mpsc::Sender;
use std::time::Instant;

/// What handles ask of the worker, done between ticks.
#[derive(Debug)]
pub(super) enum Command {
    /// The state of a stream once all that was pushed has run.
    Save { slot: usize, id: u64, reply: Sender<Result<StreamState>> },
    /// Gives a new stream's slot the state of another, once all that was pushed there has run.
    Fork { slot: usize, id: u64, child: usize, reply: Sender<Result<()>> },
    /// Gives a new stream's slot the state after so many steps, a row for each table.
    Write { slot: usize, rows: Vec<Tensor>, steps: u64, reply: Sender<Result<()>> },
}

/// Runs ticks and commands.
pub(super) struct Worker<'a> {
    pub shared: &'a Shared,
    pub engine: Engine,
}

impl Worker<'_> {
    /// Works until told to stop, or until no device does any more.
    pub fn run(mut self) {
        go_on(self.shared, || self.once());
    }

    /// Waits for something to do and does it; false when there is to be no more.
    fn once(&mut self) -> Result<bool> {
        let shared = self.shared;
        let mut table = shared.lock();
        loop {
            if table.stops || table.failure.is_some() || table.drains && table.is_done() {
                return Ok(false);
            }
            if let Some(at) = table.next_command() {
                let command = table.commands.remove(at);
                drop(table);
                self.command(command);
                return Ok(true);
            }
            if table.has_tick() {
                break;
            }
            table.ticks.waits = true;
            table = shared.work.wait(table).unwrap_or_else(PoisonError::into_inner);
            table.ticks.waits = false;
        }
        let tick = match table.ticks.gathered.take() {
            Some(tick) => tick,
            None => {
                let tick = gather(shared, table, self.engine.zero())?;
                table = shared.lock();
                tick
            }
        };
        table.ticks.is_running = true;
        let mut y = table.ticks.room_out.pop().unwrap_or_default();
        shared.rouse(&table);
        drop(table);
        let begin = Instant::now();
        y.clear();
        self.engine.run(tick.event, |values| y.extend_from_slice(values))?;
        let seconds = tick.seconds + begin.elapsed().as_secs_f64();
        let outputs = Outputs { members: tick.members, y, seconds };
        let mut table = shared.lock();
        table.ticks.is_running = false;
        table.stats.recoveries = self.engine.recoveries;
        table.ticks.room_in.extend(self.engine.spare());
        // The helper may have ended where all is to stop; what has run is delivered all the same.
        let helps = !table.stops && table.failure.is_none();
        if helps && table.ticks.gathered.is_some() && table.ticks.finished.is_none() {
            table.ticks.finished = Some(outputs);
            shared.rouse(&table);
            return Ok(true);
        }
        drop(table);
        deliver(shared, outputs).map(|()| true)
    }

    fn command(&mut self, command: Command) {
        // Of streams that do not run: what has run is delivered, and what is gathered has not run.
        let state = |slot, id| self.shared.lock().entry(slot, id).map(|entry| (entry.has_state, entry.done));
        match command {
            Command::Save { slot, id, reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(state(slot, id).and_then(|state| self.save(slot, state)));
            }
            Command::Fork { slot, id, child, reply } => {
                let done = state(slot, id).and_then(|(has_state, done)| {
                    if has_state {
                        self.engine.run(Event::Fork { from: slot as u32, to: child as u32 }, |_| {})?;
                    }
                    Ok((has_state, done))
                });
                self.begin(child, &reply, done);
            }
            Command::Write { slot, rows, steps, reply } => {
                let done = self.engine.run(Event::Write { to: slot as u32, rows }, |_| {}).map(|()| (true, steps));
                self.begin(slot, &reply, done);
            }
        }
    }

    /// Lets the new stream in `slot` begin after so many steps, from its slot where that holds a state.
    fn begin(&self, slot: usize, reply: &Sender<Result<()>>, done: Result<(bool, u64)>) {
        if let (&Ok((has_state, steps)), Some(entry)) = (&done, self.shared.lock().entries[slot].as_mut()) {
            (entry.has_state, entry.done) = (has_state, steps);
        }
        let _ = reply.send(done.map(drop));
    }

    /// The state in `slot`, of a stream that has one and has run so many steps.
    fn save(&mut self, slot: usize, (has_state, steps): (bool, u64)) -> Result<StreamState> {
        if !has_state {
            return Ok(StreamState { steps, values: Default::default() });
        }
        let rows = self.engine.read(slot as u32)?;
        let names = self.engine.tables().iter().map(|t| t.state_name().to_string());
        Ok(StreamState { steps, values: names.zip(rows).collect() })
    }
}

/// Gathers and delivers while the other runs; new streams begin from the row `zero`.
pub(super) fn help(shared: &Shared, zero: u32) {
    go_on(shared, || {
        let mut table = shared.lock();
        loop {
            if let Some(outputs) = table.ticks.finished.take() {
                drop(table);
                return deliver(shared, outputs).map(|()| true);
            }
            if table.stops || table.failure.is_some() {
                return Ok(false);
            }
            if table.is_ahead() {
                let tick = gather(shared, table, zero)?;
                let mut table = shared.lock();
                table.ticks.gathered = Some(tick);
                shared.rouse(&table);
                return Ok(true);
            }
            table.ticks.helper_waits = true;
            table = shared.ahead.wait(table).unwrap_or_else(PoisonError::into_inner);
            table.ticks.helper_waits = false;
        }
    });
}

/// Does `work` until it says that there is to be no more, or fails.
fn go_on(shared: &Shared, mut work: impl FnMut() -> Result<bool>) {
    let _end = End(shared);
    let why = loop {
        match work() {
            Ok(true) => {}
            Ok(false) => break "they were closed".to_string(),
            Err(error) => {
                log::error!("streams: {error}");
                break error.to_string();
            }
        }
    };
    shared.fail(why);
}

/// Wakes everyone who waits when a thread ends, however it does.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.fail("their thread has panicked".to_string());
    }
}
