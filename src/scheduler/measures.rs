//! What is done to hold less: gates or segments computed again, micro-batches.

use super::batch::{Capacity, GRADIENT_CHUNK};
use super::stage::Cut;

/// Steps of parts that are no whole chunk of a sum over rows.
const FEW: [usize; 3] = [32, 16, 8];

/// What a cut program stores whole for the stages that come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All that they read but what recurrences compute, which is computed again.
    Outputs,
    /// Nothing: they compute it again.
    Nothing,
}

/// What is done to hold less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measures {
    /// What is computed again in the backward pass, in parts of so many timesteps.
    pub segments: Option<(Keep, usize)>,
    /// Sequences of a part, where not all.
    pub sequences: Option<usize>,
    /// Whether the states between segments wait in the host's memory, away from the device.
    pub offload: bool,
    /// Whether weights wait in the host's memory or in their file, and are brought to the device when they are needed.
    pub stream: bool,
}

impl Measures {
    /// The parts that the program runs in, and what they keep.
    pub fn cut(&self) -> Option<(Cut, Keep)> {
        if self.segments.is_none() && self.sequences.is_none() {
            return None;
        }
        let (keep, steps) = self.segments.unwrap_or((Keep::Nothing, usize::MAX));
        Some((Cut { axis: 0, steps, sequences: self.sequences.unwrap_or(usize::MAX) }, keep))
    }

    /// Whether gradients have the bits of a run without any measure.
    pub fn keeps_bits(&self) -> bool {
        self.sequences.is_none()
    }
}

impl std::fmt::Display for Measures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text(true, true))
    }
}

impl Measures {
    /// In words; `again` says whether anything is computed twice, `sums` whether anything is summed over parts.
    pub(super) fn text(&self, again: bool, sums: bool) -> String {
        let mut parts = Vec::new();
        match self.segments {
            Some((_, steps)) if !again => parts.push(format!("parts of {steps} steps, one after the other")),
            Some((Keep::Outputs, steps)) => parts.push(format!("gates are computed again every {steps} steps")),
            Some((Keep::Nothing, steps)) => {
                parts.push(format!("states are kept every {steps} steps, all else is computed again"));
            }
            None => {}
        }
        if let Some(sequences) = self.sequences {
            let sums = if sums { ", whose gradients are added up in another order" } else { "" };
            parts.push(format!("micro-batches of {sequences} sequences{sums}"));
        }
        if self.offload {
            parts.push("states wait in the host's memory".to_string());
        }
        if self.stream {
            parts
                .push("weights wait in the host's memory or in their file, and are brought layer by layer".to_string());
        }
        if parts.is_empty() {
            parts.push("everything is held at once".to_string());
        }
        parts.join("; ")
    }
}

/// Measures by how much they cost: those that keep the bits of gradients first, gates again, segments again, weights that wait;
/// then micro-batches, with all of these; and on a device with memory of its own the host's.
pub(super) fn all(capacity: &Capacity, unified: bool) -> Vec<Measures> {
    let longest = capacity.axes.first().map_or(0, |a| a.0);
    // Near √T, where what is kept for all segments and what one holds are about as much; then less.
    let mut steps = vec![((longest as f64).sqrt() as usize).next_multiple_of(GRADIENT_CHUNK)];
    while let Some(&last) = steps.last()
        && last > GRADIENT_CHUNK
    {
        steps.push((last / 2).next_multiple_of(GRADIENT_CHUNK));
    }
    // Where nothing is summed over rows: the fewer steps, the more often weights that wait are brought.
    steps.extend(FEW);
    steps.retain(|&k| k < longest);
    let segments = |keep| steps.iter().map(move |&k| Measures { segments: Some((keep, k)), ..Measures::default() });
    let again: Vec<Measures> = [Keep::Outputs, Keep::Nothing].into_iter().flat_map(segments).collect();
    let streamed = |m: &Measures| Measures { stream: true, ..*m };
    let whole = Measures::default();
    let mut all = again.clone();
    all.extend(std::iter::once(&whole).chain(&again).map(streamed));
    let mut sequences = capacity.sequences;
    while sequences > 1 {
        sequences = sequences.div_ceil(2);
        let parts: Vec<Measures> = std::iter::once(whole)
            .chain(segments(Keep::Nothing))
            .map(|m| Measures { sequences: Some(sequences), ..m })
            .collect();
        all.extend(parts.iter().copied().chain(parts.iter().map(streamed)));
    }
    if !unified {
        let segments = |m: &&Measures| matches!(m.segments, Some((Keep::Nothing, _)));
        let offloaded: Vec<Measures> = all.iter().filter(segments).map(|&m| Measures { offload: true, ..m }).collect();
        all.extend(offloaded);
    }
    all
}
