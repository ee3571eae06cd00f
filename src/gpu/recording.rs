//! Recording the parts of a run: what the host writes, what steps dispatch, what is moved.

use super::away::Homes;
use super::packing::Packing;
use super::prepared::{Prepared, PreparedStep, Ready};
use super::record::{Recorder, View};
use super::upload::take_rows;
use super::values::Run;
use crate::error::{Error, Result};
use crate::params::Tensor;
use crate::scheduler::{Action, Move, Part, Side, Stage, Step};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Where a run goes on once the device has done what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    pub(super) stage: usize,
    /// Of the stage.
    pub(super) part: usize,
    /// Of the part.
    pub(super) action: usize,
    /// Of what the action brings.
    pub(super) bytes: u64,
}

/// A run that waits for a submission, or for all there are.
pub struct Pause {
    /// Where it goes on.
    pub place: Place,
    /// What has to be done by then.
    pub submission: Option<wgpu::SubmissionIndex>,
}

/// Records one part of a run.
pub(super) struct Recording<'a, 'b> {
    pub prepared: &'a Prepared,
    pub versions: &'b BTreeMap<&'b str, u64>,
    pub inputs: &'b [&'b Tensor],
    pub homes: &'b dyn Homes,
    pub part: &'b Part<'b>,
    pub out: &'b mut Recorder<'a>,
    pub brought: &'b mut VecDeque<(u64, wgpu::SubmissionIndex)>,
}

impl<'a> Recording<'a, '_> {
    /// Records the part from `begin` on, up to where it has to wait.
    pub fn part(&mut self, begin: Place, stage: &Stage) -> Result<Option<Pause>> {
        if (begin.action, begin.bytes) == (0, 0) {
            // What the host writes is there before the commands that are submitted next.
            self.out.submit()?;
            self.upload(begin.stage, stage)?;
            for m in stage.before.iter().filter(|_| self.part.begins) {
                self.transfer(m)?;
            }
        }
        let actions = stage.body.iter().zip(&self.prepared.stages[begin.stage]).enumerate();
        for (number, (action, ready)) in actions.skip(begin.action) {
            let first = if number == begin.action { begin.bytes } else { 0 };
            let mut pause = None;
            match (action, ready) {
                (Action::Move(Move { from: Side::Home(home), to: Side::Whole(value) }), _) => {
                    pause = self.bring(*home, *value, first)?;
                }
                (Action::Move(Move { from: Side::Whole(value), to: Side::Home(home) }), _) => {
                    pause = self.send(*value, *home, first)?;
                }
                (Action::Move(m), _) => self.transfer(m)?,
                (Action::Step(step), Ready::Step(ready)) => self.step(step, ready)?,
                (Action::Pack(step, _), Ready::Step(ready)) => self.step(step, ready)?,
                (Action::Bring(step, number), Ready::Packing(packing)) => {
                    pause = self.bring_packed(packing, step.workspace[*number], first)?;
                }
                (Action::Step(_), Ready::Nothing) => {} // an earlier step ran it
                (Action::Step(_) | Action::Pack(..) | Action::Bring(..), _) => {
                    return Err(Error::internal("an action is not ready"));
                }
            }
            if let Some((bytes, submission)) = pause {
                let place = Place { action: number, bytes, ..begin };
                return Ok(Some(Pause { place, submission: Some(submission) }));
            }
        }
        for m in stage.after.iter().filter(|_| self.part.ends) {
            self.transfer(m)?;
        }
        Ok(None)
    }

    /// Brings `home` to the place of `value`, from byte `first` on; where as much is on its way as may be, or it is not there yet,
    /// how far it came and what has to be done before it goes on.
    fn bring(&mut self, home: usize, value: usize, first: u64) -> Result<Option<(u64, wgpu::SubmissionIndex)>> {
        let away = self.prepared.away.borrow();
        if self.out.is_dry() {
            return Ok(None);
        }
        if let Some(submission) = away.awaited(home) {
            return Ok(Some((first, submission)));
        }
        let bytes = away.bytes(&self.prepared.program, home, self.homes)?;
        self.write(value, [first, bytes.len() as u64], |queue, view, part| {
            queue.write_buffer(&view.buffer, view.offset, &bytes[part]);
        })
    }

    /// Brings what the host packs to the place of `value`, as [`Self::bring`] brings a value.
    fn bring_packed(
        &mut self,
        packing: &Packing,
        value: usize,
        first: u64,
    ) -> Result<Option<(u64, wgpu::SubmissionIndex)>> {
        let (away, program) = (self.prepared.away.borrow(), &self.prepared.program);
        if self.out.is_dry() {
            return Ok(None);
        }
        if let Some(submission) = packing.sources().filter_map(|home| away.awaited(home)).last() {
            return Ok(Some((first, submission)));
        }
        let sources = packing.sources().map(|home| away.bytes(program, home, self.homes));
        let sources: Vec<&[f32]> = sources.map(|bytes| Ok(bytemuck::cast_slice(bytes?))).collect::<Result<_>>()?;
        let mut packed = Vec::new();
        self.write(value, [first, program.bytes(&program.values[value])], |queue, view, part| {
            packed.resize(part.len() / 4, 0.0);
            packing.fill(&sources, part.start / 4, &mut packed);
            queue.write_buffer(&view.buffer, view.offset, bytemuck::cast_slice(&packed));
        })
    }

    /// Writes bytes `first` to `end` of `value` part by part, until as much is on its way as may be.
    fn write(
        &mut self,
        value: usize,
        [first, end]: [u64; 2],
        mut part: impl FnMut(&wgpu::Queue, View, Range<usize>),
    ) -> Result<Option<(u64, wgpu::SubmissionIndex)>> {
        let context = self.out.context();
        let view = self.prepared.values.view(value, 0)?;
        self.out.submit()?;
        let (chunk, most) = self.prepared.program.on_the_way();
        for at in (first..end).step_by(chunk as usize) {
            let next = chunk.min(end - at);
            if self.brought.iter().map(|b| b.0).sum::<u64>() + next > most
                && let Some((_, oldest)) = self.brought.pop_front()
            {
                return Ok(Some((at, oldest)));
            }
            let to = View { buffer: view.buffer.clone(), offset: view.offset + at, bytes: next };
            part(&context.queue, to, at as usize..(at + next) as usize);
            self.brought.push_back((next, context.queue.submit([])));
        }
        Ok(None)
    }

    /// Sends what the place of `value` holds to `home`, as [`Self::bring`] brings it.
    fn send(&mut self, value: usize, home: usize, first: u64) -> Result<Option<(u64, wgpu::SubmissionIndex)>> {
        let program = &self.prepared.program;
        let mut away = self.prepared.away.borrow_mut();
        if self.out.is_dry() {
            return Ok(None);
        }
        let view = self.prepared.values.view(value, 0)?;
        let ((chunk, _), end) = (program.on_the_way(), program.bytes(&program.values[home]));
        for at in (first..end).step_by(chunk as usize) {
            let bytes = chunk.min(end - at);
            let Some(buffer) = away.room() else {
                let [oldest, _] = away.under_way().ok_or_else(|| Error::internal("no room for what is sent"))?;
                return Ok(Some((at, oldest)));
            };
            let whole = View { buffer: buffer.clone(), offset: 0, bytes };
            self.out.copy(View { buffer: view.buffer.clone(), offset: view.offset + at, bytes }, whole);
            self.out.submit()?;
            let submission = self.out.submitted().0.ok_or_else(|| Error::internal("nothing was submitted"))?;
            away.send(home, [at, bytes], buffer, submission);
        }
        Ok(None)
    }

    /// Uploads what the part needs of the batch: the table, indices, rows of inputs.
    fn upload(&self, at: usize, stage: &Stage) -> Result<()> {
        let (prepared, queue) = (self.prepared, &self.out.context().queue);
        let program = &prepared.program;
        let table = program.table().fill(self.part.batch)?;
        let mut uploaded = prepared.uploaded_table.borrow_mut();
        if table != *uploaded {
            queue.write_buffer(&prepared.table, 0, bytemuck::cast_slice(&table));
            *uploaded = table;
        }
        for (value, words) in prepared.indices[at].words(program, self.part, self.inputs)? {
            let mut at = 0;
            let rows = program.values[value].shape.rows().map_or(Ok(1), |rows| self.part.batch.size(rows))?;
            for view in prepared.values.rows_of(value, rows)? {
                let words = &words[at..at + view.bytes as usize / 4];
                queue.write_buffer(&view.buffer, view.offset, bytemuck::cast_slice(words));
                at += words.len();
            }
        }
        for action in &stage.body {
            let Action::Move(Move { from, to }) = action else { continue };
            let bytes = match from {
                Side::Input(input) => {
                    let rows = self.part.rows(&program.values[program.inputs[*input].1].shape)?;
                    take_rows(self.inputs[*input], &rows)?
                }
                Side::Slot(value) => match prepared.offloaded.bytes(*value, self.part) {
                    Some(bytes) => bytes.to_vec(),
                    None => continue,
                },
                _ => continue,
            };
            for view in prepared.values.side(*to, self.part)? {
                queue.write_buffer(&view.buffer, view.offset, &bytes[..view.bytes as usize]);
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, ready: &'a PreparedStep) -> Result<()> {
        self.out.step(step.number);
        let continues = step.accumulates && self.part.continues;
        let run = Run { values: &self.prepared.values, batch: self.part.batch, continues };
        for pack in &ready.packs {
            let now: Option<Vec<u64>> =
                pack.sources.iter().map(|s| s.as_deref().and_then(|s| self.versions.get(s)).copied()).collect();
            let mut made_from = pack.made_from.borrow_mut();
            if now.is_none() || now != *made_from {
                pack.runner.record(&run, self.out)?;
            }
            *made_from = now.filter(|_| !self.out.is_dry());
        }
        ready.runner.record(&run, self.out)
    }

    fn transfer(&mut self, m: &Move) -> Result<()> {
        let offloaded = |side: Side| match side {
            Side::Slot(value) => self.prepared.offloaded.slot(value, self.part),
            _ => None,
        };
        if matches!(m.from, Side::Input(_)) || offloaded(m.from).is_some() {
            return Ok(()); // uploaded when the part began
        }
        let to = match offloaded(m.to) {
            Some(view) => vec![view],
            None => self.prepared.values.side(m.to, self.part)?,
        };
        if m.from == Side::Zero {
            to.into_iter().for_each(|view| self.out.clear(view));
            return Ok(());
        }
        // One of the two is in one range.
        let from = self.prepared.values.side(m.from, self.part)?;
        let (mut read, mut written) = (0, 0);
        let cut =
            |view: &View, at: u64, bytes: u64| View { buffer: view.buffer.clone(), offset: view.offset + at, bytes };
        if let [whole] = to.as_slice() {
            for view in from {
                self.out.copy(view.clone(), cut(whole, written, view.bytes));
                written += view.bytes;
            }
        } else if let [whole] = from.as_slice() {
            for view in to {
                self.out.copy(cut(whole, read, view.bytes), view.clone());
                read += view.bytes;
            }
        } else if !from.is_empty() || !to.is_empty() {
            return Err(Error::internal("a move between scattered rows"));
        }
        Ok(())
    }
}
