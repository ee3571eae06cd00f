//! Persistent values on a GPU, and programs made ready over them.

use super::adapter::Context;
use super::away::{Away, Homes};
use super::buffer::Buffer;
use super::offload::Offloaded;
use super::pipeline::Pipelines;
use super::prepared::{Prepared, prepare_stage};
use super::profile::Profiler;
use super::reading::{Reading, Staging};
use super::record::{Recorder, View};
use super::recording::{Pause, Place, Recording};
use super::upload::{Indices, bytes_of};
use super::values::{Preparer, Run, Values};
use crate::error::{Error, Result};
use crate::params::{DType, Tensor};
use crate::scheduler::footprint::NOTHING;
use crate::scheduler::profile::Profile;
use crate::scheduler::program::Storage;
use crate::scheduler::strategy::{PARAMETER_SLOTS, RUN_SCALARS, row_axis};
use crate::scheduler::{Batch, Program};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Runs that may be under way before the host waits for the oldest.
const IN_FLIGHT: usize = 3;

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
        if bytes > limits.buffer {
            return Err(Error::budget(format!(
                "session: `{name}` takes {bytes} bytes, the device allows {} in one buffer",
                limits.buffer
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
                let (offset, bytes) = match value.slab {
                    Some(_) => (value.first_byte() as u64, program.bytes(value)),
                    None => (0, p.buffer.size()),
                };
                persistent.insert(at, View { buffer: p.buffer.clone(), offset, bytes });
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

    /// Submits what was written and waits for other commands.
    pub fn flush(&self) {
        self.context.queue.submit([]);
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
