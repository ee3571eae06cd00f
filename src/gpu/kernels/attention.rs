//! Attention and its gradients.

use super::{Runner, input, kernel, output, params, word};
use crate::error::{Error, Result};
use crate::gpu::pipeline::{Constants, Kernel};
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::attention::{backward, forward};
use crate::graph::{AttentionPart, Op, Score};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params {
    features: u32,
    columns: u32,
    rows: u32,
    chunks: u32,
    own_offsets: u32,
    own_steps: u32,
    own_order: u32,
    other_offsets: u32,
    other_lengths: u32,
    other_places: u32,
});

pub(super) static KERNEL: Kernel =
    kernel!("attention", "main", Params, [Params, Read, Read, Read, Read, Read, Write, Write]);
pub(super) static BACKWARD: Kernel =
    kernel!("attention_backward", "main", Params, [Params, Read, Read, Read, Read, Read, Read, Write]);

/// Columns of a workgroup.
const COLUMNS: usize = 256;

/// Attention, or one of its gradients.
pub(super) struct Attention {
    launch: Launch,
    /// The axis whose rows own the output, and the other.
    axes: [u8; 2],
    features: usize,
    columns: usize,
    /// Of the output.
    width: usize,
    y: usize,
    result: View,
}

impl Attention {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (op, part) = match step.op {
            Op::Attention(op) => (op, None),
            Op::AttentionBackward { attention, part } => (attention, Some(part)),
            _ => return Err(Error::internal("no attention")),
        };
        let (q, k) = (input(step, forward::QUERIES)?, input(step, forward::KEYS)?);
        let (v, y) = (input(step, forward::VALUES)?, output(step, 0)?);
        let of_keys = matches!(part, Some(AttentionPart::Keys | AttentionPart::Values));
        let axis = |value| row_axis(values.shape(value)).ok_or_else(|| Error::internal("a value has no time axis"));
        let (queries, keys) = (axis(q)?, axis(k)?);
        if values.pieces(Some(queries)) > 1 || values.pieces(Some(keys)) > 1 {
            return Err(Error::unsupported("attention over sequences that exceed what the device binds at once"));
        }
        let scale = step.inputs[forward::SCALE].map(|s| values.view(s, 0)).transpose()?;
        let constants: Constants =
            [("ADDITIVE", op.score == Score::Additive), ("SCALED", scale.is_some()), ("CAUSAL", op.causal)]
                .into_iter()
                .filter_map(|(name, is)| is.then_some((name, 1.0)))
                .collect();
        let mut views =
            [q, k, v].map(|value| values.view(value, 0).map(Some)).into_iter().collect::<Result<Vec<_>>>()?;
        views.extend([scale, Some(preparer.tables())]);
        let result = values.view(y, 0)?;
        let launch = match part {
            None => {
                let normalizer = values.view(output(step, forward::LOG_SUM_EXP)?, 0)?;
                views.extend([Some(result.clone()), Some(normalizer)]);
                preparer.launch_with(&KERNEL, "", None, &constants, &views)?
            }
            Some(part) => {
                views.extend([Some(values.view(input(step, backward::GIVEN)?, 0)?), Some(result.clone())]);
                let number = match part {
                    AttentionPart::Queries => 0.0,
                    AttentionPart::Scale => 1.0,
                    AttentionPart::Keys => 2.0,
                    AttentionPart::Values => 3.0,
                };
                let constants = constants.into_iter().chain([("PART", number)]).collect();
                preparer.launch_with(&BACKWARD, "", None, &constants, &views)?
            }
        };
        let axes = if of_keys { [keys, queries] } else { [queries, keys] };
        let (features, columns) = (values.row_len(q)?, values.row_len(v)?);
        Ok(Self { launch, axes, features, columns, width: values.row_len(y)?, y, result })
    }
}

impl Runner for Attention {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let (rows, chunks) = (run.rows(self.y)?, self.width.div_ceil(COLUMNS));
        if rows == 0 && !run.continues {
            out.clear(self.result.clone());
            return Ok(());
        }
        let (layout, [own, other]) = (run.layout(), self.axes);
        let (own_region, other_region) = (layout.region(own).0, layout.region(other).0);
        let params = Params {
            features: word(self.features),
            columns: word(self.columns),
            rows: word(rows),
            chunks: word(chunks),
            own_offsets: word(own_region + layout.offsets()),
            own_steps: word(run.batch.axis(own)?.steps()),
            own_order: word(own_region + layout.order(own)),
            other_offsets: word(other_region + layout.offsets()),
            other_lengths: word(other_region + layout.lengths(other)),
            other_places: word(other_region + layout.places(other)),
        };
        out.dispatch(&self.launch, &params, rows * chunks);
        Ok(())
    }
}
