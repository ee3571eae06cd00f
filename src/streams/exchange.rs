//! Steps from the queues of streams into a tick, and its outputs back, a few streams at a time, so that who pushes and receives
//! meanwhile never waits long.

use super::StreamOptions;
use super::journal::Event;
use super::queue::{Entry, Shared, Table};
use crate::error::{Error, Result};
use crate::params::Tensor;
use crate::scheduler::{Pace, tick};
use std::sync::MutexGuard;
use std::time::Instant;

/// Streams whose values are copied while the lock is held.
const AT_ONCE: usize = 32;

/// The streams of a tick, those with the most steps first.
#[derive(Debug)]
pub(super) struct Members {
    /// Slots and steps.
    pub all: Vec<(usize, usize)>,
    /// The first row of each step.
    offsets: Vec<usize>,
}

impl Members {
    fn new(mut all: Vec<(usize, usize)>) -> Self {
        all.sort_by_key(|m| std::cmp::Reverse(m.1)); // stable
        let mut offsets = vec![0];
        for t in 0..all.first().map_or(0, |m| m.1) {
            offsets.push(offsets[t] + all.partition_point(|m| m.1 > t));
        }
        Self { all, offsets }
    }

    /// Steps of all.
    pub fn rows(&self) -> usize {
        self.offsets[self.steps()]
    }

    /// The most steps of one.
    pub fn steps(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Where the values of the stream at `place` are, `width` a step, step by step.
    fn places(&self, place: usize, width: usize) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let row = move |&offset: &usize| (offset + place) * width..(offset + place + 1) * width;
        self.offsets[..self.all[place].1].iter().map(row)
    }

    /// Calls `work` for each of them, a few at a time under the lock.
    fn each(&self, shared: &Shared, mut work: impl FnMut(&mut Table, usize) -> Result<()>) -> Result<()> {
        let mut places = 0..self.all.len();
        while !places.is_empty() {
            let mut table = shared.lock();
            places.by_ref().take(AT_ONCE).try_for_each(|place| work(&mut table, place))?;
        }
        Ok(())
    }
}

/// Where ticks stand.
#[derive(Debug, Default)]
pub(super) struct Ticks {
    /// How many were taken out of the queue and are not delivered yet, and whether one of them is on the device.
    pub running: usize,
    pub is_running: bool,
    /// Streams in the queue that are enough for a tick while another runs, if any are.
    pub enough: Option<usize>,
    /// The tick that is to run next, and the one that has run and is to be delivered.
    pub gathered: Option<Tick>,
    pub finished: Option<Outputs>,
    /// Whether the worker and its helper wait for something to do.
    pub waits: bool,
    pub helper_waits: bool,
    /// Room for what ticks read and give.
    pub room_in: Vec<Vec<u32>>,
    pub room_out: Vec<Vec<f32>>,
    /// How long they take.
    pace: Pace,
}

/// A tick that is ready to run.
#[derive(Debug)]
pub(super) struct Tick {
    pub members: Members,
    pub event: Event,
    /// What was spent on it so far.
    pub seconds: f64,
}

/// A tick that has run.
#[derive(Debug)]
pub(super) struct Outputs {
    pub members: Members,
    /// `[rows, width]`
    pub y: Vec<f32>,
    /// What was spent on it so far.
    pub seconds: f64,
}

/// Takes the next tick's steps out of the queue of `table`. New streams begin from the row `zero`.
pub(super) fn gather(shared: &Shared, mut table: MutexGuard<'_, Table>, zero: u32) -> Result<Tick> {
    let begin = Instant::now();
    let members = choose(&mut table, &shared.options)?;
    table.ticks.running += 1;
    // As many as this takes are worth being gathered while it runs.
    table.ticks.enough = (!table.queue.is_empty()).then_some(members.all.len());
    let mut x = table.ticks.room_in.pop().unwrap_or_default();
    shared.rouse(&table);
    drop(table);
    let width = shared.signature.width();
    x.resize(members.rows() * width, 0);
    let mut from = Vec::with_capacity(members.all.len());
    members.each(shared, |table, place| {
        let (slot, steps) = members.all[place];
        let entry = in_slot(&mut table.entries, slot)?;
        let rows = entry.input.first(steps * width).chunks_exact(width);
        members.places(place, width).zip(rows).for_each(|(to, row)| x[to].copy_from_slice(row));
        entry.input.drop_first(steps * width);
        from.push(if entry.has_state { slot as u32 } else { zero });
        // Whoever waits for room has some.
        entry.wake();
        Ok(())
    })?;
    let x = match shared.signature.input {
        Some(features) => Tensor::new(&[members.rows(), features], bytemuck::cast_vec(x))?,
        None => Tensor::from_u32(&[members.rows()], x)?,
    };
    let to = members.all.iter().map(|m| m.0 as u32).collect();
    let [from, to] = [from, to].map(|slots: Vec<u32>| Tensor::from_u32(&[members.all.len()], slots));
    let lengths = members.all.iter().map(|m| m.1).collect();
    let event = Event::Tick { from: from?, to: to?, lengths, x };
    Ok(Tick { members, event, seconds: begin.elapsed().as_secs_f64() })
}

/// Takes the streams of the next tick out of the queue of `table`.
fn choose(table: &mut Table, options: &StreamOptions) -> Result<Members> {
    let limits = options.limits();
    let Table { queue, entries, stats, ticks, .. } = table;
    let mut waiting = Vec::with_capacity(queue.len().min(limits.sequences));
    for &slot in queue.iter().take(limits.sequences) {
        let entry = in_slot(entries, slot)?;
        waiting.push(entry.waiting.min(options.outputs - entry.ready));
    }
    let chosen = tick(&waiting, &limits, &ticks.pace);
    let members = Members::new(queue.drain(..chosen.len()).zip(chosen).collect());
    for &(slot, steps) in &members.all {
        let entry = in_slot(entries, slot)?;
        (entry.running, entry.waiting, entry.is_queued) = (steps, entry.waiting - steps, false);
    }
    stats.waiting -= members.rows() as u64;
    Ok(members)
}

/// Hands the outputs of a tick out.
pub(super) fn deliver(shared: &Shared, Outputs { members, y, seconds }: Outputs) -> Result<()> {
    let (now, width, outputs) = (Instant::now(), shared.signature.output, shared.options.outputs);
    members.each(shared, |table, place| {
        let (slot, steps) = members.all[place];
        if let Some(entry) = table.entries[slot].as_mut() {
            entry.output.reserve(steps * width);
            members.places(place, width).for_each(|row| entry.output.extend_from_slice(&y[row]));
            entry.ready += steps;
            entry.running = 0;
            entry.has_state = true;
            entry.done += steps as u64;
            while let Some(&(_, pushed)) = entry.pushes.front().filter(|p| p.0 <= entry.done) {
                entry.pushes.pop_front();
                table.stats.note(now.duration_since(pushed));
            }
            table.stats.steps += steps as u64;
            entry.wake();
        }
        table.release(slot);
        table.enqueue(slot, outputs);
        Ok(())
    })?;
    let mut table = shared.lock();
    let seconds = seconds + now.elapsed().as_secs_f64();
    table.ticks.running -= 1;
    table.ticks.pace.learn(members.steps(), members.rows(), seconds);
    (table.stats.ticks, table.stats.seconds) = (table.stats.ticks + 1, table.stats.seconds + seconds);
    table.ticks.room_out.push(y);
    shared.rouse(&table);
    Ok(())
}

fn in_slot(entries: &mut [Option<Entry>], slot: usize) -> Result<&mut Entry> {
    entries[slot].as_mut().ok_or_else(|| Error::internal("streams: a slot is empty"))
}
