//! Persistent values on a GPU, and programs made ready over them.

use super::adapter::Context;
use super::kernels::{self, Runner};
use super::pipeline::{Binding, Constants, Kernel, Pipelines};
use super::reading::{Reading, Staging};
use super::record::{Launch, Recorder, SLOTS, View, slot_bytes};
use super::upload::{Indices, Layout};
use crate::error::{Error, Result};
use crate::graph::{Dim, Shape};
use crate::params::{DType, Tensor};
use crate::scheduler::program::Storage;
use crate::scheduler::strategy::row_axis;
use crate::scheduler::{Axis, Batch, Program};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Scalars that one run may have.
const SCALARS: usize = 64;

/// Runs that may be under way before the host waits for the oldest.
const IN_FLIGHT: usize = 3;

struct Persistent {
    buffer: wgpu::Buffer,
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
    nothing: [wgpu::Buffer; 2],
    params: wgpu::Buffer,
    under_way: VecDeque<wgpu::SubmissionIndex>,
    submissions: u64,
}

/// A program made ready: memory, pipelines and bind groups.
pub struct Prepared {
    program: Arc<Program>,
    values: Values,
    steps: Vec<PreparedStep>,
    run_scalars: wgpu::Buffer,
    table: wgpu::Buffer,
    uploaded_table: Vec<u32>,
    indices: Indices,
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
    made_from: Option<Vec<u64>>,
}

/// Where the values of a program are.
pub(super) struct Values {
    pub program: Arc<Program>,
    arenas: Vec<wgpu::Buffer>,
    persistent: BTreeMap<usize, (wgpu::Buffer, u64)>,
    axis_rows: BTreeMap<u8, usize>,
}

impl Values {
    pub fn shape(&self, value: usize) -> &Shape {
        &self.program.values[value].shape
    }

    /// The number that dimension `at` of `value` is; kernels ask only for those that shape rules have made numbers.
    pub fn fixed(&self, value: usize, at: usize) -> Result<usize> {
        match self.shape(value).0.get(at) {
            Some(Dim::Fixed(n)) => Ok(*n),
            _ => Err(Error::internal(format!("`{}` has no fixed size {at}", self.program.values[value].name))),
        }
    }

    /// Values in one row of `value`.
    pub fn row_len(&self, value: usize) -> Result<usize> {
        let len = self.shape(value).row_len();
        len.ok_or_else(|| Error::internal(format!("`{}` has no fixed row", self.program.values[value].name)))
    }

    /// Rows of a piece of every value on the axis.
    pub fn piece_rows(&self, axis: Option<u8>) -> usize {
        axis.and_then(|a| self.axis_rows.get(&a).copied()).unwrap_or(usize::MAX)
    }

    /// How many pieces the values on the axis have.
    pub fn pieces(&self, axis: Option<u8>) -> usize {
        let rows = axis.and_then(|a| self.program.capacity.axes.get(a as usize)).map_or(1, |a| a.1.max(1));
        rows.div_ceil(self.piece_rows(axis))
    }

    /// The part of `value` that `piece` holds.
    pub fn view(&self, value: usize, piece: usize) -> Result<View> {
        let root = self.program.root(value);
        if let Some((buffer, bytes)) = self.persistent.get(&root) {
            let axis = row_axis(self.shape(root));
            let rows = self.piece_rows(axis);
            if rows == usize::MAX {
                return Ok(View { buffer: buffer.clone(), offset: 0, bytes: *bytes });
            }
            let piece_bytes = 4 * rows as u64 * self.row_len(root)? as u64;
            let offset = piece as u64 * piece_bytes;
            return Ok(View { buffer: buffer.clone(), offset, bytes: piece_bytes.min(bytes - offset) });
        }
        let place = self.program.placement.places.get(&root);
        let place = place.ok_or_else(|| Error::internal(format!("value {root} has no place")))?;
        let (arena, offset) =
            *place.pieces.get(piece).ok_or_else(|| Error::internal(format!("value {root} has no piece {piece}")))?;
        Ok(View { buffer: self.arenas[arena].clone(), offset, bytes: place.piece_bytes })
    }

    /// All of a value's pieces, cut to `rows` rows.
    fn rows_of(&self, value: usize, rows: usize) -> Result<Vec<View>> {
        let row_bytes = 4 * self.row_len(value)?.max(1) as u64;
        let piece = self.piece_rows(row_axis(self.shape(value)));
        (0..rows.div_ceil(piece.min(rows.max(1))))
            .map(|p| {
                let view = self.view(value, p)?;
                let here = (rows - p * piece.min(rows)).min(piece);
                Ok(View { bytes: (here as u64 * row_bytes).min(view.bytes), ..view })
            })
            .collect()
    }
}

/// What a launcher needs to make bind groups.
pub(super) struct Preparer<'a> {
    pub context: &'a Context,
    pub values: &'a Values,
    pipelines: &'a mut Pipelines,
    nothing: &'a [wgpu::Buffer; 2],
    params: &'a wgpu::Buffer,
    run_scalars: &'a wgpu::Buffer,
    table: &'a wgpu::Buffer,
}

impl Preparer<'_> {
    /// What the batch says of `axis`, or of the first: see [`Layout`].
    pub fn table(&self, axis: Option<u8>) -> View {
        let layout = Layout::of(&self.values.program);
        let (first, words) = layout.region(axis.unwrap_or(0));
        View { buffer: self.table.clone(), offset: 4 * first as u64, bytes: 4 * words as u64 }
    }

    /// [`Self::table`] of all axes.
    pub fn tables(&self) -> View {
        View { buffer: self.table.clone(), offset: 0, bytes: 4 * Layout::of(&self.values.program).words() as u64 }
    }

    /// `kernel` over `views`, one for each of its storage bindings; `None` where an optional value is absent.
    pub fn launch(&mut self, kernel: &'static Kernel, views: &[Option<View>]) -> Result<Launch> {
        self.launch_with(kernel, "", None, &Constants::new(), views)
    }

    /// [`Self::launch`] with a prelude that declares bindings of its own, and with constants.
    pub fn launch_with(
        &mut self,
        kernel: &'static Kernel,
        prelude: &str,
        bindings: Option<Vec<Binding>>,
        constants: &Constants,
        views: &[Option<View>],
    ) -> Result<Launch> {
        let pipeline = self.pipelines.get(self.context, kernel, prelude, bindings, constants)?;
        let mut views = views.iter();
        let mut entries = Vec::with_capacity(pipeline.bindings.len());
        for (at, binding) in pipeline.bindings.iter().enumerate() {
            let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
            let part = match binding {
                Binding::Params => wgpu::BufferBinding {
                    buffer: self.params,
                    offset: 0,
                    size: wgpu::BufferSize::new(pipeline.params.next_multiple_of(16)),
                },
                Binding::Run => whole(self.run_scalars),
                Binding::Absent => continue,
                Binding::Read | Binding::Write => match views.next() {
                    Some(Some(v)) => wgpu::BufferBinding {
                        buffer: &v.buffer,
                        offset: v.offset,
                        size: wgpu::BufferSize::new(v.bytes.max(4)),
                    },
                    Some(None) => whole(&self.nothing[usize::from(*binding == Binding::Write)]),
                    None => return Err(Error::internal(format!("kernel {}: too few values", pipeline.label))),
                },
            };
            entries.push(wgpu::BindGroupEntry { binding: at as u32, resource: wgpu::BindingResource::Buffer(part) });
        }
        let bind_group = self.context.buffers.bind_group(&wgpu::BindGroupDescriptor {
            label: Some(pipeline.label),
            layout: &pipeline.layout,
            entries: &entries,
        });
        self.context.check().map_err(|e| e.within(pipeline.label))?;
        Ok(Launch { pipeline, bind_group })
    }
}

/// What a launcher needs to record a run.
pub(super) struct Run<'a> {
    pub values: &'a Values,
    pub batch: &'a Batch,
}

impl Run<'_> {
    /// The rows of `value` in this run.
    pub fn rows(&self, value: usize) -> Result<usize> {
        match self.values.shape(value).rows() {
            Some(dim) => self.batch.size(dim),
            None => Ok(1),
        }
    }

    /// Where the lengths of the sequences on `axis` begin in its table.
    pub fn lengths(&self, axis: u8) -> u32 {
        Layout::of(&self.values.program).lengths(axis) as u32
    }

    /// Where the place of each of the batch's rows on `axis` begins in its table.
    pub fn places(&self, axis: u8) -> u32 {
        Layout::of(&self.values.program).places(axis) as u32
    }

    /// Where what the table says of each axis lies.
    pub fn layout(&self) -> Layout<'_> {
        Layout::of(&self.values.program)
    }

    /// The time axis numbered `axis`, T, and where its first rows begin in its table.
    pub fn axis(&self, axis: Option<u8>) -> Result<(Option<&Axis>, u32, u32)> {
        let Some(a) = axis else { return Ok((None, 0, 0)) };
        let here = self.batch.axis(a)?;
        Ok((Some(here), here.steps() as u32, Layout::of(&self.values.program).offsets() as u32))
    }

    /// The pieces that hold the first `rows` rows: number, first row, one past the last.
    pub fn pieces(
        &self,
        axis: Option<u8>,
        rows: usize,
    ) -> impl DoubleEndedIterator<Item = (usize, usize, usize)> + use<> {
        let piece = self.values.piece_rows(axis).min(rows.max(1));
        (0..rows.div_ceil(piece)).map(move |p| (p, p * piece, ((p + 1) * piece).min(rows)))
    }
}

impl Gpu {
    /// No values yet.
    pub fn new(context: Arc<Context>) -> Result<Self> {
        let nothing = [context.buffers.storage("nothing", 256)?, context.buffers.storage("nothing", 256)?];
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let params = context.buffers.create("params", SLOTS as u64 * slot_bytes(&context), uniform)?;
        Ok(Self {
            context,
            staging: Arc::default(),
            pipelines: Pipelines::default(),
            persistent: BTreeMap::new(),
            nothing,
            params,
            under_way: VecDeque::new(),
            submissions: 0,
        })
    }

    /// Makes a persistent value of zeros, in place of one of that name.
    pub fn declare(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        let bytes = 4 * shape.iter().product::<usize>() as u64;
        let limits = self.context.target().limits;
        if bytes > limits.binding.min(limits.buffer) {
            return Err(Error::device(format!(
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

    /// Begins to read a persistent value as it is after all runs so far.
    pub fn begin_read(&mut self, name: &str) -> Result<Reading> {
        let missing = || Error::argument(format!("session: there is no value `{name}`"));
        let p = self.persistent.get(name).ok_or_else(missing)?;
        let view = View { buffer: p.buffer.clone(), offset: 0, bytes: p.buffer.size() };
        Reading::begin(&self.context, &self.staging, &[view], &p.shape, p.dtype)
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
        let table = self.context.buffers.storage("table", 4 * Layout::of(program).words() as u64)?;
        let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let run_scalars = self.context.buffers.create("scalars", 4 * SCALARS as u64, uniform)?;
        if program.scalars.len() > SCALARS {
            return Err(Error::unsupported(format!("program: more than {SCALARS} scalars")));
        }
        let mut preparer = Preparer {
            context: &self.context,
            values: &values,
            pipelines: &mut self.pipelines,
            nothing: &self.nothing,
            params: &self.params,
            run_scalars: &run_scalars,
            table: &table,
        };
        let mut steps = Vec::with_capacity(program.steps.len());
        for at in 0..program.steps.len() {
            let prepared = prepare_step(&mut preparer, at).map_err(|e| e.within(program.steps[at].op.name()))?;
            steps.push(prepared);
        }
        Ok(Prepared {
            indices: Indices::of(program)?,
            program: Arc::clone(program),
            values,
            steps,
            run_scalars,
            table,
            uploaded_table: Vec::new(),
            last: None,
        })
    }

    fn values(&self, program: &Arc<Program>, arenas: Vec<wgpu::Buffer>) -> Result<Values> {
        let mut persistent = BTreeMap::new();
        let mut axis_rows = BTreeMap::new();
        for (at, value) in program.values.iter().enumerate() {
            if value.storage == Storage::Persistent {
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

    /// Uploads what the run needs, records it and submits it.
    pub fn run(&mut self, prepared: &mut Prepared, batch: &Batch, inputs: &[&Tensor]) -> Result<()> {
        self.context.check()?;
        let program = Arc::clone(&prepared.program);
        self.upload(prepared, batch, inputs)?;
        let versions: BTreeMap<&str, u64> = self.persistent.iter().map(|(n, p)| (n.as_str(), p.version)).collect();
        let run = Run { values: &prepared.values, batch };
        let mut recorder = Recorder::new(&self.context);
        for step in &mut prepared.steps {
            for pack in &mut step.packs {
                let now: Option<Vec<u64>> =
                    pack.sources.iter().map(|s| s.as_deref().and_then(|s| versions.get(s)).copied()).collect();
                if now.is_none() || now != pack.made_from {
                    pack.runner.record(&run, &mut recorder)?;
                }
                pack.made_from = now;
            }
            step.runner.record(&run, &mut recorder)?;
        }
        for &(to, from) in &program.copies {
            let from = prepared.values.rows_of(from, run.rows(from)?)?;
            let to = prepared.values.rows_of(to, run.rows(to)?)?;
            from.into_iter().zip(to).for_each(|(from, to)| recorder.copy(from, to));
        }
        let (submission, count) = recorder.submit(&self.context, &self.params)?;
        self.submissions += count as u64;
        self.under_way.extend(submission);
        for &value in &program.updated {
            if let Some(p) = self.persistent.get_mut(&program.values[value].name) {
                p.version += 1;
            }
        }
        prepared.last = Some(batch.clone());
        Ok(())
    }

    fn upload(&self, prepared: &mut Prepared, batch: &Batch, inputs: &[&Tensor]) -> Result<()> {
        let program = &prepared.program;
        let queue = &self.context.queue;
        for ((_, value), tensor) in program.inputs.iter().zip(inputs) {
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
        let table = Layout::of(program).fill(batch)?;
        if table != prepared.uploaded_table {
            queue.write_buffer(&prepared.table, 0, bytemuck::cast_slice(&table));
            prepared.uploaded_table = table;
        }
        for (value, words) in prepared.indices.words(program, batch, inputs)? {
            let mut at = 0;
            let rows = program.values[value].shape.rows().map_or(Ok(1), |rows| batch.size(rows))?;
            for view in prepared.values.rows_of(value, rows)? {
                let words = &words[at..at + view.bytes as usize / 4];
                queue.write_buffer(&view.buffer, view.offset, bytemuck::cast_slice(words));
                at += words.len();
            }
        }
        Ok(())
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

fn prepare_step(preparer: &mut Preparer<'_>, at: usize) -> Result<PreparedStep> {
    let program = Arc::clone(&preparer.values.program);
    let step = &program.steps[at];
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
        packs.push(Pack { runner, sources, made_from: None });
    }
    Ok(PreparedStep { packs, runner })
}

fn bytes_of(tensor: &Tensor) -> Result<&[u8]> {
    Ok(match tensor.dtype() {
        DType::F32 => bytemuck::cast_slice(tensor.f32s()?),
        DType::U32 => bytemuck::cast_slice(tensor.u32s()?),
    })
}
