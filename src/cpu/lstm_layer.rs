//! What both passes of an LSTM layer share: how sequences are spread over threads, rows of each, packed parameters,
//! random masks, normalisation.

use super::call::{Cached, Call};
use super::matmul::OWN_CACHE;
use super::packed::Packed;
use super::products::rows_of;
use super::room::Room;
use super::rows::{COPY_COST, TASK_COST, over_rows};
use super::team::Meeting;
use super::threads;
use crate::config::{Cell, GATES, Mask};
use crate::error::{Error, Result};
use crate::graph::{LstmOp, Parameter};
use crate::params::random::{StreamKey, drop_threshold, keeps, unit_word};
use crate::scheduler::{Axis, Batch};
use std::ops::Range;

/// Floats between rows of a left operand beyond what they hold, so that they do not all fall into the same sets of the cache.
pub(super) const SKEW: usize = 16;
/// Values of weights that stay in the cache that all processors share, and sequences of a thread's step that are enough to fetch
/// weights from there: measured at H 256 to 1024, training gains 4 to 8 % over meetings.
const SHARED_CACHE: usize = 4 << 20;
const SHARED_ROWS: usize = 32;
/// Most sequences whose states and sums of gates stay in a processor's second cache from step to step.
const TILE: usize = 128;
/// Sequences of a thread up to which it has them all in one tile, and the fewest of a tile where it has more: a product of fewer
/// rows is slower.
const FEW: usize = 64;
const LEAST: usize = 24;
/// Multiply-adds of a step that are worth a meeting.
const MEETING_COST: usize = 50_000;
/// Packed operands that a layer may keep: each direction's input weights, recurrent weights and projection.
pub(super) const PACKS: usize = 6;

/// The sequences of each thread: contiguous, with about as many rows each. `cost` is that of one row.
pub(super) fn shares(axis: &Axis, lengths: &[usize], cost: usize) -> Vec<Range<usize>> {
    let wanted = (axis.rows() * cost / TASK_COST).clamp(1, threads::count());
    let (mut shares, mut first, mut rows) = (Vec::new(), 0, 0);
    for (b, length) in lengths.iter().enumerate() {
        rows += length;
        if rows * wanted >= axis.rows() * (shares.len() + 1) && shares.len() + 1 < wanted {
            shares.push(first..b + 1);
            first = b + 1;
        }
    }
    if first < lengths.len() {
        shares.push(first..lengths.len());
    }
    shares
}

/// Calls `work` for each thread's sequences and panels, of which there are so many: `shares` of sequences with all panels, or all
/// sequences with a share of the panels each. A thread runs [`TILE`] sequences to their end before the next.
pub(super) fn spread(
    layer: &Layer<'_>,
    shares: &[Range<usize>],
    panels: usize,
    work: impl Fn(Range<usize>, Range<usize>, &Meeting) + Sync,
) {
    let members = threads::count();
    let weights = GATES * layer.hidden * layer.r;
    let step = layer.lengths.len() * weights;
    let longest = layer.lengths.first().copied().unwrap_or(0).max(1);
    let active = layer.lengths.iter().sum::<usize>() / longest;
    let apart = weights <= SHARED_CACHE && active >= SHARED_ROWS * members;
    let is_large = weights > OWN_CACHE && !apart;
    if members <= panels && (shares.len() < members || is_large) && step > MEETING_COST {
        let meeting = Meeting::new(members);
        let share = |n: usize| n * panels / members;
        meeting.gather(|n| {
            for tile in tiles(&(0..layer.lengths.len())) {
                work(tile, share(n)..share(n + 1), &meeting);
            }
        });
    } else {
        let is_many = layer.lengths.len() > FEW * shares.len() && shares.len() > 1;
        let tiles: Vec<_> = match is_many {
            true => falling(layer.lengths, shares.len()).collect(),
            false => shares.iter().flat_map(tiles).collect(),
        };
        threads::each(tiles.into_iter(), |tile| work(tile, 0..panels, &Meeting::new(1)));
    }
}

/// As few parts of `sequences` as hold at most [`TILE`] each, of about the same size; one that is empty where there is none.
fn tiles(sequences: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let (first, len) = (sequences.start, sequences.len());
    let count = len.div_ceil(TILE).max(1);
    (0..count).map(move |n| first + n * len / count..first + (n + 1) * len / count)
}

/// Parts of sequences of these lengths, which descend, each with fewer rows than those before: threads take one after the other, and
/// one that the system holds up takes fewer.
fn falling(lengths: &[usize], threads: usize) -> impl Iterator<Item = Range<usize>> {
    let all = lengths.iter().sum::<usize>();
    let (mut first, mut left) = (0, all);
    std::iter::from_fn(move || {
        let (begin, mut rows) = (first, 0);
        while first < lengths.len() && first - begin < TILE {
            // No more than a thread's share, however few have it; and what is left after it is not too few.
            let is_enough = first - begin >= LEAST && 2 * threads * rows >= left;
            if (is_enough && lengths.len() - first >= LEAST) || first > begin && threads * rows >= all {
                break;
            }
            rows += lengths[first];
            first += 1;
        }
        left -= rows;
        (first > begin).then_some(begin..first)
    })
}

/// The length of each packed sequence. Sequence b takes part in the steps whose rows exceed b; lengths descend.
pub(super) fn lengths(axis: &Axis, sequences: usize) -> Vec<usize> {
    let mut lengths = vec![0; sequences];
    (0..axis.steps()).for_each(|t| lengths[..axis.rows_at(t)].iter_mut().for_each(|l| *l += 1));
    lengths
}

/// The rows of some sequences, step by step.
#[derive(Default)]
pub(super) struct Rows<'a> {
    steps: Vec<&'a mut [f32]>,
    width: usize,
}

impl<'a> Rows<'a> {
    /// Cuts packed rows of `width` values into each share's.
    pub fn cut(mut rows: &'a mut [f32], width: usize, axis: &Axis, shares: &[Range<usize>]) -> Vec<Self> {
        let mut parts: Vec<Self> =
            shares.iter().map(|_| Self { steps: Vec::with_capacity(axis.steps()), width }).collect();
        for t in 0..axis.steps() {
            for (share, part) in shares.iter().zip(&mut parts) {
                let active = axis.rows_at(t).min(share.end).saturating_sub(share.start);
                let (head, tail) = std::mem::take(&mut rows).split_at_mut(active * width);
                part.steps.push(head);
                rows = tail;
            }
        }
        parts
    }

    /// [`Self::cut`] of an optional output: an absent one has no rows.
    pub fn cut_if(rows: Option<&'a mut [f32]>, width: usize, axis: &Axis, shares: &[Range<usize>]) -> Vec<Self> {
        match rows {
            Some(rows) => Self::cut(rows, width, axis, shares),
            None => shares.iter().map(|_| Self::default()).collect(),
        }
    }

    /// Whether anybody wants them.
    pub fn wanted(&self) -> bool {
        self.width > 0
    }

    /// The `n` columns of direction `d` in the row of sequence `b` (of the share) at step `t`.
    #[inline(always)]
    pub fn row(&mut self, t: usize, b: usize, d: usize, n: usize) -> &mut [f32] {
        &mut self.steps[t][b * self.width + d * n..][..n]
    }
}

/// Cuts `[B, width]` into each share's rows.
pub(super) fn cut_states<'a>(mut rows: &'a mut [f32], width: usize, shares: &[Range<usize>]) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(shares.len());
    for share in shares {
        let (head, tail) = std::mem::take(&mut rows).split_at_mut(share.len() * width);
        parts.push(head);
        rows = tail;
    }
    parts
}

/// Copies `source` to `to`, or zeros.
pub(super) fn begin(to: &mut [f32], source: Option<&[f32]>) {
    match source {
        Some(source) => over_rows(to, 1, COPY_COST, |first, to| to.copy_from_slice(&source[first..][..to.len()])),
        None => to.fill(0.0),
    }
}

/// One direction's columns of states `[B, D·n]`, as rows of their own.
pub(super) fn own_columns(states: &[f32], d: usize, directions: usize, n: usize) -> Vec<f32> {
    states.chunks_exact((directions * n).max(1)).flat_map(|row| row[d * n..][..n].iter().copied()).collect()
}

/// The inverse of [`own_columns`].
pub(super) fn put_columns(states: &mut [f32], own: &[f32], d: usize, directions: usize, n: usize) {
    for (row, own) in states.chunks_exact_mut((directions * n).max(1)).zip(own.chunks_exact(n.max(1))) {
        row[d * n..][..n].copy_from_slice(own);
    }
}

/// The parameters of one direction.
pub(super) struct Weights<'a> {
    /// W_ihᵀ `[I, 4H]` by units, forward
    pub ih: Option<&'a Packed>,
    /// Uᵀ `[R, 4H]` by units forward, U `[4H, R]` backward
    pub hh: &'a Packed,
    /// W_hrᵀ `[H, R]` forward, W_hr `[R, H]` backward
    pub hr: Option<&'a Packed>,
    pub peepholes: Option<&'a [f32]>,
    pub norm: Option<Norm<'a>>,
}

/// The gains and the bias of a normalised cell.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub epsilon: f32,
    pub hh: &'a [f32],
    pub gain: &'a [f32],
    pub bias: &'a [f32],
}

/// Which way weights are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    Backward,
}

/// Packs the weights of every direction of `call`'s layer, kept while they do not change.
pub(super) fn weights<'a>(
    call: &Call<'a>,
    packs: &'a mut [Cached],
    op: &LstmOp,
    at: fn(usize, Parameter) -> usize,
    pass: Pass,
) -> Result<Vec<Weights<'a>>> {
    let mut parts = packs.iter_mut();
    let mut next = || parts.next().ok_or_else(|| Error::internal("too few packed operands"));
    let (ih, hh, hr) = ([next()?, next()?], [next()?, next()?], [next()?, next()?]);
    let mut all = Vec::new();
    for (d, ((ih, hh), hr)) in ih.into_iter().zip(hh).zip(hr).enumerate().take(op.directions()) {
        let place = |parameter| at(d, parameter);
        let pack = |cached: &'a mut Cached, at: usize| -> Result<&'a Packed> {
            let (operand, data) = (call.operand(at)?, call.input(at)?);
            let (rows, columns) = (operand.rows(), operand.columns());
            Ok(cached.get(operand.version, |packed| match pass {
                Pass::Forward if at == place(Parameter::WeightHr) => packed.transpose(data, columns, rows),
                Pass::Forward => packed.gates(data, columns, rows / GATES),
                Pass::Backward => packed.rows(&rows_of(data, columns), columns),
            }))
        };
        let (ih_at, hr_at) = (place(Parameter::WeightIh), place(Parameter::WeightHr));
        let has_ih = pass == Pass::Forward && call.maybe(ih_at).is_some();
        let norm = match op.cell.layer_norm {
            Some(epsilon) => Some(Norm {
                epsilon,
                hh: call.input(place(Parameter::NormHh))?,
                gain: call.input(place(Parameter::NormGain))?,
                bias: call.input(place(Parameter::NormBias))?,
            }),
            None => None,
        };
        all.push(Weights {
            ih: has_ih.then(|| pack(ih, ih_at)).transpose()?,
            hh: pack(hh, place(Parameter::WeightHh))?,
            hr: call.maybe(hr_at).is_some().then(|| pack(hr, hr_at)).transpose()?,
            peepholes: call.maybe_input(place(Parameter::Peepholes))?,
            norm,
        });
    }
    Ok(all)
}

/// A layer of one run.
pub(super) struct Layer<'a> {
    pub op: &'a LstmOp,
    pub batch: &'a Batch,
    pub axis: &'a Axis,
    /// Of each packed sequence.
    pub lengths: &'a [usize],
    pub weights: Vec<Weights<'a>>,
    pub hidden: usize,
    pub r: usize,
    pub room: &'a Room,
}

impl Layer<'_> {
    /// The packed row of sequence `b` at step `s` of direction `d`.
    #[inline(always)]
    pub fn row(&self, d: usize, s: usize, b: usize) -> usize {
        let t = if self.op.direction.reversed(d) { self.lengths[b] - 1 - s } else { s };
        self.axis.offset(t) + b
    }

    /// H and R from W_hh's shape `[4H, R]`.
    pub fn sizes(call: &Call<'_>, at: usize) -> Result<(usize, usize)> {
        let operand = call.operand(at)?;
        Ok((operand.rows() / GATES, operand.columns()))
    }

    fn mask(
        &self,
        of: u32,
        rate: f32,
        mask: Mask,
        (b, t): (usize, usize),
        (first, values): (usize, [f32; 2]),
        out: &mut [f32],
    ) {
        let Some(operation) = self.op.random.map(|random| random + of) else { return };
        let key = StreamKey { seed: self.batch.seed, step: self.batch.step, operation };
        let time = if mask == Mask::Step { self.axis.start.wrapping_add(t as u32) } else { u32::MAX };
        let (key, threshold) = (key.row(self.batch.sample(self.axis, b), time), drop_threshold(rate));
        for (j, to) in out.iter_mut().enumerate() {
            *to = values[usize::from(keeps(unit_word(key, (first + j) as u32), threshold))];
        }
    }

    /// The factors of h of packed sequence `b` before it meets U at step `t`; whether there are any.
    pub fn recurrent_mask(&self, b: usize, t: usize, d: usize, out: &mut [f32]) -> bool {
        let rate = self.op.cell.recurrent_dropout;
        if self.op.dropout().is_none() {
            return false;
        }
        self.mask(0, rate, self.op.cell.recurrent_mask, (b, t), (d * self.r, [0.0, 1.0 / (1.0 - rate)]), out);
        true
    }

    /// How much of the last h (`of` 1) or c (`of` 2) of packed sequence `b` stays at step `t`.
    pub fn zoneout(&self, of: u32, b: usize, t: usize, d: usize, out: &mut [f32]) {
        let rate = if of == 1 { self.op.cell.zoneout_h } else { self.op.cell.zoneout_c };
        out.fill(rate);
        if rate > 0.0 {
            self.mask(of, rate, Mask::Step, (b, t), (d * out.len(), [1.0, 0.0]), out);
        }
    }

    /// Whether gates, cell and h are the plain ones, whatever happens to h besides.
    #[inline(always)]
    pub fn plain_cell(&self) -> bool {
        let plain = Cell::default();
        let Cell { zoneout_h, gradient_clip, recurrent_dropout, recurrent_mask, .. } = self.op.cell;
        self.op.cell == Cell { zoneout_h, gradient_clip, recurrent_dropout, recurrent_mask, ..plain }
    }

    /// Whether a step is nothing but the plain cell.
    pub fn plain(&self, d: usize) -> bool {
        let cell = &self.op.cell;
        let besides = cell.zoneout_h > 0.0 || cell.gradient_clip.is_some() || self.op.dropout().is_some();
        self.plain_cell() && !besides && self.weights[d].hr.is_none()
    }
}

/// `x` becomes (x - mean) / √(variance + epsilon); the factor. Sums are in f64 in an order that depends on the length.
pub(super) fn normalise(x: &mut [f32], epsilon: f32) -> f32 {
    let n = x.len() as f64;
    let mean = super::math::sum(x, |x| x) / n;
    let variance = super::math::sum(x, |x| (x - mean) * (x - mean)) / n;
    let factor = (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32;
    x.iter_mut().for_each(|x| *x = (*x - mean as f32) * factor);
    factor
}

/// `dn` becomes the gradient of what was normalised: factor · (dn - mean(dn) - n · mean(dn n)).
pub(super) fn normalise_backward(normed: &[f32], factor: f32, dn: &mut [f32]) {
    let n = dn.len() as f64;
    let mean = (super::math::sum(dn, |x| x) / n) as f32;
    let along = (dn.iter().zip(normed).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / n) as f32;
    dn.iter_mut().zip(normed).for_each(|(d, &y)| *d = factor * (*d - mean - y * along));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falling_parts_cover_all_sequences() {
        for (sequences, threads) in [(0, 2), (1, 2), (130, 2), (256, 2), (1000, 3), (5000, 2)] {
            let parts: Vec<_> = falling(&vec![3; sequences], threads).collect();
            let covered: Vec<usize> = parts.iter().flat_map(|p| p.clone()).collect();
            assert_eq!(covered, (0..sequences).collect::<Vec<_>>());
            let sizes = LEAST.min(sequences)..=TILE;
            assert!(parts.iter().all(|p| sizes.contains(&p.len())), "{parts:?}");
            // The last may be as large as what was left over makes it.
            assert!(parts.iter().rev().skip(1).is_sorted_by_key(|p| p.len()), "{parts:?}");
        }
    }

    #[test]
    fn falling_parts_are_shared_by_rows() {
        // Eight sequences have two thirds of the rows.
        let lengths = [vec![200; 8], vec![5; 152], vec![0; 40]].concat();
        let parts: Vec<_> = falling(&lengths, 2).collect();
        let covered: Vec<usize> = parts.iter().flat_map(|p| p.clone()).collect();
        assert_eq!(covered, (0..200).collect::<Vec<_>>());
        let rows: Vec<usize> = parts.iter().map(|p| lengths[p.clone()].iter().sum()).collect();
        assert!(rows.iter().all(|&n| n <= 2360 / 2 + 200), "{rows:?}");
    }

    #[test]
    fn shares_cover_all_sequences_and_cuts_all_rows() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for wanted in [vec![5, 0, 3, 3, 1, 0], vec![], vec![0, 0], vec![9], vec![4; 7]] {
            let batch = Batch::ragged(&wanted).unwrap();
            let axis = batch.axis(0).unwrap();
            let lengths = lengths(axis, wanted.len());
            let mut sorted = wanted.clone();
            sorted.sort_by_key(|&n| std::cmp::Reverse(n));
            assert_eq!(lengths, sorted);
            let shares = pool.install(|| shares(axis, &lengths, 1_000_000));
            let covered: Vec<usize> = shares.iter().flat_map(|s| s.clone()).collect();
            assert_eq!(covered, (0..wanted.len()).collect::<Vec<_>>());
            let mut rows = vec![0.0; axis.rows() * 2];
            let parts = Rows::cut(&mut rows, 2, axis, &shares);
            assert_eq!(parts.iter().flat_map(|p| &p.steps).map(|p| p.len()).sum::<usize>(), axis.rows() * 2);
        }
    }
}
