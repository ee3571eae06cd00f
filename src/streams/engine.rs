//! The device side of streams: the network's program over slots, and going on after a device has failed.

use super::StreamOptions;
use super::journal::{Event, Journal};
use crate::device::{Device, Executable, Session};
use crate::error::{Error, Result};
use crate::graph::{B, Dim, Graph, Value};
use crate::nn::{GraphOptions, Network, Slots};
use crate::params::{DType, Tensor};
use crate::scheduler::Bound;
use crate::scheduler::{Batch, Capacity};
use std::collections::BTreeMap;

/// What names of carried states begin with.
const PREFIX: &str = "streams.";
/// The slots that states are read from and written to; no network's own input is called so.
const FROM: &str = "streams.from";
const TO: &str = "streams.to";

/// A table of states: its name and the values of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub name: String,
    pub width: usize,
}

impl Table {
    /// The name of its state away from here.
    pub fn state_name(&self) -> &str {
        self.name.strip_prefix(PREFIX).unwrap_or(&self.name)
    }
}

/// What is lost with a device.
struct Live {
    session: Session,
    tick: Executable,
    read: Executable,
    write: Executable,
    fork: Executable,
}

/// A network over slots on a device, which goes on elsewhere where that fails.
pub(super) struct Engine {
    device: Device,
    network: Network,
    parameters: BTreeMap<String, Tensor>,
    output: String,
    capacity: Capacity,
    slots: usize,
    tables: Vec<Table>,
    live: Option<Live>,
    journal: Journal,
    pub recoveries: u64,
}

/// The graphs of a network's streams.
struct Graphs {
    tick: Graph,
    read: Graph,
    write: Graph,
    fork: Graph,
    tables: Vec<Table>,
    features: usize,
}

impl Engine {
    /// The network, which must be [streaming](Network::streaming), on `device`.
    pub fn new(
        device: &Device,
        network: Network,
        parameters: BTreeMap<String, Tensor>,
        options: &StreamOptions,
    ) -> Result<Self> {
        let output = match &options.output {
            Some(name) => name.clone(),
            None => network.outputs.first().map(|o| o.0.clone()).unwrap_or_default(),
        };
        for spec in network.parameters()? {
            match parameters.get(&spec.name).map(Tensor::shape) {
                Some(shape) if shape == spec.shape => {}
                Some(shape) => {
                    return Err(Error::shape(format!(
                        "streams: `{}` must be {:?}, got {shape:?}",
                        spec.name, spec.shape
                    )));
                }
                None => {
                    return Err(Error::argument(format!("streams: expected values of the parameter `{}`", spec.name)));
                }
            }
        }
        let limits = options.limits();
        // Rings for no more steps than a tick has.
        let network = match network.memory() {
            Some(memory) => network.with_memory(Some(memory.steps(limits.steps)))?,
            None => network,
        };
        let capacity = Capacity { sequences: limits.sequences, axes: vec![(limits.steps, limits.rows)] };
        // One more row, which stays zero: what new streams begin from.
        let slots = options.streams + 1;
        let mut engine = Self {
            device: device.clone(),
            network,
            parameters,
            output,
            capacity,
            slots,
            tables: Vec::new(),
            live: None,
            journal: Journal::default(),
            recoveries: 0,
        };
        let graphs = engine.graphs()?;
        engine.tables = graphs.tables.clone();
        engine.live = Some(engine.open(&graphs)?);
        engine.snapshot()?;
        Ok(engine)
    }

    /// The tables of states.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The row that new streams begin from.
    pub fn zero(&self) -> u32 {
        (self.slots - 1) as u32
    }

    /// Its name and what it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Values of an input's row, or none where it is an integer, and of an output's.
    pub fn features(&self) -> Result<(Option<usize>, usize)> {
        let input = match self.network.inputs.first() {
            Some((_, crate::nn::Input::Features(n))) => Some(*n),
            _ => None,
        };
        Ok((input, self.graphs()?.features))
    }

    /// What the integers of the input must keep.
    pub fn bounds(&self) -> Vec<Bound> {
        let program = self.live.as_ref().map(|live| live.tick.program());
        let input = &self.network.inputs[0].0;
        program
            .into_iter()
            .flat_map(|p| p.bounds.iter().filter(|b| &p.values[b.value].name == input))
            .cloned()
            .collect()
    }

    fn graphs(&self) -> Result<Graphs> {
        let mut tick = Graph::new();
        let from = tick.input(FROM, [B], DType::U32)?;
        let to = tick.input(TO, [B], DType::U32)?;
        let slots = Slots { count: self.slots, from, to };
        let options = GraphOptions { training: false, state_prefix: PREFIX, slots: Some(slots) };
        let built = self.network.build(&mut tick, options)?;
        for &(state, end) in &built.states {
            tick.update(state, end)?;
        }
        let at = self.network.outputs.iter().position(|o| o.0 == self.output).ok_or_else(|| {
            let names: Vec<&str> = self.network.outputs.iter().map(|o| o.0.as_str()).collect();
            Error::argument(format!("streams: the network gives {names:?} at each step, not `{}`", self.output))
        })?;
        let (y, signal) = built.outputs[at];
        let features = signal.features().filter(|_| signal.axis().is_some());
        let features = features.ok_or_else(|| {
            Error::unsupported(format!("streams: `{}` is {signal}, expected floats at each step", self.output))
        })?;
        tick.output("y", y)?;
        let width = |state: Value| match tick.shape(state).columns() {
            Some(width) => Ok(Table { name: tick.info(state).name.clone(), width }),
            None => Err(Error::internal("streams: a state without a size")),
        };
        let tables = built.states.iter().map(|s| width(s.0)).collect::<Result<Vec<_>>>()?;
        let (mut read, mut write, mut fork) = (Graph::new(), Graph::new(), Graph::new());
        let source = read.input(FROM, [B], DType::U32)?;
        let target = write.input(TO, [B], DType::U32)?;
        let (parent, child) = (fork.input(FROM, [B], DType::U32)?, fork.input(TO, [B], DType::U32)?);
        for Table { name, width } in &tables {
            let shape = [self.slots, *width];
            let table = read.persistent(name, shape)?;
            let rows = read.embedding(table, source)?;
            read.output(name, rows)?;
            let table = write.persistent(name, shape)?;
            let rows = write.input(&format!("{name}.rows"), [B, Dim::Fixed(*width)], DType::F32)?;
            let changed = write.scatter(table, target, rows)?;
            write.update(table, changed)?;
            let table = fork.persistent(name, shape)?;
            let rows = fork.embedding(table, parent)?;
            let changed = fork.scatter(table, child, rows)?;
            fork.update(table, changed)?;
        }
        Ok(Graphs { tick, read, write, fork, tables, features })
    }

    /// The programs on the device, with states of zeros.
    fn open(&self, graphs: &Graphs) -> Result<Live> {
        let mut session = self.device.session()?;
        for spec in self.network.parameters()? {
            session.set(&spec.name, &self.parameters[&spec.name])?;
        }
        for Table { name, width } in &graphs.tables {
            session.zero(name, &[self.slots, *width], DType::F32)?;
        }
        let tick = session.load(&graphs.tick, &self.capacity)?;
        let one = Capacity::exactly(&Batch::dense(0, 1)?);
        let [read, write, fork] = [&graphs.read, &graphs.write, &graphs.fork].map(|graph| session.load(graph, &one));
        Ok(Live { session, tick, read: read?, write: write?, fork: fork? })
    }

    /// Does `event`, wherever it can be done. A tick's outputs go to `read`.
    pub fn run(&mut self, event: Event, read: impl FnOnce(&[f32])) -> Result<()> {
        self.lasting(|engine| engine.apply(&event))?;
        if let Event::Tick { .. } = &event {
            let mut read = Some(read);
            let mut give = |engine: &mut Self| {
                let Live { session, tick, .. } = engine.live()?;
                session.output_with(tick, "y", |y| read.take().into_iter().for_each(|read| read(y)))
            };
            // Where the outputs cannot be read the tick has not been: it is done again elsewhere, and read there.
            if let Err(error) = give(self) {
                self.elsewhere(error, |engine| engine.apply(&event).and_then(|()| give(engine)))?;
            }
        }
        if self.journal.add(event)
            && let Err(error) = self.snapshot()
        {
            // The states are where the journal leads; the next event finds out whether the device has gone.
            log::warn!("streams: the states cannot be read: {error}");
        }
        Ok(())
    }

    /// Room for what a tick reads, if there is any.
    pub fn spare(&mut self) -> Option<Vec<u32>> {
        self.journal.spare()
    }

    fn live(&mut self) -> Result<&mut Live> {
        self.live.as_mut().ok_or_else(|| Error::device("streams: there is no device left"))
    }

    fn apply(&mut self, event: &Event) -> Result<()> {
        let names: Vec<String> = self.tables.iter().map(|t| format!("{}.rows", t.name)).collect();
        let input = self.network.inputs[0].0.clone();
        let Live { session, tick, write, fork, .. } = self.live()?;
        match event {
            Event::Tick { from, to, lengths, x } => {
                let batch = Batch::ragged(lengths)?;
                session.run(tick, &batch, &[(FROM, from), (TO, to), (&input, x)])
            }
            Event::Write { to, rows } => {
                let to = Tensor::from_u32(&[1], vec![*to])?;
                let rows = names.iter().map(String::as_str).zip(rows);
                let inputs: Vec<(&str, &Tensor)> = std::iter::once((TO, &to)).chain(rows).collect();
                session.run(write, &Batch::dense(0, 1)?, &inputs)
            }
            Event::Fork { from, to } => {
                let [from, to] = [from, to].map(|&slot| Tensor::from_u32(&[1], vec![slot]));
                session.run(fork, &Batch::dense(0, 1)?, &[(FROM, &from?), (TO, &to?)])
            }
        }
    }

    /// The state in a slot, a row of each table.
    pub fn read(&mut self, slot: u32) -> Result<Vec<Tensor>> {
        self.lasting(|engine| engine.try_read(slot))
    }

    fn try_read(&mut self, slot: u32) -> Result<Vec<Tensor>> {
        let tables = self.tables.clone();
        let Live { session, read, .. } = self.live()?;
        session.run(read, &Batch::dense(0, 1)?, &[(FROM, &Tensor::from_u32(&[1], vec![slot])?)])?;
        tables.iter().map(|t| session.output(read, &t.name)?.reshape(&[t.width])).collect()
    }

    /// Reads all states, from which a journal begins.
    fn snapshot(&mut self) -> Result<()> {
        let tables = self.tables.clone();
        let session = &mut self.live()?.session;
        let read = tables.iter().map(|t| session.get(&t.name)).collect::<Result<Vec<_>>>()?;
        self.journal.begin(read);
        Ok(())
    }

    /// Does `work`, elsewhere if the device fails.
    fn lasting<T>(&mut self, mut work: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        match work(self) {
            Err(error) => self.elsewhere(error, work),
            done => done,
        }
    }

    /// Where `error` says that the device has failed, opens it again, and then the CPU, makes the states anew and does `work` there.
    fn elsewhere<T>(&mut self, mut error: Error, mut work: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        if !error.is_of_the_device() {
            return Err(error);
        }
        for device in self.device.elsewhere() {
            // What is left of the old one makes room.
            self.live = None;
            let done = device.and_then(|device| {
                log::warn!("streams: {error}; going on on {}", device.name());
                self.device = device;
                self.recoveries += 1;
                self.rebuild()?;
                work(self)
            });
            match done {
                Err(e) if e.is_of_the_device() => error = e,
                other => return other,
            }
        }
        Err(error)
    }

    /// States as the journal leads to them, on the device as it is now.
    fn rebuild(&mut self) -> Result<()> {
        let mut live = self.open(&self.graphs()?)?;
        for (table, tensor) in self.tables.iter().zip(&self.journal.tables) {
            live.session.set(&table.name, tensor)?;
        }
        self.live = Some(live);
        let events = std::mem::take(&mut self.journal.events);
        let done = events.iter().try_for_each(|event| self.apply(event));
        self.journal.events = events;
        done
    }
}
