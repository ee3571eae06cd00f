//! What has changed the states on the device since they were last read from it, so that they can be made again elsewhere.

use crate::params::Tensor;

/// One change of states, by slot.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// Sequences run on: the rows that they begin from and end in, the steps of each, never increasing, and what they read.
    Tick { from: Tensor, to: Tensor, lengths: Vec<usize>, x: Tensor },
    /// A slot takes a state, a row for each table.
    Write { to: u32, rows: Vec<Tensor> },
    /// A slot takes the state of another.
    Fork { from: u32, to: u32 },
}

/// Values that a journal keeps before the states are read anew: 64 MiB, some seconds of a fast device.
const MOST: usize = 1 << 24;

/// States as they were, and what has changed them since.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Every table, whole.
    pub tables: Vec<Tensor>,
    pub events: Vec<Event>,
    values: usize,
}

impl Journal {
    /// Begins anew from these tables.
    pub fn begin(&mut self, tables: Vec<Tensor>) {
        *self = Self { tables, ..Self::default() };
    }

    /// Adds what was done; tells whether it is time to begin anew.
    pub fn add(&mut self, event: Event) -> bool {
        self.values += match &event {
            Event::Tick { lengths, x, .. } => x.len() + 3 * lengths.len(),
            Event::Write { rows, .. } => rows.iter().map(Tensor::len).sum(),
            Event::Fork { .. } => 2,
        };
        self.events.push(event);
        // Reading the tables should not cost more than what was done since.
        let tables: usize = self.tables.iter().map(Tensor::len).sum();
        self.values > MOST.min(16 * tables.max(1024))
    }
}
