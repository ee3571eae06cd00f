//! Counter-based random numbers: the same bits for a key on every executor, in any order.
//!
//! The generator is Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011): additions, rotations and exclusive ors on 32-bit words, so it is exact in WGSL too.

/// What a dropout-like operation draws for: everything that names one element, and nothing that depends on batching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamKey {
    /// The run's seed.
    pub seed: u64,
    /// The training step.
    pub step: u32,
    /// The operation's number in its model.
    pub operation: u32,
}

const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
const PARITY: u32 = 0x1BD1_1BDA;

/// One block of Threefry-2x32-20: two words from a key and a counter.
#[inline(always)]
pub fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    let ks = [key[0], key[1], PARITY ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(ks[0]), counter[1].wrapping_add(ks[1])];
    for block in 0..5u32 {
        for r in ROTATIONS[(block % 2) as usize] {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(r) ^ x[0];
        }
        let i = block as usize + 1;
        x[0] = x[0].wrapping_add(ks[i % 3]);
        x[1] = x[1].wrapping_add(ks[(i + 1) % 3]).wrapping_add(block + 1);
    }
    x
}

impl StreamKey {
    /// The key of one row: (sample, absolute timestep).
    #[inline(always)]
    pub fn row(&self, sample: u32, time: u32) -> [u32; 2] {
        let seed = [self.seed as u32, (self.seed >> 32) as u32];
        threefry(threefry(seed, [self.step, self.operation]), [sample, time])
    }
}

/// The word of unit `unit` in the row with `row_key`.
#[inline(always)]
pub fn unit_word(row_key: [u32; 2], unit: u32) -> u32 {
    threefry(row_key, [unit / 2, 0])[(unit % 2) as usize]
}

/// Whether dropout at `threshold` keeps a word; see [`drop_threshold`].
#[inline(always)]
pub fn keeps(word: u32, threshold: u32) -> bool {
    (word >> 8) >= threshold
}

/// The threshold under which the top 24 bits of a word mean "dropped": `rate` in units of 2^-24.
pub fn drop_threshold(rate: f32) -> u32 {
    (f64::from(rate) * f64::from(1 << 24)).round() as u32
}

/// A sequential generator over the counter, for initialisers, shuffling and sampling.
#[derive(Debug, Clone)]
pub struct Random {
    key: [u32; 2],
    counter: u64,
    spare: Option<u32>,
}

impl Random {
    /// The generator of `seed` and a `stream` number; different streams are independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        let key = threefry([seed as u32, (seed >> 32) as u32], [stream as u32, (stream >> 32) as u32]);
        Self { key, counter: 0, spare: None }
    }

    /// The next 32 bits.
    pub fn word(&mut self) -> u32 {
        if let Some(word) = self.spare.take() {
            return word;
        }
        let [a, b] = threefry(self.key, [self.counter as u32, (self.counter >> 32) as u32]);
        self.counter += 1;
        self.spare = Some(b);
        a
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        let high = u64::from(self.word());
        let low = u64::from(self.word());
        ((high << 21) ^ (low >> 11)) as f64 / (1u64 << 53) as f64
    }

    /// Uniform below `n` without bias.
    pub fn below(&mut self, n: u32) -> u32 {
        // Lemire's multiplication with rejection.
        let threshold = n.wrapping_neg() % n.max(1);
        loop {
            let product = u64::from(self.word()) * u64::from(n);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A permutation of `0..n`, by Fisher and Yates.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u32 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123 (kat_vectors, threefry2x32 20).
    #[test]
    fn threefry_known_answers() {
        assert_eq!(threefry([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(threefry([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]), [0xc492_3a9c, 0x483d_f7a0]);
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut random = Random::new(7, 1);
        let n = 40_000;
        let mean: f64 = (0..n).map(|_| random.uniform()).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
        let variance: f64 = (0..n).map(|_| random.normal().powi(2)).sum::<f64>() / f64::from(n);
        assert!((variance - 1.0).abs() < 0.05, "variance {variance}");
    }

    #[test]
    fn permutation_holds_each_index_once() {
        let mut order = Random::new(1, 2).permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn dropout_drops_its_rate() {
        let key = StreamKey { seed: 3, step: 1, operation: 2 };
        let threshold = drop_threshold(0.3);
        let n = 50_000;
        let kept = (0..n).filter(|&u| keeps(unit_word(key.row(5, 9), u), threshold)).count();
        let share = kept as f64 / f64::from(n);
        assert!((share - 0.7).abs() < 0.01, "kept {share}");
    }
}
