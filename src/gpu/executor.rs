//! Persistent values on a GPU, and programs made ready over them.

use super::adapter::Context;
use super::away::{Away, Homes};
use super::buffer::Buffer;
use super::kernels::{self, Runner};
use super::offload::Offloaded;
use super::pipeline::Pipelines;
use super::profile::Profiler;
use super::reading::{Reading, Staging};
use super::record::{Recorder, View};
use super::upload::{Indices, bytes_of, take_rows};
use super::values::{Preparer, Run, Values};
use crate::error::{Error, Result};
use crate::params::{DType, Tensor};
use crate::scheduler::footprint::NOTHING;
use crate::scheduler::profile::Profile;
use crate::scheduler::program::Storage;
use crate::scheduler::strategy::{PARAMETER_SLOTS, RUN_SCALARS, row_axis};
use crate::scheduler::{Action, Batch, Move, Part, Program, Side, Stage, Step};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Runs that may be under way before the host waits for the oldest.
const IN_FLIGHT: usize = 3;

/// Where a run goes on once the device has done what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    stage: usize,
    /// Of the stage.
    part: usize,
    /// Of the part.
    action: usize,
    /// Of what the action brings.
    bytes: u64,
}

/// A run that waits for a submission, or for all there are.
pub struct Pause {
    /// Where it goes on.
    pub place: Place,
    /// What has to be done by then.
    pub submission: Option<wgpu::SubmissionIndex>,
}

struct Persistent {
    buffer: Buffer,
    shape: Vec<usize>,
    dtype: DType,
    /// Counts changes, so that weights are packed again only after one.
    version: u64,
}

/// The persistent values of one session on one GPU.
pub struct Gpu {
    context: Arc<Context>,
    staging: Arc<Staging>,
    pipelines: Pipelines,
    persistent: BTreeMap<String, Persistent>,
    /// Bound where an operation's optional value is absent: one to be read, one to be written.
    nothing: [Buffer; 2],
    /// How often the workgroups of *grid* waited for each other in vain.
    stalls: Buffer,
    params: Buffer,
    under_way: VecDeque<wgpu::SubmissionIndex>,
    /// Bytes of weights on their way, and the submission by whose end they have arrived.
    brought: VecDeque<(u64, wgpu::SubmissionIndex)>,
    submissions: u64,
    profiler: Option<Profiler>,
}

/// A program made ready: memory, pipelines and bind groups.
pub struct Prepared {
    program: Arc<Program>,
    values: Values,
    /// For each stage its actions; moves need no preparation, nor what an earlier step runs with it.
    stages: Vec<Vec<Option<PreparedStep>>>,
    run_scalars: Buffer,
    table: Buffer,
    uploaded_table: RefCell<Vec<u32>>,
    /// Of each stage.
    indices: Vec<Indices>,
    offloaded: Offloaded,
    away: RefCell<Away>,
    last: Option<Batch>,
}

struct PreparedStep {
    packs: Vec<Pack>,
    runner: Box<dyn Runner>,
}

/// A weight's rearrangement, and which state of the weight it was made from.
struct Pack {
    runner: Box<dyn Runner>,
    sources: Vec<Option<String>>,
    made_from: RefCell<Option<Vec<u64>>>,
}

impl Gpu {
    /// No values yet.
    pub fn new(context: Arc<Context>) -> Result<Self> {
        let nothing = [context.buffers.storage("nothing", NOTHING)?, context.buffers.storage("nothing", NOTHING)?];
        let stalls = context.buffers.storage("stalls", NOTHING)?;
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let params =
            context.buffers.create("params", PARAMETER_SLOTS as u64 * context.target().limits.uniform, uniform)?;
        Ok(Self {
            context,
            staging: Arc::default(),
            pipelines: Pipelines::default(),
            persistent: BTreeMap::new(),
            nothing,
            stalls,
            params,
            under_way: VecDeque::new(),
            brought: VecDeque::new(),
            submissions: 0,
            profiler: None,
        })
    }

    /// Makes a persistent value of zeros, in place of one of that name.
    pub fn declare(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        let bytes = 4 * shape.iter().product::<usize>() as u64;
        let limits = self.context.target().limits;
        if bytes > limits.binding.min(limits.buffer) {
            return Err(Error::memory(format!(
                "session: `{name}` takes {bytes} bytes, the device allows {} in one binding",
                limits.binding.min(limits.buffer)
            )));
        }
        let buffer = self.context.buffers.storage(name, bytes)?;
        self.persistent.insert(name.to_string(), Persistent { buffer, shape: shape.to_vec(), dtype, version: 0 });
        Ok(())
    }

    /// Writes the first `tensor.len()` values of a persistent value.
    pub fn write(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let missing = || Error::argument(format!("session: there is no value `{name}`"));
        let persistent = self.persistent.get_mut(name).ok_or_else(missing)?;
        if tensor.dtype() != persistent.dtype || tensor.len() > persistent.shape.iter().product() {
            return Err(Error::shape(format!("session: `{name}` cannot take a tensor of {:?}", tensor.shape())));
        }
        persistent.version += 1;
        self.context.queue.write_buffer(&persistent.buffer, 0, bytes_of(tensor)?);
        self.context.check()
    }

    /// Lets go of a persistent value; programs that are ready keep what they have of it.
    pub fn release(&mut self, name: &str) {
        self.persistent.remove(name);
    }

    /// Begins to read a persistent value as it is after all runs so far.
    pub fn begin_read(&mut self, name: &str) -> Result<Reading> {
        let missing = || Error::argument(format!("session: there is no value `{name}`"));
        let p = self.persistent.get(name).ok_or_else(missing)?;
        let view = View { buffer: p.buffer.clone(), offset: 0, bytes: p.buffer.size() };
        Reading::begin(&self.context, &self.staging, &[view], &p.shape, p.dtype)
    }

    /// Begins to read how many tiles of *grid* had to be resumed so far, because their workgroups did not meet.
    pub fn begin_stalls(&mut self) -> Result<Reading> {
        let view = View { buffer: self.stalls.clone(), offset: 0, bytes: 4 };
        Reading::begin(&self.context, &self.staging, &[view], &[1], DType::U32)
    }

    /// Begins to read output number `index` of the program's last run.
    pub fn begin_output(&mut self, prepared: &Prepared, index: usize) -> Result<Reading> {
        let Some(batch) = &prepared.last else {
            return Err(Error::argument("session: the program has not run yet"));
        };
        let value = prepared.program.outputs[index].1;
        let shape = batch.resolve(prepared.values.shape(value))?;
        let views = prepared.values.rows_of(value, shape.first().copied().unwrap_or(1))?;
        Reading::begin(&self.context, &self.staging, &views, &shape, prepared.program.values[value].dtype)
    }

    /// Makes a program ready: memory, pipelines, bind groups.
    pub fn prepare(&mut self, program: &Arc<Program>) -> Result<Prepared> {
        let arenas: Result<Vec<_>> =
            program.placement.arenas.iter().map(|&bytes| self.context.buffers.storage("arena", bytes)).collect();
        let values = self.values(program, arenas?)?;
        self.staging.reserve(&self.context, program.staging())?;
        let table = self.context.buffers.storage("table", 4 * program.table().words() as u64)?;
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let run_scalars = self.context.buffers.create("scalars", 4 * RUN_SCALARS as u64, uniform)?;
        if program.scalars.len() > RUN_SCALARS {
            return Err(Error::unsupported(format!("program: more than {RUN_SCALARS} scalars")));
        }
        let mut preparer = Preparer {
            context: &self.context,
            values: &values,
            pipelines: &mut self.pipelines,
            nothing: &self.nothing,
            stalls: &self.stalls,
            params: &self.params,
            run_scalars: &run_scalars,
            table: &table,
        };
        let stages = program.stages.iter().map(|stage| prepare_stage(&mut preparer, stage));
        let stages = stages.collect::<Result<Vec<_>>>()?;
        Ok(Prepared {
            away: RefCell::new(Away::of(program, &self.context.buffers)?),
            indices: program.stages.iter().map(|stage| Indices::of(program, stage)).collect::<Result<_>>()?,
            offloaded: Offloaded::of(program, &self.context.buffers)?,
            program: Arc::clone(program),
            values,
            stages,
            run_scalars,
            table,
            uploaded_table: RefCell::default(),
            last: None,
        })
    }

    fn values(&self, program: &Arc<Program>, arenas: Vec<Buffer>) -> Result<Values> {
        let mut persistent = BTreeMap::new();
        let mut axis_rows = BTreeMap::new();
        for (at, value) in program.values.iter().enumerate() {
            if value.storage == Storage::Persistent && !value.offloaded {
                let missing = || Error::argument(format!("session: there is no value `{}`", value.name));
                let p = self.persistent.get(&value.name).ok_or_else(missing)?;
                persistent.insert(at, (p.buffer.clone(), p.buffer.size()));
            } else if let (Some(axis), Some(place)) = (row_axis(&value.shape), program.placement.places.get(&at))
                && place.pieces.len() > 1
            {
                axis_rows.insert(axis, place.piece_rows);
            }
        }
        Ok(Values { program: Arc::clone(program), arenas, persistent, axis_rows })
    }

    /// Uploads what the run needs, records it and submits it; `homes` has what waits away from the device. Gives a pause where
    /// something is needed that the device has not written yet, or as much is on its way as may be: the caller waits for that,
    /// and calls again with the place where the run goes on.
    pub fn run(
        &mut self,
        prepared: &mut Prepared,
        batch: &Batch,
        inputs: &[&Tensor],
        homes: &mut dyn Homes,
        resume: Option<Place>,
    ) -> Result<Option<Pause>> {
        self.context.check()?;
        let program = Arc::clone(&prepared.program);
        if resume.is_none() {
            self.upload(prepared, batch, inputs)?;
            prepared.offloaded.clear();
            prepared.away.get_mut().clear();
        } else {
            prepared.offloaded.take()?;
            prepared.away.get_mut().take(&program, homes)?;
        }
        let homes: &dyn Homes = homes;
        let from = resume.unwrap_or_default();
        let versions: BTreeMap<&str, u64> = self.persistent.iter().map(|(n, p)| (n.as_str(), p.version)).collect();
        let mut recorder = Recorder::new(&self.context, &self.params, self.profiler.as_mut());
        for (at, stage) in program.stages.iter().enumerate().skip(from.stage) {
            if prepared.offloaded.awaited(stage) {
                recorder.submit()?;
                prepared.offloaded.begin(stage);
                return Ok(Some(Pause { place: Place { stage: at, ..Place::default() }, submission: None }));
            }
            let (mut number, mut pause) = (0, None);
            stage.for_parts(batch, |part| {
                let here = Place { stage: at, part: number, ..Place::default() };
                number += 1;
                if pause.is_some() || (here.stage, here.part) < (from.stage, from.part) {
                    return Ok(());
                }
                let begin = if (here.stage, here.part) == (from.stage, from.part) { from } else { here };
                let (out, brought) = (&mut recorder, &mut self.brought);
                let mut recording = Recording { prepared, versions: &versions, inputs, homes, part, out, brought };
                pause = recording.part(begin, stage)?;
                Ok(())
            })?;
            if pause.is_some() {
                recorder.submit()?;
                return Ok(pause);
            }
        }
        if let Some([_, last]) = prepared.away.borrow().under_way() {
            recorder.submit()?;
            let place = Place { stage: program.stages.len(), ..Place::default() };
            return Ok(Some(Pause { place, submission: Some(last) }));
        }
        let run = Run { values: &prepared.values, batch, continues: false };
        for &(to, from) in &program.copies {
            let from = prepared.values.rows_of(from, run.rows(from)?)?;
            let to = prepared.values.rows_of(to, run.rows(to)?)?;
            from.into_iter().zip(to).for_each(|(from, to)| recorder.copy(from, to));
        }
        recorder.submit()?;
        let (submission, count) = recorder.submitted();
        self.submissions += count as u64;
        self.under_way.extend(submission);
        for &value in &program.updated {
            if let Some(p) = self.persistent.get_mut(&program.values[value].name) {
                p.version += 1;
            }
        }
        prepared.last = Some(batch.clone());
        Ok(None)
    }

    /// Uploads the inputs that are held whole, and the run's scalars.
    fn upload(&self, prepared: &Prepared, batch: &Batch, inputs: &[&Tensor]) -> Result<()> {
        let program = &prepared.program;
        let queue = &self.context.queue;
        for ((_, value), tensor) in program.inputs.iter().zip(inputs) {
            if !program.placement.places.contains_key(value) {
                continue;
            }
            let bytes = bytes_of(tensor)?;
            let mut at = 0;
            for view in prepared.values.rows_of(*value, tensor.shape().first().copied().unwrap_or(1))? {
                queue.write_buffer(&view.buffer, view.offset, &bytes[at..at + view.bytes as usize]);
                at += view.bytes as usize;
            }
        }
        let scalars = program.scalar_values(batch)?;
        if !scalars.is_empty() {
            queue.write_buffer(&prepared.run_scalars, 0, bytemuck::cast_slice(&scalars));
        }
        Ok(())
    }

    /// Notes what the next run does; a dry one records its commands and runs none of them.
    pub fn begin_profile(&mut self, dry: bool) {
        self.profiler = Some(Profiler { dry, ..Profiler::default() });
    }

    /// Asks for the times of the run that was profiled; they can be taken once the device is done.
    pub fn end_profile(&self) {
        self.profiler.iter().for_each(Profiler::begin_read);
    }

    /// What the run that was profiled did.
    pub fn take_profile(&mut self) -> Result<Profile> {
        self.profiler.take().map_or_else(|| Ok(Profile::default()), |profiler| profiler.finish(&self.context))
    }

    /// The oldest run that has to be waited for before another should begin.
    pub fn crowded(&mut self) -> Option<wgpu::SubmissionIndex> {
        if self.under_way.len() > IN_FLIGHT { self.under_way.pop_front() } else { None }
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Pipelines, bind groups and buffers made so far on this device.
    pub fn created(&self) -> [u64; 3] {
        self.context.buffers.created()
    }

    /// Submissions of runs so far.
    pub fn submissions(&self) -> u64 {
        self.submissions
    }
}

/// Records one part of a run.
struct Recording<'a, 'b> {
    prepared: &'a Prepared,
    versions: &'b BTreeMap<&'b str, u64>,
    inputs: &'b [&'b Tensor],
    homes: &'b dyn Homes,
    part: &'b Part<'b>,
    out: &'b mut Recorder<'a>,
    brought: &'b mut VecDeque<(u64, wgpu::SubmissionIndex)>,
}

impl<'a> Recording<'a, '_> {
    /// Records the part from `begin` on, up to where it has to wait.
    fn part(&mut self, begin: Place, stage: &Stage) -> Result<Option<Pause>> {
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
                (Action::Step(step), Some(ready)) => self.step(step, ready)?,
                (Action::Pack(step, _), Some(ready)) => self.step(step, ready)?,
                (Action::Step(_) | Action::Pack(..), None) => {} // an earlier step ran it
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
        let (context, program) = (self.out.context(), &self.prepared.program);
        let away = self.prepared.away.borrow();
        if let Some(submission) = away.awaited(home) {
            return Ok(Some((first, submission)));
        }
        let bytes = away.bytes(program, home, self.homes)?;
        let view = self.prepared.values.view(value, 0)?;
        self.out.submit()?;
        let ((chunk, most), end) = (program.on_the_way(), bytes.len() as u64);
        for at in (first..end).step_by(chunk as usize) {
            let next = chunk.min(end - at);
            if self.brought.iter().map(|b| b.0).sum::<u64>() + next > most
                && let Some((_, oldest)) = self.brought.pop_front()
            {
                return Ok(Some((at, oldest)));
            }
            context.queue.write_buffer(&view.buffer, view.offset + at, &bytes[at as usize..(at + next) as usize]);
            self.brought.push_back((next, context.queue.submit([])));
        }
        Ok(None)
    }

    /// Sends what the place of `value` holds to `home`, as [`Self::bring`] brings it.
    fn send(&mut self, value: usize, home: usize, first: u64) -> Result<Option<(u64, wgpu::SubmissionIndex)>> {
        let program = &self.prepared.program;
        let mut away = self.prepared.away.borrow_mut();
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

/// The launchers of a stage's steps; neighbours that one launcher can run together are with the first of them.
fn prepare_stage(preparer: &mut Preparer<'_>, stage: &Stage) -> Result<Vec<Option<PreparedStep>>> {
    let mut ready = Vec::new();
    while let Some(action) = stage.body.get(ready.len()) {
        let step = match action {
            Action::Step(step) => step,
            Action::Move(_) => {
                ready.push(None);
                continue;
            }
            Action::Pack(step, number) => {
                let runner = kernels::prepare_pack(preparer, step, *number).map_err(|e| e.within(step.op.name()))?;
                ready.push(Some(PreparedStep { packs: Vec::new(), runner }));
                continue;
            }
        };
        let rest = stage.body[ready.len()..].iter().map_while(|a| if let Action::Step(s) = a { Some(s) } else { None });
        let rest: Vec<&Step> = rest.collect();
        let count = kernels::together(preparer.values, &rest)?;
        let prepared = match count {
            1 => prepare_step(preparer, step),
            _ => kernels::prepare_together(preparer, &rest[..count])
                .map(|runner| PreparedStep { packs: Vec::new(), runner }),
        };
        ready.push(Some(prepared.map_err(|e| e.within(step.op.name()))?));
        ready.extend((1..count).map(|_| None));
    }
    Ok(ready)
}

fn prepare_step(preparer: &mut Preparer<'_>, step: &Step) -> Result<PreparedStep> {
    let program = Arc::clone(&preparer.values.program);
    let runner = kernels::prepare(preparer, step)?;
    let mut packs = Vec::new();
    for (number, from) in step.packs.iter().enumerate().filter(|(_, from)| !from.is_empty()) {
        let sources = from
            .iter()
            .filter_map(|&position| step.inputs.get(position).copied().flatten())
            .map(|value| {
                let root = &program.values[program.root(value)];
                (root.storage == Storage::Persistent).then(|| root.name.clone())
            })
            .collect();
        let runner = kernels::prepare_pack(preparer, step, number)?;
        packs.push(Pack { runner, sources, made_from: RefCell::new(None) });
    }
    Ok(PreparedStep { packs, runner })
}
