//! Sessions: values that outlive runs, on one device, and programs over them.

use super::budget::{Budget, Held};
use super::registry::{Registry, held};
use super::{Choice, Device};
use crate::cpu::{self, Cpu};
use crate::error::{Error, Result};
#[cfg(feature = "gpu")]
use crate::gpu::{self, Gpu};
use crate::params::{DType, Tensor, admit};
use crate::reference::{self, Reference};
use crate::scheduler::profile::{Profile, Span};
use crate::scheduler::{Batch, Measures, Meter, Program};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Calls `$body` with `$b` bound to whichever executor a session has.
macro_rules! with_backend {
    ($backend:expr, $b:ident => $body:expr) => {
        match $backend {
            Backend::Cpu($b) => $body,
            Backend::Reference($b) => $body,
            #[cfg(feature = "gpu")]
            Backend::Gpu($b) => $body,
        }
    };
}

mod load;

enum Backend {
    Cpu(Cpu),
    Reference(Reference<f32>),
    #[cfg(feature = "gpu")]
    Gpu(Box<Gpu>),
}

enum Prepared {
    Cpu(cpu::Prepared),
    Reference(reference::Prepared<f32>),
    #[cfg(feature = "gpu")]
    Gpu(Box<gpu::Prepared>),
}

/// A program made ready by one session.
pub struct Executable {
    program: Arc<Program>,
    prepared: Prepared,
    /// Of the session that made it ready.
    session: u64,
    /// What it takes of the session's budget.
    _held: Held,
    /// Where it relies on persistent values being.
    _relies: Vec<Arc<()>>,
}

impl Executable {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether anything is done for it to hold less.
    pub fn holds_less(&self) -> bool {
        self.program.measures != Measures::default()
    }
}

/// Values that outlive runs, on one device, and the programs over them.
pub struct Session {
    device: Device,
    backend: Backend,
    registry: Registry,
    budget: Budget,
    held: Held,
    id: u64,
}

/// Sessions so far.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

impl Session {
    pub(super) fn open(device: &Device) -> Result<Self> {
        let backend = match &device.choice {
            Choice::Cpu(threads) => Backend::Cpu(Cpu::new(*threads)?),
            Choice::Reference => Backend::Reference(Reference::new()),
            #[cfg(feature = "gpu")]
            Choice::Gpu(context) => Backend::Gpu(Box::new(Gpu::new(Arc::clone(context))?)),
        };
        let (device, budget) = (device.clone(), device.budget());
        let id = SESSIONS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { device, backend, registry: Registry::default(), budget, held: Held::default(), id })
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The names of all persistent values.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.registry.names()
    }

    /// Makes the persistent value `name` of zeros, or zeroes it where it exists with that shape.
    pub fn zero(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        if self.registry.find(name).is_some_and(|e| (&e.shape[..], e.dtype) != (shape, dtype)) {
            return Err(Error::shape(format!("session: `{name}` exists with another shape than {shape:?}")));
        }
        admit(name, shape)?;
        let zeros = match dtype {
            DType::F32 => Tensor::zeros(shape),
            DType::U32 => Tensor::from_u32(shape, vec![0; shape.iter().product()])?,
        };
        self.set(name, &zeros)
    }

    fn declare(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        admit(name, shape)?;
        match &mut self.backend {
            Backend::Cpu(b) => b.declare(name, shape, dtype),
            Backend::Reference(b) => {
                b.declare(name, shape, dtype);
                Ok(())
            }
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => b.declare(name, shape, dtype),
        }
    }

    /// Gives the persistent value `name` its contents; makes it where it does not exist. Where it exists it takes a
    /// tensor of its shape, or one with fewer rows. A new value waits until a program says where it should be: on the device,
    /// or away from it.
    pub fn set(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let Some(entry) = self.registry.find(name) else { return self.registry.add(name, tensor.clone()) };
        let (shape, dtype) = (&entry.shape, entry.dtype);
        let fits = dtype == tensor.dtype()
            && shape.len() == tensor.shape().len()
            && shape.first() >= tensor.shape().first()
            && shape.get(1..) == tensor.shape().get(1..);
        if !fits {
            return Err(Error::shape(format!(
                "session: `{name}` holds {dtype:?} of {shape:?}, got {:?} of {:?}",
                tensor.dtype(),
                tensor.shape()
            )));
        }
        if entry.kept.is_some() {
            with_backend!(&mut self.backend, b => b.write(name, tensor))?;
        }
        self.registry.get_mut(name)?.write_home(tensor)
    }

    /// Lets go of the persistent value `name`, if there is one. Refused while a program that is loaded has it.
    pub fn forget(&mut self, name: &str) -> Result<()> {
        let Some(entry) = self.registry.find(name) else { return Ok(()) };
        if held(&entry.resident) || held(&entry.brought) {
            return Err(Error::argument(format!("session: a program that is loaded has `{name}`")));
        }
        if entry.kept.is_some() {
            with_backend!(&mut self.backend, b => b.release(name));
        }
        self.registry.remove(name);
        Ok(())
    }

    /// The contents of the persistent value `name`. Waits for the device.
    pub fn get(&mut self, name: &str) -> Result<Tensor> {
        if let Some(tensor) = self.waiting(name)? {
            return Ok(tensor);
        }
        match &mut self.backend {
            Backend::Cpu(b) => b.read(name),
            Backend::Reference(b) => b.read(name),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => arrive(b.begin_read(name)?),
        }
    }

    /// [`Self::get`] without blocking.
    pub async fn get_async(&mut self, name: &str) -> Result<Tensor> {
        if let Some(tensor) = self.waiting(name)? {
            return Ok(tensor);
        }
        match &mut self.backend {
            Backend::Cpu(b) => b.read(name),
            Backend::Reference(b) => b.read(name),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => b.begin_read(name)?.await,
        }
    }

    /// Begins to read the persistent value `name` as it is after all runs so far, without waiting.
    pub fn begin_get(&mut self, name: &str) -> Result<Reading> {
        if let Some(tensor) = self.waiting(name)? {
            return Ok(Reading(Pending::Ready(tensor)));
        }
        Ok(match &mut self.backend {
            Backend::Cpu(b) => Reading(Pending::Ready(b.read(name)?)),
            Backend::Reference(b) => Reading(Pending::Ready(b.read(name)?)),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => Reading(Pending::Gpu(b.begin_read(name)?)),
        })
    }

    /// The value `name`, if it waits away from the device.
    fn waiting(&self, name: &str) -> Result<Option<Tensor>> {
        Ok(self.registry.get(name)?.home.clone())
    }

    /// What the device may hold.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Runs a program over `batch` with its inputs by name, packed as [`Batch::pack`] packs them. Returns as soon as
    /// the device has what it needs.
    pub fn run(&mut self, executable: &mut Executable, batch: &Batch, inputs: &[(&str, &Tensor)]) -> Result<()> {
        self.own(executable)?;
        let program = &executable.program;
        program.admits(batch)?;
        if let Some((name, _)) = inputs.iter().find(|(n, _)| !program.inputs.iter().any(|(m, _)| m == n)) {
            let names: Vec<&str> = program.inputs.iter().map(|i| i.0.as_str()).collect();
            return Err(Error::argument(format!("session: the program has inputs {names:?}, got `{name}`")));
        }
        let mut ordered = Vec::with_capacity(program.inputs.len());
        for (name, value) in &program.inputs {
            let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == name) else {
                return Err(Error::argument(format!("session: input `{name}` is missing")));
            };
            let wanted = &program.values[*value];
            let sizes = batch.resolve(&wanted.shape)?;
            if tensor.shape() != sizes || tensor.dtype() != wanted.dtype {
                return Err(Error::shape(format!(
                    "session: input `{name}` must be {:?} of {} = {sizes:?}, got {:?} of {:?}",
                    wanted.dtype,
                    wanted.shape,
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            for bound in program.bounds.iter().filter(|b| b.value == *value) {
                bound.check(name, tensor)?;
            }
            ordered.push(*tensor);
        }
        match (&mut self.backend, &mut executable.prepared) {
            (Backend::Cpu(b), Prepared::Cpu(p)) => b.run(p, batch, &ordered),
            (Backend::Reference(b), Prepared::Reference(p)) => b.run(p, batch, &ordered),
            #[cfg(feature = "gpu")]
            (Backend::Gpu(b), Prepared::Gpu(p)) => {
                let mut pause = b.run(p, batch, &ordered, &mut self.registry, None)?;
                while let Some(gpu::Pause { place, submission }) = pause {
                    b.context().block(submission)?;
                    pause = b.run(p, batch, &ordered, &mut self.registry, Some(place))?;
                }
                // The host keeps a few runs ahead and no more, so that what it has staged stays bounded.
                while let Some(oldest) = b.crowded() {
                    b.context().block(Some(oldest))?;
                }
                Ok(())
            }
            _ => Err(Error::argument("session: the program was made ready by a session on another device")),
        }
    }

    /// Runs a program as [`Self::run`] does, waits for it, and tells what it did and when: on a GPU each dispatch, timed if
    /// the adapter has timestamps (each is then alone between two of them, so that the whole takes longer than a run does);
    /// on the CPU each step.
    pub fn profile(
        &mut self,
        executable: &mut Executable,
        batch: &Batch,
        inputs: &[(&str, &Tensor)],
    ) -> Result<Profile> {
        self.profile_with(executable, batch, inputs, false)
    }

    /// What [`Self::run`] would dispatch on a GPU, with nothing run: what is computed and uploaded is then undefined until a
    /// run. Nothing on other devices.
    pub fn count(&mut self, executable: &mut Executable, batch: &Batch, inputs: &[(&str, &Tensor)]) -> Result<Profile> {
        self.profile_with(executable, batch, inputs, true)
    }

    fn profile_with(
        &mut self,
        executable: &mut Executable,
        batch: &Batch,
        inputs: &[(&str, &Tensor)],
        dry: bool,
    ) -> Result<Profile> {
        self.wait()?;
        match &mut self.backend {
            Backend::Cpu(_) | Backend::Reference(_) if dry => return Ok(Profile::default()),
            Backend::Cpu(b) => b.begin_profile(),
            Backend::Reference(_) => {}
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => b.begin_profile(dry),
        }
        let begin = Instant::now();
        let ran = self.run(executable, batch, inputs);
        let recorded = begin.elapsed().as_secs_f64();
        let mut profile = match &mut self.backend {
            Backend::Cpu(b) => b.take_profile(),
            Backend::Reference(_) => Profile::default(),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => {
                b.end_profile();
                b.context().block(None)?;
                b.take_profile()?
            }
        };
        ran?;
        let spans = [("upload, record, submit", 0.0, recorded), ("wait", recorded, begin.elapsed().as_secs_f64())];
        let host =
            spans.map(|(what, begin, end)| Span { step: None, what: what.to_string(), time: Some([begin, end]) });
        profile.host.extend(host);
        Ok(profile)
    }

    /// The output `name` of the program's last run. Waits for the device.
    pub fn output(&mut self, executable: &Executable, name: &str) -> Result<Tensor> {
        self.own(executable)?;
        let at = output_index(executable, name)?;
        match (&mut self.backend, &executable.prepared) {
            (Backend::Cpu(b), Prepared::Cpu(p)) => b.output(p, at),
            (Backend::Reference(b), Prepared::Reference(p)) => b.output(p, at),
            #[cfg(feature = "gpu")]
            (Backend::Gpu(b), Prepared::Gpu(p)) => arrive(b.begin_output(p, at)?),
            _ => Err(Error::argument("session: the program was made ready by a session on another device")),
        }
    }

    /// What `read` makes of the floats of the output `name` of the program's last run: where they are, on a host. Waits for the
    /// device.
    pub fn output_with<R>(&mut self, executable: &Executable, name: &str, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
        if let (Backend::Cpu(b), Prepared::Cpu(p)) = (&self.backend, &executable.prepared) {
            self.own(executable)?;
            return b.output_with(p, output_index(executable, name)?, |data, shape, dtype| match dtype {
                DType::F32 => Ok(read(&data[..shape.iter().product()])),
                DType::U32 => Err(Error::shape(format!("session: `{name}` holds integers, expected floats"))),
            })?;
        }
        self.output(executable, name)?.f32s().map(read)
    }

    /// How many tiles of layers that run by *grid* had to be resumed so far, because their workgroups did not meet: 0 but on a
    /// device that does not run them at the same time. Results are right all the same, only later.
    pub fn stalls(&mut self) -> Result<u64> {
        match &mut self.backend {
            Backend::Cpu(_) | Backend::Reference(_) => Ok(0),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => Ok(arrive(b.begin_stalls()?)?.u32s()?.iter().map(|&n| u64::from(n)).sum()),
        }
    }

    /// [`Self::output`] without blocking.
    pub async fn output_async(&mut self, executable: &Executable, name: &str) -> Result<Tensor> {
        self.own(executable)?;
        let at = output_index(executable, name)?;
        match (&mut self.backend, &executable.prepared) {
            (Backend::Cpu(b), Prepared::Cpu(p)) => b.output(p, at),
            (Backend::Reference(b), Prepared::Reference(p)) => b.output(p, at),
            #[cfg(feature = "gpu")]
            (Backend::Gpu(b), Prepared::Gpu(p)) => b.begin_output(p, at)?.await,
            _ => Err(Error::argument("session: the program was made ready by a session on another device")),
        }
    }

    fn own(&self, executable: &Executable) -> Result<()> {
        if executable.session == self.id {
            return Ok(());
        }
        Err(Error::argument("session: the program was made ready by another session"))
    }

    /// Waits until the device has done all it was given.
    pub fn wait(&mut self) -> Result<()> {
        #[cfg(feature = "gpu")]
        if let Backend::Gpu(b) = &mut self.backend {
            return b.context().block(None);
        }
        Ok(())
    }

    /// Has a GPU begin with what it was given so far.
    pub fn flush(&self) {
        #[cfg(feature = "gpu")]
        if let Backend::Gpu(b) = &self.backend {
            b.flush();
        }
    }

    /// Bytes that are allocated on the device, and the most that ever were: values, tables, what is packed and what is on
    /// its way to the host. Sessions on one GPU are counted together; zeros on the reference.
    pub fn allocated(&self) -> (u64, u64) {
        self.meter().map_or((0, 0), Meter::held)
    }

    /// Refuses allocations beyond `bytes` in all, as a device does that has no more; for tests of what happens then.
    pub fn refuse_beyond(&self, bytes: u64) {
        self.meter().into_iter().for_each(|meter| meter.limit(bytes));
    }

    fn meter(&self) -> Option<&Meter> {
        match &self.backend {
            Backend::Cpu(b) => Some(b.meter()),
            Backend::Reference(_) => None,
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => Some(b.context().buffers.meter()),
        }
    }

    /// Pipelines, bind groups and buffers made so far, in this order; zeros without a GPU.
    pub fn created(&self) -> [u64; 3] {
        #[cfg(feature = "gpu")]
        if let Backend::Gpu(b) = &self.backend {
            return b.created();
        }
        [0; 3]
    }
}

#[cfg(feature = "gpu")]
impl gpu::Homes for Registry {
    fn home(&self, name: &str) -> Option<&Tensor> {
        self.find(name)?.home.as_ref()
    }

    fn home_mut(&mut self, name: &str) -> Option<&mut Tensor> {
        self.get_mut(name).ok()?.home.as_mut()
    }
}

fn output_index(executable: &Executable, name: &str) -> Result<usize> {
    executable.program.outputs.iter().position(|(n, _)| n == name).ok_or_else(|| {
        let names: Vec<&str> = executable.program.outputs.iter().map(|o| o.0.as_str()).collect();
        Error::argument(format!("session: the program has outputs {names:?}, not `{name}`"))
    })
}

/// Waits for a value on its way from a GPU.
#[cfg(feature = "gpu")]
fn arrive(mut reading: gpu::Reading) -> Result<Tensor> {
    reading.context().block(None)?;
    reading.take()
}

enum Pending {
    Ready(Tensor),
    #[cfg(feature = "gpu")]
    Gpu(gpu::Reading),
}

/// A value on its way from the device.
pub struct Reading(Pending);

impl Reading {
    /// Whether [`Self::wait`] would return at once.
    pub fn is_ready(&mut self) -> bool {
        match &mut self.0 {
            Pending::Ready(_) => true,
            #[cfg(feature = "gpu")]
            Pending::Gpu(r) => r.is_ready(),
        }
    }

    /// The value.
    pub fn wait(self) -> Result<Tensor> {
        match self.0 {
            Pending::Ready(tensor) => Ok(tensor),
            #[cfg(feature = "gpu")]
            Pending::Gpu(r) => arrive(r),
        }
    }
}
