//! Live streams: any number of sequences, each at its own point, that come, pause and go while one batch computes them.
//!
//! [`Streams`] holds a network on a device, and each stream's carried states in a slot there. Whoever has a [`Stream`] pushes
//! steps of any number at any time from any thread, and receives an output for each. Threads of their own run *ticks*: they
//! gather what is ready into one batch, run it, and hand the outputs out. What a stream gives does not depend on what else
//! was in its batch, nor on how its steps were cut into ticks: they are the same bits.
//!
//! ```
//! # use mnemon::{device::Device, nn::{Dense, Input, Lstm, Network}, params::Tensor, streams::{Streams, StreamOptions}};
//! # use std::collections::BTreeMap;
//! let mut network = Network::default();
//! let x = network.input("x", Input::Features(3));
//! let h = network.add(Lstm::new(8), &[x])?;
//! let y = network.add(Dense::new(2), &h)?;
//! network.output("y", y[0]);
//! # let parameters: BTreeMap<_, _> =
//! #     network.parameters()?.iter().map(|p| (p.name.clone(), Tensor::zeros(&p.shape))).collect();
//! let streams = Streams::open(&Device::cpu(), &network, parameters, StreamOptions::default())?;
//! let stream = streams.stream()?;
//! stream.push(&Tensor::zeros(&[5, 3]))?;
//! let mut steps = 0;
//! while steps < 5 {
//!     steps += stream.receive()?.shape()[0];
//! }
//! # Ok::<(), mnemon::error::Error>(())
//! ```

mod engine;
mod exchange;
mod handle;
mod journal;
mod queue;
mod state;
mod stats;
mod worker;

pub use handle::{Stream, Streams};
pub use state::StreamState;
pub use stats::Stats;

use crate::error::{Error, Result};
use crate::scheduler::TickLimits;
use std::time::Duration;

/// What streams may take.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamOptions {
    /// Streams that may be open at a time; each has a slot on the device.
    pub streams: usize,
    /// Steps that may wait on a stream; who pushes more waits.
    pub queued: usize,
    /// Outputs that may wait on a stream; it runs on when they are received.
    pub outputs: usize,
    /// How long a tick may take: an output comes within two of them while the device keeps up.
    pub bound: Duration,
    /// Streams of one tick.
    pub sequences: usize,
    /// Steps of a stream in one tick.
    pub steps: usize,
    /// Which output of the network to give, if not its first.
    pub output: Option<String>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            streams: 1024,
            queued: 256,
            outputs: 256,
            bound: Duration::from_millis(10),
            sequences: 256,
            steps: 64,
            output: None,
        }
    }
}

impl StreamOptions {
    fn validate(&self) -> Result<()> {
        let sizes = [
            ("streams", self.streams),
            ("queued", self.queued),
            ("outputs", self.outputs),
            ("sequences", self.sequences),
            ("steps", self.steps),
        ];
        match sizes.into_iter().find(|&(_, n)| n == 0 || n > 1 << 24) {
            None => Ok(()),
            Some((name, n)) => Err(Error::argument(format!("streams: {name} must be in 1..={}, got {n}", 1 << 24))),
        }
    }

    /// Steps of all streams in a tick: enough for every stream to have one, and for few to have many.
    fn limits(&self) -> TickLimits {
        let sequences = self.sequences.min(self.streams);
        let rows = (4 * sequences).max(self.steps).min(sequences * self.steps);
        TickLimits { sequences, steps: self.steps, rows, bound: self.bound }
    }
}
