//! One run's sequences: their packing, their identity, and the scalars that may change between runs.

use crate::error::{Error, Result};
use crate::graph::{Dim, Shape, Symbol};
use std::collections::BTreeMap;
use std::ops::Range;

/// Timesteps over which parameter gradients are summed before they are added up, last chunk first. Fixed, so that
/// segments that are recomputed later keep the bits.
pub const GRADIENT_CHUNK: usize = 64;

/// The packed rows of one time axis: step-major, sequences by length descending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    rows_at: Vec<u32>,
    offsets: Vec<u32>,
    /// The batch's row of each sequence as it is packed here.
    order: Vec<u32>,
    /// Where each of the batch's rows is packed here.
    places: Vec<u32>,
    /// The absolute time of step 0, for random numbers of sequences that are read in pieces.
    pub start: u32,
}

impl Axis {
    /// The axis of sequences of these lengths, in the batch's order.
    fn new(lengths: &[usize]) -> Result<Self> {
        let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
        order.sort_by_key(|&row| std::cmp::Reverse(lengths[row as usize])); // stable
        let sorted_lengths: Vec<usize> = order.iter().map(|&row| lengths[row as usize]).collect();
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(b, &row)| places[row as usize] = b as u32);
        let steps = sorted_lengths.first().copied().unwrap_or(0);
        let mut rows_at = Vec::with_capacity(steps);
        let mut offsets = Vec::with_capacity(steps + 1);
        let (mut active, mut total) = (sorted_lengths.len(), 0usize);
        offsets.push(0);
        for t in 0..steps {
            while active > 0 && sorted_lengths[active - 1] <= t {
                active -= 1;
            }
            total += active;
            if total > u32::MAX as usize / 2 {
                return Err(Error::shape(format!("batch: more than {} rows", u32::MAX / 2)));
            }
            rows_at.push(active as u32);
            offsets.push(total as u32);
        }
        Ok(Self { rows_at, offsets, order, places, start: 0 })
    }

    /// T, steps of the longest sequence.
    pub fn steps(&self) -> usize {
        self.rows_at.len()
    }

    /// N, packed rows.
    pub fn rows(&self) -> usize {
        self.offsets[self.steps()] as usize
    }

    /// Sequences that reach step `t`; zero from T on.
    pub fn rows_at(&self, t: usize) -> usize {
        self.rows_at.get(t).map_or(0, |&n| n as usize)
    }

    /// The length of packed sequence `b`.
    pub fn length(&self, b: usize) -> usize {
        // Rows a step never increase.
        self.rows_at.partition_point(|&rows| rows as usize > b)
    }

    /// The batch's row of each sequence, in the order in which they are packed here; 0, 1, 2 and on for the first axis.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Where each of the batch's rows is packed here; the inverse of [`Self::order`].
    pub fn places(&self) -> &[u32] {
        &self.places
    }

    /// The first row of step `t`, N for `t` = T.
    pub fn offset(&self, t: usize) -> usize {
        self.offsets[t] as usize
    }

    /// First rows of all steps and N, T+1 numbers.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// Some steps of some sequences, as an axis of its own that knows where in time it begins.
    fn part(&self, steps: Range<usize>, sequences: &Range<usize>) -> Self {
        let steps = steps.start..steps.end.min(self.steps());
        let own = |t: usize| self.rows_at(t).clamp(sequences.start, sequences.end) - sequences.start;
        let rows_at: Vec<u32> = steps.clone().map(|t| own(t) as u32).take_while(|&n| n > 0).collect();
        let mut offsets = vec![0];
        offsets.extend(rows_at.iter().scan(0, |total, rows| {
            *total += rows;
            Some(*total)
        }));
        let order: Vec<u32> = (0..sequences.len() as u32).collect();
        let start = self.start.wrapping_add(steps.start as u32);
        Self { rows_at, offsets, places: order.clone(), order, start }
    }

    /// The row ranges of [`GRADIENT_CHUNK`] timesteps, last first.
    pub fn chunks(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let count = self.steps().div_ceil(GRADIENT_CHUNK);
        (0..count).rev().map(|c| {
            let end = ((c + 1) * GRADIENT_CHUNK).min(self.steps());
            self.offset(c * GRADIENT_CHUNK)..self.offset(end)
        })
    }
}

/// The sequences and scalars of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    sequences: usize,
    axes: Vec<Axis>,
    order: Vec<usize>,
    samples: Vec<u32>,
    /// The seed of all random numbers of the run.
    pub seed: u64,
    /// The training step, counted from 0.
    pub step: u32,
    scalars: BTreeMap<String, f32>,
}

impl Batch {
    /// `sequences` sequences of `steps` steps.
    pub fn dense(steps: usize, sequences: usize) -> Result<Self> {
        Self::ragged(&vec![steps; sequences])
    }

    /// Sequences of these lengths, in any order, zero included.
    pub fn ragged(lengths: &[usize]) -> Result<Self> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&b| std::cmp::Reverse(lengths[b])); // stable
        let sorted: Vec<usize> = order.iter().map(|&b| lengths[b]).collect();
        let samples = order.iter().map(|&b| b as u32).collect();
        let axes = vec![Axis::new(&sorted)?];
        Ok(Self { sequences: lengths.len(), axes, order, samples, seed: 0, step: 0, scalars: BTreeMap::new() })
    }

    /// Adds a further time axis of these lengths, in the caller's order. Its sequences are packed by their lengths there;
    /// rows `[B, *]` keep the order of the first axis.
    pub fn with_axis(mut self, lengths: &[usize]) -> Result<Self> {
        if lengths.len() != self.sequences {
            return Err(Error::shape(format!("batch: {} sequences, {} lengths", self.sequences, lengths.len())));
        }
        let own: Vec<usize> = self.order.iter().map(|&b| lengths[b]).collect();
        self.axes.push(Axis::new(&own)?);
        Ok(self)
    }

    /// Names the sequences (in the caller's order) for random numbers; otherwise they are numbered from 0.
    pub fn with_samples(mut self, samples: &[u32]) -> Result<Self> {
        if samples.len() != self.sequences {
            return Err(Error::shape(format!("batch: {} sequences, {} sample ids", self.sequences, samples.len())));
        }
        self.samples = self.order.iter().map(|&b| samples[b]).collect();
        Ok(self)
    }

    /// Sets the absolute time of step 0 of the first axis.
    #[must_use]
    pub fn starting_at(mut self, start: u32) -> Self {
        self.axes[0].start = start;
        self
    }

    /// Sets the seed and the training step.
    #[must_use]
    pub fn at_step(mut self, seed: u64, step: u32) -> Self {
        self.seed = seed;
        self.step = step;
        self
    }

    /// Gives a named scalar its value for this run.
    pub fn set_scalar(&mut self, name: &str, value: f32) {
        self.scalars.insert(name.to_string(), value);
    }

    /// A named scalar.
    pub fn scalar(&self, name: &str) -> Option<f32> {
        self.scalars.get(name).copied()
    }

    /// B.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// The time axis `axis`.
    pub fn axis(&self, axis: u8) -> Result<&Axis> {
        self.axes.get(axis as usize).ok_or_else(|| {
            Error::argument(format!("batch: the program has a time axis {axis}, the batch {}", self.axes.len()))
        })
    }

    /// All time axes.
    pub fn axes(&self) -> &[Axis] {
        &self.axes
    }

    /// The caller's index of each row `[B, *]`, which are in the order of the first time axis.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// The sample id of each row `[B, *]`.
    pub fn samples(&self) -> &[u32] {
        &self.samples
    }

    /// The sample id of sequence `b` as it is packed on `axis`.
    pub fn sample(&self, axis: &Axis, b: usize) -> u32 {
        self.samples[axis.order[b] as usize]
    }

    /// Some steps of some sequences as `axis` packs them, as a batch of its own in which only that axis has steps.
    pub fn part(&self, axis: u8, steps: Range<usize>, sequences: Range<usize>) -> Result<Self> {
        let own = self.axis(axis)?;
        let samples = sequences.clone().map(|b| self.sample(own, b)).collect();
        let axes = self.axes.iter().enumerate().map(|(at, a)| match at == axis as usize {
            true => a.part(steps.clone(), &sequences),
            false => a.part(0..0, &sequences),
        });
        Ok(Self {
            sequences: sequences.len(),
            axes: axes.collect(),
            order: (0..sequences.len()).collect(),
            samples,
            seed: self.seed,
            step: self.step,
            scalars: BTreeMap::new(),
        })
    }

    /// The size of `dim` in this batch.
    pub fn size(&self, dim: &Dim) -> Result<usize> {
        match dim {
            Dim::Fixed(n) => Ok(*n),
            Dim::Symbol(Symbol::Batch) => Ok(self.sequences),
            Dim::Symbol(Symbol::Time(a)) => Ok(self.axis(*a)?.steps()),
            Dim::Symbol(Symbol::Rows(a)) => Ok(self.axis(*a)?.rows()),
            Dim::Symbol(Symbol::Named(n)) => Err(Error::argument(format!("batch: size `{n}` is not bound"))),
        }
    }

    /// The sizes of `shape` in this batch.
    pub fn resolve(&self, shape: &Shape) -> Result<Vec<usize>> {
        shape.0.iter().map(|d| self.size(d)).collect()
    }

    /// [`Self::resolve`] in the place of other sizes.
    pub fn resolve_into(&self, shape: &Shape, sizes: &mut Vec<usize>) -> Result<()> {
        sizes.clear();
        shape.0.iter().try_for_each(|dim| self.size(dim).map(|size| sizes.push(size)))
    }

    /// For each packed row of `axis`, its place in `[T, B]` (or `[B, T]`) of the caller's order, with `steps` steps.
    fn places(&self, axis: u8, batch_first: bool, steps: usize) -> Result<Vec<usize>> {
        let a = self.axis(axis)?;
        if a.steps() > steps {
            return Err(Error::shape(format!("batch: sequences reach step {}, the data has {steps}", a.steps())));
        }
        let mut places = Vec::with_capacity(a.rows());
        for t in 0..a.steps() {
            for &row in &a.order[..a.rows_at(t)] {
                let b = self.order[row as usize];
                places.push(if batch_first { b * steps + t } else { t * self.sequences + b });
            }
        }
        Ok(places)
    }

    /// Packs `data` of `[T, B, width]`, or `[B, T, width]` if `batch_first`, into `[N, width]`.
    pub fn pack<V: Copy>(&self, axis: u8, data: &[V], steps: usize, width: usize, batch_first: bool) -> Result<Vec<V>> {
        if data.len() != steps * self.sequences * width {
            return Err(Error::shape(format!(
                "batch: expected {steps} x {} x {width} values to pack, got {}",
                self.sequences,
                data.len()
            )));
        }
        let places = self.places(axis, batch_first, steps)?;
        let mut packed = Vec::with_capacity(places.len() * width);
        for p in places {
            packed.extend_from_slice(&data[p * width..(p + 1) * width]);
        }
        Ok(packed)
    }

    /// The inverse of [`Self::pack`], with `fill` past the end of each sequence.
    pub fn unpack<V: Copy>(
        &self,
        axis: u8,
        packed: &[V],
        steps: usize,
        width: usize,
        batch_first: bool,
        fill: V,
    ) -> Result<Vec<V>> {
        let places = self.places(axis, batch_first, steps)?;
        if packed.len() != places.len() * width {
            return Err(Error::shape(format!(
                "batch: expected {} x {width} packed values, got {}",
                places.len(),
                packed.len()
            )));
        }
        let mut data = vec![fill; steps * self.sequences * width];
        for (row, p) in places.into_iter().enumerate() {
            data[p * width..(p + 1) * width].copy_from_slice(&packed[row * width..(row + 1) * width]);
        }
        Ok(data)
    }

    /// Rows `[B, width]` from the caller's order into the packed order.
    pub fn sort_rows<V: Copy>(&self, rows: &[V], width: usize) -> Vec<V> {
        self.order.iter().flat_map(|&b| rows[b * width..(b + 1) * width].iter().copied()).collect()
    }

    /// Rows `[B, width]` from the packed order into the caller's.
    pub fn unsort_rows<V: Copy>(&self, rows: &[V], width: usize) -> Vec<V> {
        let mut at = vec![0; self.sequences];
        for (packed, &b) in self.order.iter().enumerate() {
            at[b] = packed;
        }
        at.iter().flat_map(|&b| rows[b * width..(b + 1) * width].iter().copied()).collect()
    }
}

/// The largest sizes that a program is compiled for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Capacity {
    /// B.
    pub sequences: usize,
    /// T and N of each time axis.
    pub axes: Vec<(usize, usize)>,
}

/// The smallest size of the ladder that holds `n`: numbers of at most four leading bits, so at most an eighth is spare.
pub fn ladder(n: usize) -> usize {
    if n <= 16 {
        return n;
    }
    let step = 1usize << (usize::BITS - n.leading_zeros() - 4);
    n.div_ceil(step) * step
}

impl Capacity {
    /// Exactly the sizes of `batch`.
    pub fn exactly(batch: &Batch) -> Self {
        Self { sequences: batch.sequences(), axes: batch.axes().iter().map(|a| (a.steps(), a.rows())).collect() }
    }

    /// The sizes of `batch` rounded up the ladder, so that programs are reused for similar batches.
    pub fn around(batch: &Batch) -> Self {
        let mut capacity = Self::exactly(batch);
        capacity.sequences = ladder(capacity.sequences);
        capacity.axes.iter_mut().for_each(|a| *a = (ladder(a.0), ladder(a.1)));
        capacity
    }

    /// Of parts of at most so many steps on `axis`, and sequences.
    pub fn part(&self, axis: u8, steps: usize, sequences: usize) -> Self {
        let sequences = sequences.min(self.sequences);
        let own = |(at, &(t, n)): (usize, &(usize, usize))| match at == axis as usize {
            true => (t.min(steps), n.min(steps.saturating_mul(sequences))),
            false => (0, 0),
        };
        Self { sequences, axes: self.axes.iter().enumerate().map(own).collect() }
    }

    /// The largest size that `dim` may have.
    pub fn size(&self, dim: &Dim) -> Result<usize> {
        let axis = |a: &u8| {
            self.axes.get(*a as usize).copied().ok_or_else(|| {
                Error::argument(format!("program: the graph has a time axis {a}, the capacity {}", self.axes.len()))
            })
        };
        match dim {
            Dim::Fixed(n) => Ok(*n),
            Dim::Symbol(Symbol::Batch) => Ok(self.sequences),
            Dim::Symbol(Symbol::Time(a)) => Ok(axis(a)?.0),
            Dim::Symbol(Symbol::Rows(a)) => Ok(axis(a)?.1),
            Dim::Symbol(Symbol::Named(n)) => Err(Error::argument(format!("program: size `{n}` is not bound"))),
        }
    }

    /// The largest sizes of `shape`.
    pub fn resolve(&self, shape: &Shape) -> Result<Vec<usize>> {
        shape.0.iter().map(|d| self.size(d)).collect()
    }

    /// Refuses a batch that is larger.
    pub fn admits(&self, batch: &Batch) -> Result<()> {
        let too_long = |(a, c): (&Axis, &(usize, usize))| a.steps() > c.0 || a.rows() > c.1;
        if batch.sequences() > self.sequences
            || batch.axes().len() < self.axes.len()
            || batch.axes().iter().zip(&self.axes).any(too_long)
        {
            return Err(Error::shape(format!(
                "program: compiled for B {} and (T, N) {:?}, the batch has {:?}",
                self.sequences,
                self.axes,
                Self::exactly(batch)
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_batches_are_packed_by_length_and_come_back_in_the_callers_order() {
        let batch = Batch::ragged(&[2, 0, 3, 2]).unwrap();
        let axis = batch.axis(0).unwrap();
        assert_eq!(batch.order(), [2, 0, 3, 1]);
        assert_eq!((axis.steps(), axis.rows()), (3, 7));
        assert_eq!([axis.rows_at(0), axis.rows_at(1), axis.rows_at(2), axis.rows_at(3)], [3, 3, 1, 0]);
        let data: Vec<u32> = (0..12).collect(); // [T = 3, B = 4]
        let packed = batch.pack(0, &data, 3, 1, false).unwrap();
        assert_eq!(packed, [2, 0, 3, 6, 4, 7, 10]);
        let back = batch.unpack(0, &packed, 3, 1, false, 99).unwrap();
        assert_eq!(back, [0, 99, 2, 3, 4, 99, 6, 7, 99, 99, 10, 99]);
        assert_eq!(batch.unsort_rows(&batch.sort_rows(&[5, 6, 7, 8], 1), 1), [5, 6, 7, 8]);
    }

    #[test]
    fn each_axis_has_an_order_of_its_own() {
        let batch = Batch::ragged(&[2, 0, 3]).unwrap().with_axis(&[1, 3, 2]).unwrap();
        assert_eq!(batch.order(), [2, 0, 1]);
        let second = batch.axis(1).unwrap();
        // Rows 2, 0, 1 of the caller are 2, 1 and 3 long there.
        assert_eq!((second.order(), second.places()), (&[2, 0, 1][..], &[1, 2, 0][..]));
        assert_eq!([0, 1, 2].map(|b| batch.sample(second, b)), [1, 2, 0]);
        let data: Vec<u32> = (0..9).collect(); // [B, T = 3]
        let packed = batch.pack(1, &data, 3, 1, true).unwrap();
        assert_eq!(packed, [3, 6, 0, 4, 7, 5]);
        assert_eq!(batch.unpack(1, &packed, 3, 1, true, 9).unwrap(), [0, 9, 9, 3, 4, 5, 6, 7, 9]);
    }

    #[test]
    fn chunks_are_64_steps_last_first_and_cover_all_rows() {
        let batch = Batch::dense(130, 3).unwrap();
        let chunks: Vec<_> = batch.axis(0).unwrap().chunks().collect();
        assert_eq!(chunks, [384..390, 192..384, 0..192]);
    }

    #[test]
    fn the_ladder_wastes_at_most_an_eighth() {
        for n in 1..5000 {
            let up = ladder(n);
            assert!(up >= n && (up - n) * 8 <= n && ladder(up) == up, "{n} {up}");
        }
    }

    #[test]
    fn capacities_refuse_larger_batches() {
        let capacity = Capacity::exactly(&Batch::dense(4, 2).unwrap());
        assert!(capacity.admits(&Batch::ragged(&[1, 4]).unwrap()).is_ok());
        assert!(capacity.admits(&Batch::dense(5, 1).unwrap()).is_err());
        assert!(capacity.admits(&Batch::dense(1, 3).unwrap()).is_err());
    }
}
