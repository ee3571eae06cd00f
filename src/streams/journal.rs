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

/// How many times the values of the tables a journal keeps before they are read anew: reading them should not cost more than
/// what was done since.
const MOST: usize = 8;
/// What an event takes besides its values, in values.
const EVENT: usize = 128;
/// What it keeps whatever the tables are, and the most that it keeps: 256 MB.
const LEAST: usize = 1 << 20;
const LIMIT: usize = 1 << 26;

/// States as they were, and what has changed them since.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Every table, whole.
    pub tables: Vec<Tensor>,
    pub events: Vec<Event>,
    values: usize,
    /// Room of what was kept.
    spare: Vec<Vec<u32>>,
}

impl Journal {
    /// Begins anew from these tables.
    pub fn begin(&mut self, tables: Vec<Tensor>) {
        (self.tables, self.values) = (tables, 0);
        let inputs = self.events.drain(..).filter_map(|event| match event {
            Event::Tick { x, .. } => x.into_f32s().ok().map(bytemuck::cast_vec),
            _ => None,
        });
        self.spare = inputs.collect();
    }

    /// Room for the values of a tick, if there is any.
    pub fn spare(&mut self) -> Option<Vec<u32>> {
        self.spare.pop()
    }

    /// Adds what was done; tells whether it is time to begin anew.
    pub fn add(&mut self, event: Event) -> bool {
        self.values += EVENT;
        self.values += match &event {
            Event::Tick { lengths, x, .. } => x.len() + 3 * lengths.len(),
            Event::Write { rows, .. } => rows.iter().map(Tensor::len).sum(),
            Event::Fork { .. } => 2,
        };
        self.events.push(event);
        let tables: usize = self.tables.iter().map(Tensor::len).sum();
        self.values > LEAST.max(MOST * tables).min(LIMIT)
    }
}
