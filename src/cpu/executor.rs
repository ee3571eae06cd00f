//! Prepares and runs programs: what persists, where the values of a program are, what a run must have.

use super::aligned::Aligned;
use super::call::Cached;
use super::lstm_layer::PACKS;
use super::room::Room;
use super::run::Run;
use super::storage::{self, Buffer, Memory, Persistent};
use super::tape::Tape;
use super::threads::alone;
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::graph::{Op, broadcast};
use crate::params::{DType, Tensor};
use crate::scheduler::footprint::{Claim, Meter};
use crate::scheduler::profile::Profile;
use crate::scheduler::program::Storage;
use crate::scheduler::{Action, Batch, Executor, Program, Stage};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::collections::HashMap;
use std::sync::Arc;

/// Multiply-adds, and values that move, that are worth waking a thread up, which takes about ten microseconds.
const WORTH_WAKING: u64 = 500_000;

/// The host processor: its threads, and the values that outlive runs.
#[derive(Debug)]
pub struct Cpu {
    pool: ThreadPool,
    names: HashMap<String, usize>,
    persistents: Vec<Persistent>,
    versions: u64,
    meter: Meter,
    room: Room,
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
    /// Sequences, and of each time axis steps and rows, of the last run.
    sizes: Vec<usize>,
    /// The sizes of every value in the last run, and of those of a part in its last part.
    shapes: Vec<Vec<usize>>,
    part_shapes: Vec<Vec<usize>>,
    /// Whether the last run succeeded; not before the first.
    has_run: bool,
    /// Whether runs of these sizes are too short to wake a thread up.
    is_small: bool,
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
            room: Room::default(),
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
        let (data, claim) = storage::allocate(&self.meter, name, shape.iter().product())?;
        let (_claim, file) = (Some(claim), None);
        let value = Persistent { shape: shape.to_vec(), dtype, data, _claim, file, version: self.version() };
        self.put(name, value);
        Ok(())
    }

    fn put(&mut self, name: &str, value: Persistent) {
        match self.names.get(name) {
            Some(&at) => self.persistents[at] = value,
            None => {
                self.names.insert(name.to_string(), self.persistents.len());
                self.persistents.push(value);
            }
        }
    }

    /// Lets go of a persistent value.
    pub fn release(&mut self, name: &str) {
        if let Some(at) = self.names.remove(name) {
            let (data, version) = (Aligned::zeros(0), self.version());
            let (shape, dtype) = (vec![0], DType::F32);
            self.persistents[at] = Persistent { shape, dtype, data, _claim: None, file: None, version };
        }
    }

    /// Keeps the persistent value `name` in a file, the tensor's own unless runs `change` it; replaces one of that name.
    pub fn wait(&mut self, name: &str, tensor: &Tensor, change: bool) -> Result<()> {
        let (data, file) = storage::wait(tensor, change).map_err(|e| e.within(name))?;
        let (shape, dtype) = (tensor.shape().to_vec(), tensor.dtype());
        let value = Persistent { shape, dtype, data, _claim: None, file, version: self.version() };
        self.put(name, value);
        Ok(())
    }

    /// Whether the persistent value `name` is in a file rather than in memory.
    pub fn waits(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|&at| self.persistents[at]._claim.is_none())
    }

    /// Whether the persistent value `name`, which is in a file, may be changed there.
    pub fn may_change(&self, name: &str) -> bool {
        self.names.get(name).is_some_and(|&at| self.persistents[at].file.is_none())
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
        // Where a file has changed, what is mapped of it cannot even be written to.
        if value.file.is_some() && tensor.len() == value.data.len() {
            (value.data, value.file) = storage::wait(tensor, false)?;
            return Ok(());
        }
        value.file.as_ref().map_or(Ok(()), |file| file.check())?;
        storage::store(tensor, 0, &mut value.data)
    }

    /// The persistent value `name`, whole.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let value = &self.persistents[self.find(name)?];
        value.file.as_ref().map_or(Ok(()), |file| file.check())?;
        storage::load(&value.data, &value.shape, value.dtype)
    }

    /// Makes room for the values of `program`, whose persistent values must be declared, and compiles its expressions.
    pub fn prepare(&mut self, program: &Arc<Program>) -> Result<Prepared> {
        if program.target.executor != Executor::Cpu {
            return Err(Error::argument(format!("cpu: the program is compiled for {:?}", program.target.executor)));
        }
        let (mut arenas, mut _claims) = (Vec::new(), Vec::new());
        for &bytes in &program.placement.arenas {
            let (arena, claim) = storage::allocate(&self.meter, "arena", (bytes as usize).div_ceil(size_of::<f32>()))?;
            arenas.push(arena);
            _claims.push(claim);
        }
        let mut places = Vec::with_capacity(program.values.len());
        let mut away = HashMap::new();
        for at in 0..program.values.len() {
            let root = program.root(at);
            let input = program.inputs.iter().position(|i| i.1 == root).filter(|_| program.given.contains(&root));
            if let Some(input) = input.filter(|_| program.values[root].first != usize::MAX) {
                places.push(Some((Buffer::Input(input), 0)));
                continue;
            }
            if program.values[root].storage == Storage::Own && program.values[root].offloaded {
                let len = program.values[root].shape.fixed_len().unwrap_or(0);
                let arena = match away.get(&root) {
                    Some(&arena) => arena,
                    None => {
                        arenas.push(storage::in_a_file(len).map_err(|e| e.within(&program.values[root].name))?);
                        away.insert(root, arenas.len() - 1);
                        arenas.len() - 1
                    }
                };
                places.push(Some((Buffer::Arena(arena), 0)));
                continue;
            }
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
        let tapes = |stage: &Stage| stage.body.iter().map(|action| compile(program, action)).collect::<Result<_>>();
        let tapes = program.stages.iter().map(tapes).collect::<Result<_>>()?;
        // One more for the steps that share a place.
        let mut packs: Vec<[Cached; PACKS]> = (0..=program.steps.len()).map(|_| Default::default()).collect();
        let shared = program.shared_packs();
        let own =
            program.packs.iter().zip(&program.shares).map(|(sizes, shares)| if *shares { &[][..] } else { sizes });
        for (packs, sizes) in packs.iter_mut().zip(own.chain([&shared[..]])) {
            for (pack, &len) in packs.iter_mut().zip(sizes).filter(|(_, len)| **len > 0) {
                let (data, claim) = storage::allocate(&self.meter, "packed", len)?;
                pack.reserve(data);
                _claims.push(claim);
            }
        }
        let program = Arc::clone(program);
        let shapes = vec![Vec::new(); program.values.len()];
        let part_shapes = shapes.clone();
        let (sizes, has_run, is_small) = (Vec::new(), false, false);
        Ok(Prepared { arenas, program, places, tapes, packs, sizes, shapes, part_shapes, has_run, is_small, _claims })
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
        program.admits(batch)?;
        let scalars = program.scalar_values(batch)?;
        prepared.has_run = false;
        let sizes = batch.axes().iter().flat_map(|axis| [axis.steps(), axis.rows()]);
        let sizes = std::iter::once(batch.sequences()).chain(sizes);
        if !sizes.clone().eq(prepared.sizes.iter().copied()) {
            prepared.sizes.clear();
            for (value, shape) in program.values.iter().zip(&mut prepared.shapes) {
                batch.resolve_into(&value.shape, shape)?;
            }
            let work = program.whole_work(batch)?;
            prepared.is_small = work.flops / 2 + work.bytes / 4 < WORTH_WAKING;
            prepared.sizes.extend(sizes);
        }
        self.check(prepared, inputs)?;
        let changes = self.version();
        let Prepared { arenas, places, tapes, packs, shapes, part_shapes, is_small, .. } = prepared;
        let memory = Memory { inputs, arenas, persistents: &mut self.persistents };
        let watch = self.watch.as_mut();
        let mut run = Run {
            program: &program,
            inputs,
            scalars,
            whole: shapes,
            shapes: part_shapes,
            places,
            memory,
            room: &self.room,
            watch,
        };
        let run = || run.all(batch, tapes, packs);
        let result =
            if *is_small || self.pool.current_num_threads() == 1 { alone(run) } else { self.pool.install(run) };
        for &value in &program.updated {
            if let Some((Buffer::Persistent(at), _)) = prepared.places[value] {
                self.persistents[at].version = changes;
            }
        }
        prepared.has_run = result.is_ok();
        result
    }

    /// Refuses inputs and persistent values that do not fit, and integers out of bounds, before anything has changed.
    fn check(&self, prepared: &Prepared, inputs: &[&Tensor]) -> Result<()> {
        let Prepared { program, shapes, .. } = prepared;
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
                bound.check(name, tensor)?;
            }
        }
        for (value, place) in program.values.iter().zip(&prepared.places) {
            let Some((Buffer::Persistent(at), _)) = place else { continue };
            let file = self.persistents[*at].file.as_ref();
            file.map_or(Ok(()), |file| file.check()).map_err(|e| e.within(&value.name))?;
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
        self.output_with(prepared, index, storage::load)?
    }

    /// What `read` makes of output number `index` of the last run where it is: at least its values, as the floats of their bits,
    /// its shape and type.
    pub fn output_with<R>(
        &self,
        prepared: &Prepared,
        index: usize,
        read: impl FnOnce(&[f32], &[usize], DType) -> R,
    ) -> Result<R> {
        let program = &prepared.program;
        let (name, value) = program
            .outputs
            .get(index)
            .ok_or_else(|| Error::argument(format!("cpu: the program has no output {index}")))?;
        if !prepared.has_run {
            return Err(Error::argument(format!("cpu: output `{name}` is read before a run has succeeded")));
        }
        let shape = &prepared.shapes[*value];
        let (buffer, offset) =
            prepared.places[*value].ok_or_else(|| Error::internal(format!("cpu: output `{name}` has no place")))?;
        let data = match buffer {
            Buffer::Arena(a) => &prepared.arenas[a],
            Buffer::Persistent(p) => &self.persistents[p].data,
            Buffer::Input(_) => return Err(Error::internal(format!("cpu: output `{name}` is not kept"))),
        };
        Ok(read(&data[offset..], shape, program.values[*value].dtype))
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
