//! Prepares and runs programs: where values are, which operation runs, what persists.

use super::aligned::Aligned;
use super::call::{Cached, Call, Operand};
use super::dropout::{RowKind, dropout};
use super::elementwise::elementwise;
use super::lstm_backward::lstm_backward;
use super::lstm_forward::lstm_forward;
use super::lstm_layer::PACKS;
use super::storage::{self, Buffer, Memory, Persistent, Place};
use super::tape::Tape;
use super::watch::Watch;
use super::{attention, columns, gather, products, reduce, rows, softmax, time};
use crate::error::{Error, Result};
use crate::graph::lstm::forward;
use crate::graph::{Dim, Op, Symbol, broadcast};
use crate::params::{DType, Tensor};
use crate::scheduler::footprint::{Claim, Meter};
use crate::scheduler::profile::Profile;
use crate::scheduler::program::{Storage, root};
use crate::scheduler::strategy::row_axis;
use crate::scheduler::{Action, Batch, Executor, Move, Part, Program, Side, Stage, Step};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// The host processor: its threads, and the values that outlive runs.
#[derive(Debug)]
pub struct Cpu {
    pool: ThreadPool,
    names: HashMap<String, usize>,
    persistents: Vec<Persistent>,
    versions: u64,
    meter: Meter,
    watch: Option<Watch>,
}

/// A program with its memory; runs on the [`Cpu`] that prepared it.
#[derive(Debug)]
pub struct Prepared {
    program: Arc<Program>,
    arenas: Vec<Aligned>,
    /// For each value the buffer and first element of its storage.
    places: Vec<Option<(Buffer, usize)>>,
    /// For each action of each stage its compiled expressions.
    tapes: Vec<Vec<Option<Tape>>>,
    /// Packed operands of each step.
    packs: Vec<[Cached; PACKS]>,
    /// The sizes of every value in the last run; empty before the first.
    shapes: Vec<Vec<usize>>,
    _claims: Vec<Claim>,
}

impl Cpu {
    /// A processor with `threads` threads, or as many as the system offers.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        if threads == Some(0) {
            return Err(Error::argument("cpu: at least 1 thread is needed, got 0"));
        }
        super::simd::name()?;
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let name = |i| format!("mnemon-cpu-{i}");
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build();
        let pool = pool.map_err(|e| Error::device(format!("cpu: cannot start {threads} threads: {e}")))?;
        Ok(Self {
            pool,
            names: HashMap::new(),
            persistents: Vec::new(),
            versions: 0,
            meter: Meter::default(),
            watch: None,
        })
    }

    /// Notes what the next run does.
    pub fn begin_profile(&mut self) {
        self.watch = Some(Watch::new());
    }

    /// What the run that was profiled did.
    pub fn take_profile(&mut self) -> Profile {
        let device = self.watch.take().map(|watch| watch.spans).unwrap_or_default();
        Profile { device, ..Profile::default() }
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    fn find(&self, name: &str) -> Result<usize> {
        let at = self.names.get(name).copied();
        at.ok_or_else(|| Error::argument(format!("cpu: no value called `{name}` is declared")))
    }

    /// Makes room for the persistent value `name`, filled by zeros; replaces an older one of that name.
    pub fn declare(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        let (data, _claim) = storage::allocate(&self.meter, name, shape.iter().product())?;
        let value = Persistent { shape: shape.to_vec(), dtype, data, _claim, version: self.version() };
        match self.names.get(name) {
            Some(&at) => self.persistents[at] = value,
            None => {
                self.names.insert(name.to_string(), self.persistents.len());
                self.persistents.push(value);
            }
        }
        Ok(())
    }

    /// Counts the bytes of all values and of what is packed.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Sets the first values of the persistent value `name` to those of `tensor`.
    pub fn write(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let at = self.find(name)?;
        let version = self.version();
        let value = &mut self.persistents[at];
        if tensor.len() > value.data.len() || tensor.dtype() != value.dtype {
            return Err(Error::shape(format!(
                "cpu: `{name}` holds {:?} of {:?}, cannot take {:?} of {:?}",
                value.dtype,
                value.shape,
                tensor.dtype(),
                tensor.shape()
            )));
        }
        value.version = version;
        storage::store(tensor, 0, &mut value.data)
    }

    /// The persistent value `name`, whole.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let value = &self.persistents[self.find(name)?];
        storage::load(&value.data, &value.shape, value.dtype)
    }

    /// Makes room for the values of `program`, whose persistent values must be declared, and compiles its expressions.
    pub fn prepare(&mut self, program: &Arc<Program>) -> Result<Prepared> {
        if program.target.executor != Executor::Cpu {
            return Err(Error::argument(format!("cpu: the program is compiled for {:?}", program.target.executor)));
        }
        let mut places = Vec::with_capacity(program.values.len());
        for at in 0..program.values.len() {
            let root = program.root(at);
            places.push(match (program.values[root].storage, program.placement.places.get(&root)) {
                (Storage::Persistent, _) => Some((Buffer::Persistent(self.find(&program.values[root].name)?), 0)),
                (_, None) => None,
                (_, Some(place)) => match place.pieces.as_slice() {
                    [(arena, offset)] => Some((Buffer::Arena(*arena), *offset as usize / size_of::<f32>())),
                    pieces => {
                        let name = &program.values[root].name;
                        return Err(Error::unsupported(format!("cpu: `{name}` has {} pieces", pieces.len())));
                    }
                },
            });
        }
        let (mut arenas, mut _claims) = (Vec::new(), Vec::new());
        for &bytes in &program.placement.arenas {
            let (arena, claim) = storage::allocate(&self.meter, "arena", (bytes as usize).div_ceil(size_of::<f32>()))?;
            arenas.push(arena);
            _claims.push(claim);
        }
        let tapes = |stage: &Stage| stage.body.iter().map(|action| compile(program, action)).collect::<Result<_>>();
        let tapes = program.stages.iter().map(tapes).collect::<Result<_>>()?;
        let mut packs: Vec<[Cached; PACKS]> = program.steps.iter().map(|_| Default::default()).collect();
        for (packs, sizes) in packs.iter_mut().zip(&program.packs) {
            for (pack, &len) in packs.iter_mut().zip(sizes).filter(|(_, len)| **len > 0) {
                let (data, claim) = storage::allocate(&self.meter, "packed", len)?;
                pack.reserve(data);
                _claims.push(claim);
            }
        }
        let program = Arc::clone(program);
        Ok(Prepared { arenas, program, places, tapes, packs, shapes: Vec::new(), _claims })
    }

    /// Runs the program on `batch` with `inputs` in the order of [`Program::inputs`], packed.
    pub fn run<V: std::borrow::Borrow<Tensor>>(
        &mut self,
        prepared: &mut Prepared,
        batch: &Batch,
        inputs: &[V],
    ) -> Result<()> {
        let inputs: &[&Tensor] = &inputs.iter().map(std::borrow::Borrow::borrow).collect::<Vec<_>>();
        let program = Arc::clone(&prepared.program);
        program.capacity.admits(batch)?;
        let scalars = program.scalar_values(batch)?;
        prepared.shapes.clear();
        let shapes = program.values.iter().map(|v| batch.resolve(&v.shape)).collect::<Result<Vec<_>>>()?;
        self.check(prepared, &shapes, inputs)?;
        let changes = self.version();
        let Prepared { arenas, places, tapes, packs, .. } = prepared;
        let memory = Memory { arenas, persistents: &mut self.persistents };
        let mut run = Run {
            program: &program,
            inputs,
            scalars,
            shapes: shapes.clone(),
            places,
            memory,
            watch: self.watch.as_mut(),
        };
        let result = self.pool.install(|| {
            run.give()?;
            for (stage, tapes) in program.stages.iter().zip(tapes) {
                stage.for_parts(batch, |part| run.part(stage, part, tapes, packs))?;
            }
            run.copy(&shapes)
        });
        for &value in &program.updated {
            if let Some((Buffer::Persistent(at), _)) = prepared.places[value] {
                self.persistents[at].version = changes;
            }
        }
        result?;
        prepared.shapes = shapes;
        Ok(())
    }

    /// Refuses inputs and persistent values that do not fit, and integers out of bounds, before anything has changed.
    fn check(&self, prepared: &Prepared, shapes: &[Vec<usize>], inputs: &[&Tensor]) -> Result<()> {
        let program = &*prepared.program;
        if inputs.len() != program.inputs.len() {
            return Err(Error::argument(format!(
                "cpu: expected {} inputs, got {}",
                program.inputs.len(),
                inputs.len()
            )));
        }
        for ((name, value), tensor) in program.inputs.iter().zip(inputs) {
            let dtype = program.values[*value].dtype;
            if tensor.shape() != shapes[*value] || tensor.dtype() != dtype {
                return Err(Error::shape(format!(
                    "cpu: input `{name}`: expected {dtype:?} of {:?}, got {:?} of {:?}",
                    shapes[*value],
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            for bound in program.bounds.iter().filter(|b| program.root(b.value) == *value) {
                let wrong = tensor.u32s()?.iter().find(|&&x| x as usize >= bound.below && Some(x) != bound.except);
                if let Some(wrong) = wrong {
                    return Err(Error::argument(format!(
                        "{}: `{name}` must be below {}, got {wrong}",
                        bound.reader, bound.below
                    )));
                }
            }
        }
        for (value, place) in program.values.iter().zip(&prepared.places).zip(shapes).map(|((v, p), s)| ((v, s), *p)) {
            let ((value, shape), Some((Buffer::Persistent(at), _))) = (value, place) else { continue };
            let held = &self.persistents[at];
            if held.data.len() < shape.iter().product() || held.dtype != value.dtype {
                return Err(Error::shape(format!(
                    "cpu: `{}` needs {:?} of {shape:?}, declared are {:?} of {:?}",
                    value.name, value.dtype, held.dtype, held.shape
                )));
            }
        }
        Ok(())
    }

    /// Output number `index` of the last run, packed.
    pub fn output(&self, prepared: &Prepared, index: usize) -> Result<Tensor> {
        let program = &prepared.program;
        let (name, value) = program
            .outputs
            .get(index)
            .ok_or_else(|| Error::argument(format!("cpu: the program has no output {index}")))?;
        let shape = prepared
            .shapes
            .get(*value)
            .ok_or_else(|| Error::argument(format!("cpu: output `{name}` is read before a run has succeeded")))?;
        let (buffer, offset) =
            prepared.places[*value].ok_or_else(|| Error::internal(format!("cpu: output `{name}` has no place")))?;
        let data = match buffer {
            Buffer::Arena(a) => &prepared.arenas[a],
            Buffer::Persistent(p) => &self.persistents[p].data,
        };
        storage::load(&data[offset..], shape, program.values[*value].dtype)
    }
}

/// The compiled expressions of an elementwise step, of those outputs that are wanted.
fn compile(program: &Program, action: &Action) -> Result<Option<Tape>> {
    let Action::Step(step) = action else { return Ok(None) };
    let Op::Elementwise { exprs } = &step.op else { return Ok(None) };
    let Some(&shape) = step.outputs.iter().flatten().next() else { return Ok(Some(Tape::default())) };
    let shape = &program.values[shape].shape;
    let spreads = step.inputs.iter().map(|input| {
        let input = input.map(|i| &program.values[i].shape);
        input.and_then(|i| broadcast(shape, i)).ok_or_else(|| Error::internal("an input does not spread"))
    });
    let wanted: Vec<_> = exprs.iter().zip(&step.outputs).filter(|(_, o)| o.is_some()).map(|(e, _)| e).collect();
    Tape::compile(&wanted, &spreads.collect::<Result<Vec<_>>>()?, &|e| program.scalar_index(e)).map(Some)
}

/// One run.
struct Run<'a> {
    program: &'a Program,
    inputs: &'a [&'a Tensor],
    scalars: Vec<f32>,
    /// The sizes of every value, of those of a part in the part that runs.
    shapes: Vec<Vec<usize>>,
    places: &'a [Option<(Buffer, usize)>],
    memory: Memory<'a>,
    watch: Option<&'a mut Watch>,
}

impl Run<'_> {
    fn place(&self, value: usize) -> Result<Place> {
        let (buffer, offset) = self.places[value]
            .ok_or_else(|| Error::internal(format!("cpu: `{}` has no place", self.program.values[value].name)))?;
        Ok(Place { buffer, offset, len: self.shapes[value].iter().product() })
    }

    /// Stores the inputs that are held whole.
    fn give(&mut self) -> Result<()> {
        for ((_, value), tensor) in self.program.inputs.iter().zip(self.inputs) {
            if self.places[*value].is_none() {
                continue;
            }
            let place = self.place(*value)?;
            storage::store(tensor, 0, self.memory.write(place)?)?;
        }
        Ok(())
    }

    /// Gives persistent values what they take at the end of a run.
    fn copy(&mut self, shapes: &[Vec<usize>]) -> Result<()> {
        self.shapes.clone_from_slice(shapes);
        // All sources are read before any is overwritten: values may change places.
        let mut copies = Vec::with_capacity(self.program.copies.len());
        for &(persistent, source) in &self.program.copies {
            copies.push((persistent, self.memory.read(self.place(source)?)?.to_vec()));
        }
        for (persistent, values) in copies {
            let place = self.place(persistent)?;
            self.memory.write(place)?.copy_from_slice(&values);
        }
        Ok(())
    }

    fn part(
        &mut self,
        stage: &Stage,
        part: &Part<'_>,
        tapes: &[Option<Tape>],
        packs: &mut [[Cached; PACKS]],
    ) -> Result<()> {
        for (value, shape) in self.program.values.iter().zip(&mut self.shapes).filter(|(v, _)| v.cut == stage.cut) {
            shape.clear();
            for dim in &value.shape.0 {
                shape.push(part.batch.size(dim)?);
            }
        }
        for m in stage.before.iter().filter(|_| part.begins) {
            self.transfer(m, part)?;
        }
        for (action, tape) in stage.body.iter().zip(tapes) {
            match action {
                Action::Move(m) => self.transfer(m, part)?,
                Action::Step(step) => {
                    let begin = self.watch.as_ref().map(|watch| watch.now());
                    let run = self.step(step, part, tape.as_ref(), &mut packs[step.number]);
                    run.map_err(|e| e.within(step.op.name()))?;
                    self.watch.iter_mut().zip(begin).for_each(|(watch, begin)| watch.note(step, begin));
                }
            }
        }
        for m in stage.after.iter().filter(|_| part.ends) {
            self.transfer(m, part)?;
        }
        Ok(())
    }

    /// Copies values from one side to the other.
    fn transfer(&mut self, m: &Move, part: &Part<'_>) -> Result<()> {
        let to = self.ranges(m.to, part)?;
        let Some(target) = m.to.value() else { return Err(Error::internal("cpu: a move leads nowhere")) };
        let (buffer, offset) = self.places[target].ok_or_else(|| Error::internal("cpu: a move leads nowhere"))?;
        let whole = Place { buffer, offset, len: 0 };
        let mut taken = self.memory.take(&[Some(whole)]);
        let result =
            taken.get_mut(&buffer).ok_or_else(|| Error::internal("cpu: a buffer is missing")).and_then(|data| {
                let mut targets = to.iter().map(|r| offset + r.start..offset + r.end);
                match m.from {
                    Side::Zero => targets.for_each(|r| data[r].fill(0.0)),
                    Side::Input(at) => {
                        let columns =
                            self.inputs[at].len() / self.inputs[at].shape().first().copied().unwrap_or(1).max(1);
                        let rows = part.rows(&self.program.values[self.program.inputs[at].1].shape)?;
                        let mut to = targets.next().unwrap_or(0..0).start;
                        for rows in rows {
                            let n = rows.len() * columns;
                            storage::store(self.inputs[at], rows.start * columns, &mut data[to..to + n])?;
                            to += n;
                        }
                    }
                    Side::Whole(source) | Side::Part(source) | Side::Slot(source) => {
                        let (from, start) =
                            self.places[source].ok_or_else(|| Error::internal("cpu: a move from nowhere"))?;
                        let ranges = self.ranges(m.from, part)?.into_iter();
                        let place = |r: Range<usize>| Place { buffer: from, offset: start + r.start, len: r.len() };
                        let mut sources = ranges.map(|r| self.memory.read(place(r)));
                        let mut values: &[f32] = &[];
                        for range in targets {
                            let mut target = &mut data[range];
                            while !target.is_empty() {
                                if values.is_empty() {
                                    let short = || Err(Error::internal("cpu: a move has too few values"));
                                    values = sources.next().unwrap_or_else(short)?;
                                }
                                let n = target.len().min(values.len());
                                let (now, later) = std::mem::take(&mut target).split_at_mut(n);
                                now.copy_from_slice(&values[..n]);
                                (target, values) = (later, &values[n..]);
                            }
                        }
                    }
                }
                Ok(())
            });
        self.memory.put(taken);
        result
    }

    /// The values of one side of a move, as ranges of its storage.
    fn ranges(&self, side: Side, part: &Part<'_>) -> Result<Vec<Range<usize>>> {
        Ok(match side {
            Side::Zero | Side::Input(_) => Vec::new(),
            Side::Whole(v) => std::iter::once(0..self.shapes[v].iter().product()).collect(),
            Side::Part(v) => {
                let columns: usize = self.shapes[v].iter().skip(1).product();
                let rows = part.rows(&self.program.values[v].shape)?;
                rows.into_iter().map(|r| r.start * columns..r.end * columns).collect()
            }
            Side::Slot(v) => {
                let (slot, row): (usize, usize) = (self.shapes[v].iter().skip(1).product(), self.shapes[v][2]);
                let first = part.slot * slot;
                std::iter::once(first..first + part.batch.sequences() * row).collect()
            }
        })
    }

    fn step(&mut self, step: &Step, part: &Part<'_>, tape: Option<&Tape>, packs: &mut [Cached]) -> Result<()> {
        if matches!(step.op, Op::View { .. }) {
            return Ok(());
        }
        let places = step.outputs.iter().map(|o| o.map(|o| self.place(o)).transpose()).collect::<Result<Vec<_>>>()?;
        let mut taken = self.memory.take(&places);
        let result = storage::carve(&mut taken, &places).and_then(|outputs| {
            let inputs = step.inputs.iter().map(|i| i.map(|i| self.operand(i, step)).transpose());
            let inputs = inputs.collect::<Result<Vec<_>>>()?;
            let continues = step.accumulates && part.continues;
            let gates = if matches!(step.op, Op::Lstm(_)) { step.outputs[forward::GATES] } else { None };
            let saves = gates.is_some() && self.program.stage_steps().any(|s| s.inputs.contains(&gates));
            let mut call = Call { inputs, outputs, batch: part.batch, scalars: &self.scalars, packs, continues, saves };
            self.dispatch(step, tape, &mut call)
        });
        self.memory.put(taken);
        result
    }

    /// The input `value` of `step`, whose outputs' buffers are taken.
    fn operand(&self, value: usize, step: &Step) -> Result<Operand<'_>> {
        let root = |v: usize| root(&self.program.values, v);
        let same = |o: &Option<usize>| o.is_some_and(|o| root(o) == root(value));
        let in_place_of = step.outputs.iter().position(same);
        let place = self.place(value)?;
        let data = if in_place_of.is_some() { None } else { Some(self.memory.read(place)?) };
        let version = match place.buffer {
            Buffer::Persistent(at) => Some(self.memory.persistents[at].version),
            Buffer::Arena(_) => None,
        };
        let axis = row_axis(&self.program.values[value].shape);
        Ok(Operand { data, shape: self.shapes[value].clone(), axis, version, in_place_of })
    }

    fn dispatch(&self, step: &Step, tape: Option<&Tape>, call: &mut Call<'_>) -> Result<()> {
        let kind = || {
            let rows = step.inputs[0].and_then(|x| self.program.values[x].shape.rows().cloned());
            match rows {
                Some(Dim::Symbol(Symbol::Rows(axis))) => RowKind::Axis(axis),
                Some(Dim::Symbol(Symbol::Batch)) => RowKind::Batch,
                _ => RowKind::Fixed,
            }
        };
        match &step.op {
            Op::Lstm(op) => lstm_forward(call, op),
            Op::LstmBackward(op) => lstm_backward(call, op),
            Op::LstmWeightGradient { part, direction, lstm } => {
                products::lstm_weight_gradient(call, *part, *direction, lstm)
            }
            Op::Linear => products::linear(call),
            Op::MatMul => products::matmul(call),
            Op::LstmInputGradient { .. } => products::lstm_input_gradient(call),
            Op::WeightGradient => products::weight_gradient(call),
            Op::Embedding => rows::embedding(call),
            Op::EmbeddingBackward { rows } => rows::embedding_backward(call, *rows),
            Op::Dropout { rate, operation, mask } => dropout(call, *rate, *operation, *mask, kind()),
            Op::Elementwise { .. } => {
                let output = step.outputs.iter().flatten().next().copied();
                let columns = output.map_or(1, |o| self.shapes[o].iter().skip(1).product());
                let tape = tape.ok_or_else(|| Error::internal("the expressions are not compiled"))?;
                elementwise(call, tape, columns)
            }
            Op::Reduce { kind, over } => reduce::reduce(call, *kind, *over),
            Op::CrossEntropy { ignore } => softmax::cross_entropy(call, *ignore),
            Op::CrossEntropyBackward { ignore } => softmax::cross_entropy_backward(call, *ignore),
            Op::Softmax => softmax::softmax(call),
            Op::OverTime { kind } => time::over_time(call, *kind),
            Op::Attention(op) => attention::attention(call, op),
            Op::AttentionBackward { attention: op, part } => attention::attention_backward(call, op, *part),
            Op::Gather(gather) => {
                let shape = |value: Option<usize>| value.map(|v| &self.program.values[v].shape);
                let (x, y) = (shape(step.inputs[0]), shape(step.outputs[0]));
                let (x, y) = x.zip(y).ok_or_else(|| Error::internal("nobody wants the output"))?;
                gather::gather(call, gather, x, y)
            }
            Op::Concat => columns::concat(call),
            Op::Slice { first, .. } => columns::slice(call, *first),
            Op::Pad { before, .. } => columns::pad(call, *before),
            Op::ArgMax => rows::argmax(call),
            Op::View { .. } => Ok(()),
        }
    }
}
