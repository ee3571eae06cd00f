//! What a program holds: all streams, and one of them.

use super::StreamOptions;
use super::engine::{Engine, Table as StateTable};
use super::queue::{Shared, Signature, Table};
use super::state::StreamState;
use super::stats::Stats;
use super::worker::{Command, Worker, help};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::Network;
use crate::params::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Instant;

/// A network over live streams, on one device. Dropped, it stops after the tick that runs; see [`Self::finish`].
#[derive(Debug)]
pub struct Streams {
    shared: Arc<Shared>,
    tables: Arc<Vec<StateTable>>,
    device: String,
    workers: Vec<JoinHandle<()>>,
}

/// One stream. Closed when it is dropped.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    slot: usize,
    id: u64,
}

impl Streams {
    /// Makes `network` ready for streams, with the values of its parameters; see [`Network::streaming`] for which networks can
    /// be.
    pub fn open(
        device: &Device,
        network: &Network,
        parameters: BTreeMap<String, Tensor>,
        options: StreamOptions,
    ) -> Result<Self> {
        options.validate()?;
        let pads = network.pads_with_zero();
        let engine = Engine::new(device, network.streaming()?, parameters, &options)?;
        let (input, output) = engine.features()?;
        let signature = Signature { input, output, bounds: engine.bounds(), pads };
        let (tables, device) = (Arc::new(engine.tables().to_vec()), engine.device().name());
        let zero = engine.zero();
        let table = Table::new(options.streams).into();
        let (work, ahead) = Default::default();
        let shared = Arc::new(Shared { table, work, ahead, signature, options });
        // Stops those that have begun where another cannot.
        let mut all = Self { shared, tables, device, workers: Vec::new() };
        let shared = Arc::clone(&all.shared);
        all.spawn(move || Worker { shared: &shared, engine }.run())?;
        let shared = Arc::clone(&all.shared);
        all.spawn(move || help(&shared, zero))?;
        Ok(all)
    }

    fn spawn(&mut self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let worker = std::thread::Builder::new().name("mnemon streams".to_string()).spawn(work);
        self.workers.push(worker.map_err(|e| Error::device(format!("streams: no thread: {e}")).caused_by(e))?);
        Ok(())
    }

    /// Opens a stream that has read nothing. An error where as many are open as there may be.
    pub fn stream(&self) -> Result<Stream> {
        let (slot, id) = self.shared.lock().open()?;
        Ok(Stream { shared: Arc::clone(&self.shared), slot, id })
    }

    /// Opens a stream that goes on from a state, of a stream of the same network here or elsewhere.
    pub fn restore(&self, state: &StreamState) -> Result<Stream> {
        let rows = self.tables.iter().map(|table| {
            let found = state.values.get(table.state_name());
            let fits = |t: &&Tensor| t.shape() == [table.width] && t.dtype() == DType::F32;
            let row = found.filter(fits).map(|t| t.clone().reshape(&[1, table.width]));
            row.unwrap_or_else(|| {
                let got = found.map_or("nothing".to_string(), |t| format!("{:?} of {:?}", t.dtype(), t.shape()));
                let name = table.state_name();
                Err(Error::data(format!("stream state: expected F32 of [{}] as `{name}`, got {got}", table.width)))
            })
        });
        // A stream that has read nothing carries nothing.
        let is_new = state.values.is_empty() && state.steps == 0;
        let rows = if is_new { Vec::new() } else { rows.collect::<Result<Vec<_>>>()? };
        state.check_counts()?;
        let known = |name: &&String| self.tables.iter().any(|t| t.state_name() == *name);
        if let Some(name) = state.values.keys().find(|name| !known(name)) {
            return Err(Error::data(format!("stream state: the network carries no `{name}`")));
        }
        let (slot, id) = self.shared.lock().open()?;
        let stream = Stream { shared: Arc::clone(&self.shared), slot, id };
        if !rows.is_empty() {
            ask(&self.shared, |reply| Command::Write { slot, rows, steps: state.steps, reply })?;
        }
        Ok(stream)
    }

    /// The most bytes that a stream's state takes as a file.
    pub fn state_bytes(&self) -> usize {
        // Names and shapes are short.
        self.tables.iter().map(|table| 4 * table.width + 1024).sum::<usize>() + 1024
    }

    /// An error once no device does any more, with what has happened.
    pub fn check(&self) -> Result<()> {
        self.shared.lock().check()
    }

    /// What it runs on, as it was opened.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Values of a step, or none where a step is an integer.
    pub fn input_features(&self) -> Option<usize> {
        self.shared.signature.input
    }

    /// Values of an output.
    pub fn output_features(&self) -> usize {
        self.shared.signature.output
    }

    /// What it may take.
    pub fn options(&self) -> &StreamOptions {
        &self.shared.options
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats.clone()
    }

    /// Runs what waits, as far as there is room for its outputs, and stops. These can still be received; what is pushed from now on is
    /// refused.
    pub fn finish(mut self) {
        self.shared.lock().drains = true;
        self.join();
    }

    fn join(&mut self) {
        self.shared.stop();
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                self.shared.fail("the thread of the streams has panicked".to_string());
            }
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.shared.lock().stops = true;
        self.join();
    }
}

impl Stream {
    /// Its number, which no other stream has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Takes as many of the steps x, `[steps, features]` or `[steps]` of integers, as there is room for now; tells how many.
    pub fn try_push(&self, x: &Tensor) -> Result<usize> {
        let steps = self.shared.signature.check(x)?;
        self.take(&mut self.shared.lock(), x, 0, steps)
    }

    /// Takes the steps x, `[steps, features]` or `[steps]` of integers. Waits while as many wait as may: where nobody receives,
    /// for more than the queues of steps and of outputs hold, for ever; [`Self::run`] receives meanwhile.
    pub fn push(&self, x: &Tensor) -> Result<()> {
        let steps = self.shared.signature.check(x)?;
        let (mut first, mut table) = (0, self.shared.lock());
        loop {
            first += self.take(&mut table, x, first, steps)?;
            if first == steps {
                return Ok(());
            }
            table = self.shared.wait(table, self.slot, self.id)?;
        }
    }

    /// [`Self::push`] without blocking.
    pub async fn push_async(&self, x: &Tensor) -> Result<()> {
        let steps = self.shared.signature.check(x)?;
        let mut first = 0;
        std::future::poll_fn(|context| {
            let mut table = self.shared.lock();
            first += self.take(&mut table, x, first, steps)?;
            if first == steps { Poll::Ready(Ok(())) } else { self.pend(&mut table, context) }
        })
        .await
    }

    /// Takes steps of x from `first` on into the queue; tells how many had room.
    fn take(&self, table: &mut MutexGuard<'_, Table>, x: &Tensor, first: usize, steps: usize) -> Result<usize> {
        table.check()?;
        if table.drains {
            return Err(Error::device("streams: stopped: they are finishing"));
        }
        let (options, width) = (&self.shared.options, self.shared.signature.width());
        let entry = table.entry(self.slot, self.id)?;
        let count = (steps - first).min(options.queued.saturating_sub(entry.waiting));
        if count == 0 {
            return Ok(0);
        }
        let range = first * width..(first + count) * width;
        entry.input.push(match x.dtype() {
            DType::F32 => bytemuck::cast_slice(&x.f32s()?[range]),
            DType::U32 => &x.u32s()?[range],
        });
        entry.waiting += count;
        let last = entry.done + (entry.running + entry.waiting) as u64;
        entry.pushes.push_back((last, Instant::now()));
        table.stats.waiting += count as u64;
        table.enqueue(self.slot, options.outputs);
        self.shared.rouse(table);
        Ok(count)
    }

    /// The outputs that are there, `[steps, features]`, of no step where there is none.
    pub fn try_receive(&self) -> Result<Tensor> {
        self.give(&mut self.shared.lock())
    }

    /// Outputs, `[steps, features]`, of at least one step. Waits for it; of none where no step that was pushed is still to come.
    pub fn receive(&self) -> Result<Tensor> {
        let mut table = self.shared.lock();
        loop {
            if let Some(outputs) = self.outputs(&mut table)? {
                return Ok(outputs);
            }
            table = self.shared.wait(table, self.slot, self.id)?;
        }
    }

    /// [`Self::receive`] without blocking.
    pub async fn receive_async(&self) -> Result<Tensor> {
        std::future::poll_fn(|context| {
            let mut table = self.shared.lock();
            match self.outputs(&mut table)? {
                Some(outputs) => Poll::Ready(Ok(outputs)),
                None => self.pend(&mut table, context),
            }
        })
        .await
    }

    /// Outputs if there are any, or if none are to come.
    fn outputs(&self, table: &mut MutexGuard<'_, Table>) -> Result<Option<Tensor>> {
        let entry = table.entry(self.slot, self.id)?;
        let is_there = entry.ready > 0 || entry.waiting + entry.running == 0;
        if is_there {
            return self.give(table).map(Some);
        }
        table.check().map(|()| None)
    }

    fn give(&self, table: &mut MutexGuard<'_, Table>) -> Result<Tensor> {
        let width = self.shared.signature.output;
        let entry = table.entry(self.slot, self.id)?;
        let steps = std::mem::take(&mut entry.ready);
        let values = std::mem::take(&mut entry.output);
        table.enqueue(self.slot, self.shared.options.outputs);
        self.shared.rouse(table);
        Tensor::new(&[steps, width], values)
    }

    fn pend<T>(&self, table: &mut MutexGuard<'_, Table>, context: &Context<'_>) -> Poll<Result<T>> {
        table.entry(self.slot, self.id)?.wake_at_change(context.waker());
        Poll::Pending
    }

    /// Pushes x and receives the outputs of all its steps and of those that still wait, `[steps, features]`.
    pub fn run(&self, x: &Tensor) -> Result<Tensor> {
        let steps = self.shared.signature.check(x)?;
        let (mut first, mut values, mut table) = (0, Vec::new(), self.shared.lock());
        loop {
            first += self.take(&mut table, x, first, steps)?;
            let outputs = self.give(&mut table)?;
            values.extend_from_slice(outputs.f32s()?);
            let entry = table.entry(self.slot, self.id)?;
            if first == steps && entry.ready + entry.waiting + entry.running == 0 {
                let width = self.shared.signature.output;
                return Tensor::new(&[values.len() / width, width], values);
            }
            if first == steps || entry.waiting == self.shared.options.queued {
                table = self.shared.wait(table, self.slot, self.id)?;
            }
        }
    }

    /// Its state once all that was pushed has run. Outputs that wait stay where they are.
    pub fn save(&self) -> Result<StreamState> {
        ask(&self.shared, |reply| Command::Save { slot: self.slot, id: self.id, reply })
    }

    /// Another stream that goes on from where this one is once all that was pushed has run.
    pub fn fork(&self) -> Result<Stream> {
        let (child, id) = self.shared.lock().open()?;
        let stream = Stream { shared: Arc::clone(&self.shared), slot: child, id };
        ask(&self.shared, |reply| Command::Fork { slot: self.slot, id: self.id, child, reply })?;
        Ok(stream)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        let slot = self.slot;
        let Ok(entry) = table.entry(slot, self.id) else { return };
        let (waiting, is_queued) = (entry.waiting, entry.is_queued);
        (entry.is_closed, entry.is_queued, entry.waiting) = (true, false, 0);
        entry.wake();
        table.stats.waiting -= waiting as u64;
        if is_queued {
            table.queue.retain(|&other| other != slot);
        }
        table.release(slot);
        // Commands may have waited for it.
        self.shared.rouse(&table);
    }
}

/// Asks the worker for something and waits for it.
fn ask<T>(shared: &Shared, command: impl FnOnce(std::sync::mpsc::Sender<Result<T>>) -> Command) -> Result<T> {
    let (reply, answer): (_, Receiver<Result<T>>) = channel();
    {
        let mut table = shared.lock();
        table.check()?;
        table.commands.push(command(reply));
        shared.rouse(&table);
    }
    answer
        .recv()
        .unwrap_or_else(|_| Err(shared.lock().check().err().unwrap_or_else(|| Error::device("streams: stopped"))))
}
