//! Making programs ready: what is compiled for the memory that there is, and where persistent values have to be.

use super::super::registry::{Kept, held};
use super::{Backend, Executable, Prepared, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Graph;
#[cfg(feature = "gpu")]
use crate::params::Tensor;
use crate::scheduler::program::Storage;
use crate::scheduler::{Capacity, CompileOptions, Executor, Measures, Program, compile};
use std::sync::Arc;

impl Session {
    /// Compiles `graph` for batches up to `capacity` and makes it ready. Persistent values with a batch or row size
    /// are made of zeros where they do not exist; others must have been [`set`](Self::set).
    pub fn load(&mut self, graph: &Graph, capacity: &Capacity) -> Result<Executable> {
        self.load_with(graph, &CompileOptions::new(capacity))
    }

    /// [`Self::load`] with further options. Without a budget among them the program has what is left of the device's, and
    /// where the device refuses an allocation all the same, less.
    pub fn load_with(&mut self, graph: &Graph, options: &CompileOptions) -> Result<Executable> {
        let mut options = options.clone();
        let target = self.device.target();
        if let Some(tuner) =
            self.device.tuner().filter(|_| options.kernels.is_none() && target.executor == Executor::Gpu)
        {
            let plan = compile(graph, target, &CompileOptions { budget: None, ..options.clone() });
            // What cannot be compiled fails below, with more to say; a device that cannot be measured uses the table.
            let left = plan.and_then(|program| tuner.settle(&self.device, &program));
            match left {
                Ok(0) => {}
                Ok(left) => log::info!("{left} layers are not tuned yet; `mnemon tune` does it ahead of time"),
                Err(e) => log::warn!("tuner: {e}"),
            }
        }
        options.kernels.get_or_insert_with(|| self.device.kernels());
        // A file of the host is as good a place as its memory.
        if target.executor == Executor::Gpu {
            options.pins = self.registry.pins();
        }
        let chooses = options.budget.is_none() && options.measures.is_none() && target.executor != Executor::Reference;
        let left = self.budget.bytes.saturating_sub(self.held.others());
        options.budget = if chooses { Some(left) } else { options.budget };
        loop {
            let program = compile(graph, target, &options).map_err(|e| e.within(self.budget))?;
            // What the session keeps besides; the same for every plan.
            let others = self.uncounted(&program);
            if chooses && program.memory().bytes() + others > left {
                options.budget = Some(left.saturating_sub(others));
                continue;
            }
            let (measures, planned) = (program.measures, program.memory().bytes());
            let refused = match self.load_program(program) {
                Err(e) if e.kind() == ErrorKind::Memory && chooses => e,
                other => {
                    if measures != Measures::default() {
                        log::warn!("{}: {measures}", self.budget);
                    }
                    return other;
                }
            };
            log::warn!("{refused}; trying a smaller plan");
            options.budget = Some(planned - planned / 8);
            // Where no plan is smaller, what was refused says more than that.
            if compile(graph, target, &options).is_err() {
                return Err(refused);
            }
        }
    }

    /// Bytes of persistent values that `program` does not count as its own.
    fn uncounted(&self, program: &Program) -> u64 {
        let persistent = || program.values.iter().filter(|v| v.storage == Storage::Persistent);
        let others = self.registry.entries().filter(|(name, entry)| match persistent().find(|v| v.name == *name) {
            None => true,
            // What it has brought leaves the device's memory, unless another program has it there.
            Some(own) => own.offloaded && held(&entry.resident),
        });
        others.map(|(_, entry)| entry.bytes()).sum()
    }

    /// Makes a program ready that was compiled elsewhere for this session's device.
    pub fn load_program(&mut self, program: Program) -> Result<Executable> {
        let program = Arc::new(program);
        let mut relies = Vec::new();
        for (at, value) in program.values.iter().enumerate().filter(|(_, v)| v.storage == Storage::Persistent) {
            let mut sizes = program.capacity.resolve(&value.shape)?;
            sizes.iter_mut().zip(value.slab).for_each(|(rows, slab)| *rows = slab.of);
            let fixed = value.shape.fixed_len().is_some();
            match self.registry.find(&value.name) {
                None if fixed => {
                    return Err(Error::argument(format!("session: `{}` has not been given a value", value.name)));
                }
                None => {
                    self.declare(&value.name, &sizes, value.dtype)?;
                    self.registry.declared(&value.name, &sizes, value.dtype);
                }
                Some(entry) => {
                    let (shape, dtype) = (&entry.shape, entry.dtype);
                    let rows = if fixed { shape.first() == sizes.first() } else { shape.first() >= sizes.first() };
                    if !rows || shape.get(1..) != sizes.get(1..) || dtype != value.dtype {
                        return Err(Error::shape(format!(
                            "session: `{}` holds {dtype:?} of {shape:?}, the program needs {:?} of {sizes:?}",
                            value.name, value.dtype
                        )));
                    }
                }
            }
            let changes = program.updated.contains(&at);
            self.settle(&value.name, value.offloaded, changes)?;
            let entry = self.registry.get(&value.name)?;
            let where_it_is = if value.offloaded { &entry.brought } else { &entry.resident };
            relies.push(Arc::clone(where_it_is));
            relies.extend(changes.then(|| Arc::clone(&entry.changed)));
        }
        let memory = program.memory();
        let held = self.held.with(memory.bytes() - memory.persistent);
        let prepared = match &mut self.backend {
            Backend::Cpu(b) => Prepared::Cpu(b.prepare(&program)?),
            Backend::Reference(b) => Prepared::Reference(b.prepare(&program)?),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => Prepared::Gpu(Box::new(b.prepare(&program)?)),
        };
        Ok(Executable { program, prepared, session: self.id, _held: held, _relies: relies })
    }

    /// Has the persistent value `name` where a program needs it: on the device, or where it `waits`; it may be changed there.
    fn settle(&mut self, name: &str, waits: bool, changes: bool) -> Result<()> {
        match &self.backend {
            Backend::Cpu(_) => self.settle_on_host(name, waits, changes),
            Backend::Reference(_) => self.on_device(name),
            #[cfg(feature = "gpu")]
            Backend::Gpu(_) => {
                let entry = self.registry.get(name)?;
                let (here, away) = (held(&entry.resident), held(&entry.brought));
                // One place would be changed and the other read.
                let elsewhere = if waits { here } else { away };
                if elsewhere && (changes || held(&entry.changed)) {
                    return Err(Error::budget(format!("session: another program needs `{name}` in another place")));
                }
                if !waits {
                    return self.on_device(name);
                }
                // What changes has to be in memory; the file stays as it is.
                let moves = changes && entry.home.as_ref().is_some_and(|home| home.file().is_some());
                if entry.home.is_none() || moves {
                    let tensor = self.get(name)?;
                    let shape = tensor.shape().to_vec();
                    let tensor = if moves { Tensor::new(&shape, tensor.into_f32s()?)? } else { tensor };
                    self.registry.get_mut(name)?.home = Some(tensor);
                }
                if let Backend::Gpu(b) = &mut self.backend
                    && !here
                {
                    b.release(name);
                    self.registry.get_mut(name)?.kept = None;
                }
                Ok(())
            }
        }
    }

    /// Has the persistent value `name` on the device.
    fn on_device(&mut self, name: &str) -> Result<()> {
        let entry = self.registry.get(name)?;
        if entry.kept.is_none()
            && let Some(tensor) = entry.home.clone()
        {
            self.declare(name, tensor.shape(), tensor.dtype())?;
            with_backend!(&mut self.backend, b => b.write(name, &tensor))?;
        }
        let entry = self.registry.get_mut(name)?;
        entry.kept = entry.kept.or(Some(Kept::Memory));
        if !held(&entry.brought) {
            entry.home = None;
        }
        Ok(())
    }

    /// Has the persistent value `name` in the memory of the host that computes or, where it may wait, in a file.
    fn settle_on_host(&mut self, name: &str, waits: bool, changes: bool) -> Result<()> {
        let Backend::Cpu(b) = &mut self.backend else { return Ok(()) };
        if !waits && !b.waits(name) {
            return self.on_device(name);
        }
        // What a file holds is as good as what memory does; but only one of its own can change.
        if !b.waits(name) || (changes && !b.may_change(name)) {
            let tensor = match self.registry.get(name)?.home.clone() {
                Some(tensor) => tensor,
                None => b.read(name)?,
            };
            b.wait(name, &tensor, changes)?;
        }
        let entry = self.registry.get_mut(name)?;
        (entry.home, entry.kept) = (None, Some(Kept::File));
        Ok(())
    }
}
