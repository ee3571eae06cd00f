//! The thread that runs ticks: it gathers what is ready, runs it, and hands the outputs out.

use super::engine::Engine;
use super::journal::Event;
use super::queue::{Entry, Shared, Table};
use super::state::StreamState;
use crate::error::{Error, Result};
use crate::params::Tensor;
use crate::scheduler::{Pace, TickLimits, tick};
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

/// A stream of a tick.
struct Member {
    slot: usize,
    steps: usize,
    /// The row that it begins from.
    from: u32,
}

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
        let members = self.choose(&mut table)?;
        drop(table);
        let event = self.gather(&members)?;
        self.engine.run(event, |y| deliver(shared, &members, y))?;
        let mut table = shared.lock();
        table.stats.recoveries = self.engine.recoveries;
        let seconds = begin.elapsed().as_secs_f64();
        let (steps, rows) = (members[0].steps, members.iter().map(|m| m.steps).sum());
        self.pace.learn(steps, rows, seconds);
        (table.stats.ticks, table.stats.seconds) = (table.stats.ticks + 1, table.stats.seconds + seconds);
        Ok(true)
    }

    /// Chooses the next tick's streams and steps, those with the most first, and takes them off what waits.
    fn choose(&mut self, table: &mut Table) -> Result<Vec<Member>> {
        let outputs = self.shared.options.outputs;
        let Table { queue, entries, stats, .. } = table;
        let mut waiting = Vec::with_capacity(queue.len().min(self.limits.sequences));
        for &slot in queue.iter().take(self.limits.sequences) {
            let entry = in_slot(entries, slot)?;
            waiting.push(entry.waiting.min(outputs - entry.ready));
        }
        let chosen = tick(&waiting, &self.limits, &self.pace);
        let mut members = Vec::with_capacity(chosen.len());
        for (slot, steps) in queue.drain(..chosen.len()).zip(chosen) {
            let entry = in_slot(entries, slot)?;
            let from = if entry.has_state { slot as u32 } else { self.engine.zero() };
            members.push(Member { slot, steps, from });
            entry.waiting -= steps;
            entry.running = steps;
            entry.is_queued = false;
            entry.has_state = true;
            stats.waiting -= steps as u64;
            // Whoever waits for room has some.
            entry.wake();
        }
        members.sort_by_key(|m| std::cmp::Reverse(m.steps)); // stable
        Ok(members)
    }

    /// A tick of these, what they read step by step: at each step the rows of all that reach it.
    fn gather(&mut self, members: &[Member]) -> Result<Event> {
        let width = self.shared.signature.width();
        let lengths: Vec<usize> = members.iter().map(|m| m.steps).collect();
        let rows = lengths.iter().sum::<usize>();
        let starts = starts(&lengths);
        let mut x = self.engine.spare(rows * width);
        for (place, member) in members.iter().enumerate() {
            let mut data = self.shared.data(member.slot);
            let own = data.input.first(member.steps * width);
            for (row, start) in own.chunks_exact(width).zip(&starts) {
                x[(start + place) * width..][..width].copy_from_slice(row);
            }
            data.input.drop_first(member.steps * width);
        }
        let x = match self.shared.signature.input {
            Some(features) => Tensor::new(&[rows, features], bytemuck::cast_vec(x))?,
            None => Tensor::from_u32(&[rows], x)?,
        };
        let slots = |of: fn(&Member) -> u32| Tensor::from_u32(&[members.len()], members.iter().map(of).collect());
        Ok(Event::Tick { from: slots(|m| m.from)?, to: slots(|m| m.slot as u32)?, lengths, x })
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

/// The first row of each step, where each has those of all sequences that reach it; `lengths` never increase.
fn starts(lengths: &[usize]) -> Vec<usize> {
    let reach = (0..lengths.first().copied().unwrap_or(0)).map(|t| lengths.partition_point(|&n| n > t));
    let start = |next: &mut usize, rows: usize| {
        *next += rows;
        Some(*next - rows)
    };
    reach.scan(0, start).collect()
}

/// Hands the outputs y `[rows, width]` of a tick out.
fn deliver(shared: &Shared, members: &[Member], y: &[f32]) {
    let (width, outputs) = (shared.signature.output, shared.options.outputs);
    let lengths: Vec<usize> = members.iter().map(|m| m.steps).collect();
    let starts = starts(&lengths);
    for (place, &Member { slot, steps, .. }) in members.iter().enumerate() {
        let mut data = shared.data(slot);
        starts[..steps].iter().for_each(|start| data.output.push(&y[(start + place) * width..][..width]));
    }
    let now = Instant::now();
    let mut table = shared.lock();
    let table = &mut *table;
    for &Member { slot, steps, .. } in members {
        if let Some(entry) = table.entries[slot].as_mut() {
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

fn in_slot(entries: &mut [Option<Entry>], slot: usize) -> Result<&mut Entry> {
    entries[slot].as_mut().ok_or_else(|| Error::internal("streams: a slot is empty"))
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
