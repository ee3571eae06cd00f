//! The thread that runs ticks: it gathers what is ready, runs it, and hands the outputs out.

use super::engine::Engine;
use super::journal::Event;
use super::queue::{Entry, Shared, Table};
use super::state::StreamState;
use crate::error::{Error, Result};
use crate::params::Tensor;
use crate::scheduler::{Pace, TickLimits, tick};
use std::sync::mpsc::Sender;
use std::sync::{MutexGuard, PoisonError};
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

/// Streams of a tick, those with the most steps first: slots and steps.
type Members = Vec<(usize, usize)>;

pub(super) struct Worker<'a> {
    pub shared: &'a Shared,
    pub engine: Engine,
    pub limits: TickLimits,
    pub pace: Pace,
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
        self.shared.lock().fail(why);
    }

    /// Waits for something to do and does it; false when there is to be no more.
    fn once(&mut self) -> Result<bool> {
        let shared = self.shared;
        let mut table = shared.lock();
        loop {
            if table.stops || table.drains && table.queue.is_empty() && table.commands.is_empty() {
                return Ok(false);
            }
            if let Some(command) = next_command(&mut table) {
                drop(table);
                self.command(command);
                return Ok(true);
            }
            if !table.queue.is_empty() {
                break;
            }
            table = shared.work.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let begin = Instant::now();
        let (members, event) = self.gather(&mut table)?;
        drop(table);
        let signature = &shared.signature;
        self.engine
            .run(event, |y| deliver(&mut shared.lock(), &members, (y, signature.output), shared.options.outputs))?;
        let mut table = shared.lock();
        table.stats.recoveries = self.engine.recoveries;
        let seconds = begin.elapsed().as_secs_f64();
        let (steps, rows) = (members[0].1, members.iter().map(|m| m.1).sum());
        self.pace.learn(steps, rows, seconds);
        (table.stats.ticks, table.stats.seconds) = (table.stats.ticks + 1, table.stats.seconds + seconds);
        Ok(true)
    }

    /// Takes the next tick's steps out of their queues.
    fn gather(&mut self, table: &mut MutexGuard<'_, Table>) -> Result<(Members, Event)> {
        let table = &mut **table;
        let (width, outputs) = (self.shared.signature.width(), self.shared.options.outputs);
        let Table { queue, entries, stats, .. } = table;
        let mut waiting = Vec::with_capacity(queue.len().min(self.limits.sequences));
        for &slot in queue.iter().take(self.limits.sequences) {
            let entry = in_slot(entries, slot)?;
            waiting.push(entry.waiting.min(outputs - entry.ready));
        }
        let chosen = tick(&waiting, &self.limits, &self.pace);
        let mut members: Members = queue.drain(..chosen.len()).zip(chosen).collect();
        members.sort_by_key(|m| std::cmp::Reverse(m.1)); // stable
        let rows: usize = members.iter().map(|m| m.1).sum();
        let input = |&(slot, steps): &(usize, usize)| Ok(in_slot(entries, slot)?.input.first(steps * width));
        let inputs = members.iter().map(input).collect::<Result<Vec<_>>>()?;
        let x = step_major(&inputs, width, self.engine.spare());
        let x = match self.shared.signature.input {
            Some(features) => Tensor::new(&[rows, features], bytemuck::cast_vec(x))?,
            None => Tensor::from_u32(&[rows], x)?,
        };
        let mut from = Vec::with_capacity(members.len());
        for &(slot, steps) in &members {
            let entry = in_slot_mut(entries, slot)?;
            from.push(if entry.has_state { slot as u32 } else { self.engine.zero() });
            entry.input.drop_first(steps * width);
            entry.waiting -= steps;
            entry.running = steps;
            entry.is_queued = false;
            entry.has_state = true;
            // Whoever waits for room has some.
            entry.wake();
        }
        stats.waiting -= rows as u64;
        let to = members.iter().map(|m| m.0 as u32).collect();
        let [from, to] = [from, to].map(|slots: Vec<u32>| Tensor::from_u32(&[members.len()], slots));
        let lengths = members.iter().map(|m| m.1).collect();
        Ok((members, Event::Tick { from: from?, to: to?, lengths, x }))
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Save { slot, id, reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(self.save(slot, id));
            }
            Command::Fork { slot, id, child, reply } => {
                let parent = self.shared.lock().entry(slot, id).map(|parent| (parent.has_state, parent.done));
                let done = parent.and_then(|(has_state, done)| {
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

    fn save(&mut self, slot: usize, id: u64) -> Result<StreamState> {
        let (steps, has_state) = {
            let mut table = self.shared.lock();
            let entry = table.entry(slot, id)?;
            (entry.done, entry.has_state)
        };
        if !has_state {
            return Ok(StreamState { steps, values: Default::default() });
        }
        let rows = self.engine.read(slot as u32)?;
        let names = self.engine.tables().iter().map(|t| t.state_name().to_string());
        Ok(StreamState { steps, values: names.zip(rows).collect() })
    }
}

/// Hands the outputs y `[rows, width]` of a tick out, to streams that may hold so many.
fn deliver(table: &mut Table, members: &Members, (y, width): (&[f32], usize), outputs: usize) {
    let now = Instant::now();
    let reach: Vec<usize> = (0..members[0].1).map(|t| members.partition_point(|m| m.1 > t)).collect();
    for (place, &(slot, steps)) in members.iter().enumerate() {
        if let Some(entry) = table.entries[slot].as_mut() {
            let mut offset = 0;
            for rows in &reach[..steps] {
                entry.output.push(&y[(offset + place) * width..][..width]);
                offset += rows;
            }
            entry.ready += steps;
            entry.running = 0;
            entry.done += steps as u64;
            while let Some(&(_, pushed)) = entry.pushes.front().filter(|p| p.0 <= entry.done) {
                entry.pushes.pop_front();
                table.stats.note(now.duration_since(pushed));
            }
            table.stats.steps += steps as u64;
            entry.wake();
        }
        table.release(slot);
        if table.entries[slot].is_some() {
            table.enqueue(slot, outputs);
        }
    }
}

fn in_slot(entries: &[Option<Entry>], slot: usize) -> Result<&Entry> {
    entries[slot].as_ref().ok_or_else(|| Error::internal("streams: a slot is empty"))
}

fn in_slot_mut(entries: &mut [Option<Entry>], slot: usize) -> Result<&mut Entry> {
    entries[slot].as_mut().ok_or_else(|| Error::internal("streams: a slot is empty"))
}

/// The rows of inputs, of which none is longer than the one before, step by step: at each step those of all that reach it.
fn step_major(mut inputs: &[&[u32]], width: usize, mut x: Vec<u32>) -> Vec<u32> {
    let mut end = 0;
    while !inputs.is_empty() {
        inputs.iter().for_each(|rows| x.extend_from_slice(&rows[end..end + width]));
        end += width;
        inputs = &inputs[..inputs.partition_point(|rows| rows.len() > end)];
    }
    x
}

/// Wakes everyone who waits when the worker ends, however it does.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.lock().fail("their thread has panicked".to_string());
    }
}

/// The first command that can be done: whose stream has nothing left to run, or is gone.
fn next_command(table: &mut Table) -> Option<Command> {
    let at = (0..table.commands.len()).find(|&at| {
        let (slot, id) = match &table.commands[at] {
            Command::Save { slot, id, .. } | Command::Fork { slot, id, .. } => (*slot, *id),
            Command::Write { .. } => return true,
        };
        let entry = table.entries[slot].as_ref().filter(|e| e.id == id);
        entry.is_none_or(|e| e.is_closed || e.waiting == 0 && e.running == 0)
    })?;
    Some(table.commands.remove(at))
}
