//! Functions of one float, branch-free and without fused multiplications: loops over them become vector loops of
//! whatever width the processor has, and give the same bits on each.
//!
//! Polynomials are minimax fits (Lawson's iteration over 400 Chebyshev nodes, in float64, rounded to float32).

/// log2(e)
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts, the first with few enough bits that its products with small integers are exact.
const LN_2: [f32; 2] = [0.693_359_4, -0.000_212_194_44];
/// Adding it rounds a float of magnitude below 2^22 to an integer, which its low bits then hold.
const ROUND: f32 = 12_582_912.0;
/// e^x is infinite above and zero below.
const EXP_RANGE: [f32; 2] = [-104.0, 89.0];
/// (e^r - 1 - r) / r² on |r| <= 0.35, relative error of e^r 3.3e-9.
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_15, 0.041_668_456, 0.008_369_419, 0.001_381_314_2];
/// (tanh x / x - 1) / x² as a polynomial of x² on |x| <= 0.64, relative error of tanh x 5.7e-9.
const TANH: [f32; 5] = [-0.333_332_7, 0.133_310_93, -0.053_709_656, 0.020_538_81, -0.005_591_007_4];
/// Below, tanh x is computed by its polynomial.
const TANH_SMALL: f32 = 0.625;

#[inline(always)]
fn polynomial(x: f32, c: [f32; 5]) -> f32 {
    (((c[4] * x + c[3]) * x + c[2]) * x + c[1]) * x + c[0]
}

/// 2^n for n in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Comparisons that are false for NaN let it through.
    let x = if x < EXP_RANGE[0] { EXP_RANGE[0] } else { x };
    let x = if x > EXP_RANGE[1] { EXP_RANGE[1] } else { x };
    let shifted = x * LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = (x - whole * LN_2[0]) - whole * LN_2[1];
    let e = 1.0 + (r + r * r * polynomial(r, EXP));
    // In two factors, since 2^n itself may be infinite or subnormal where the product is not.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    e * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 1/(1+e^-x)
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    let z = exp(-x.abs());
    (if x < 0.0 { z } else { 1.0 }) / (1.0 + z)
}

/// tanh x
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let (a, s) = (x.abs(), x * x);
    let small = x + x * (s * polynomial(s, TANH));
    let large = (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x);
    if a < TANH_SMALL { small } else { large }
}

/// The same functions of a register's values: the same operations in the same order, and so the same bits.
pub(super) mod lanes {
    use super::{EXP, EXP_RANGE, LN_2, LOG2_E, ROUND, TANH, TANH_SMALL};
    use pulp::Simd;

    #[inline(always)]
    fn polynomial<S: Simd>(simd: S, x: S::f32s, c: [f32; 5]) -> S::f32s {
        let mut y = simd.splat_f32s(c[4]);
        y = simd.add_f32s(simd.mul_f32s(y, x), simd.splat_f32s(c[3]));
        y = simd.add_f32s(simd.mul_f32s(y, x), simd.splat_f32s(c[2]));
        y = simd.add_f32s(simd.mul_f32s(y, x), simd.splat_f32s(c[1]));
        simd.add_f32s(simd.mul_f32s(y, x), simd.splat_f32s(c[0]))
    }

    /// 2^n for n in -126..=127.
    #[inline(always)]
    fn power_of_two<S: Simd>(simd: S, n: S::u32s) -> S::f32s {
        let biased = simd.add_u32s(n, simd.splat_u32s(127));
        simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(biased, simd.splat_u32s(23)))
    }

    /// e^x
    #[inline(always)]
    fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let (least, most) = (simd.splat_f32s(EXP_RANGE[0]), simd.splat_f32s(EXP_RANGE[1]));
        let x = simd.select_f32s(simd.less_than_f32s(x, least), least, x);
        let x = simd.select_f32s(simd.less_than_f32s(most, x), most, x);
        let round = simd.splat_f32s(ROUND);
        let shifted = simd.add_f32s(simd.mul_f32s(x, simd.splat_f32s(LOG2_E)), round);
        let whole = simd.sub_f32s(shifted, round);
        let r = simd.sub_f32s(x, simd.mul_f32s(whole, simd.splat_f32s(LN_2[0])));
        let r = simd.sub_f32s(r, simd.mul_f32s(whole, simd.splat_f32s(LN_2[1])));
        let e = simd.mul_f32s(simd.mul_f32s(r, r), polynomial(simd, r, EXP));
        let e = simd.add_f32s(simd.splat_f32s(1.0), simd.add_f32s(r, e));
        let n = simd.sub_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(ROUND.to_bits()));
        // Half of it, rounded down: there is no shift that keeps a sign.
        let positive = simd.add_u32s(n, simd.splat_u32s(1024));
        let half = simd.sub_u32s(simd.wrapping_dyn_shr_u32s(positive, simd.splat_u32s(1)), simd.splat_u32s(512));
        let first = simd.mul_f32s(e, power_of_two(simd, half));
        simd.mul_f32s(first, power_of_two(simd, simd.sub_u32s(n, half)))
    }

    /// 1/(1+e^-x)
    #[inline(always)]
    pub fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let one = simd.splat_f32s(1.0);
        let z = exp(simd, simd.neg_f32s(simd.abs_f32s(x)));
        let above = simd.select_f32s(simd.less_than_f32s(x, simd.splat_f32s(0.0)), z, one);
        simd.div_f32s(above, simd.add_f32s(one, z))
    }

    /// tanh x
    #[inline(always)]
    pub fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let (one, two) = (simd.splat_f32s(1.0), simd.splat_f32s(2.0));
        let (a, s) = (simd.abs_f32s(x), simd.mul_f32s(x, x));
        let small = simd.mul_f32s(x, simd.mul_f32s(s, polynomial(simd, s, TANH)));
        let small = simd.add_f32s(x, small);
        let tail = simd.div_f32s(two, simd.add_f32s(exp(simd, simd.mul_f32s(two, a)), one));
        let size = simd.transmute_u32s_f32s(simd.abs_f32s(simd.sub_f32s(one, tail)));
        let sign = simd.and_u32s(simd.transmute_u32s_f32s(x), simd.splat_u32s(1 << 31));
        let large = simd.transmute_f32s_u32s(simd.or_u32s(size, sign));
        simd.select_f32s(simd.less_than_f32s(a, simd.splat_f32s(TANH_SMALL)), small, large)
    }
}

/// The largest of `row`; `-∞` if it is empty.
#[inline(always)]
pub(super) fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (blocks, rest) = row.as_chunks::<16>();
    for block in blocks {
        for (a, &x) in lanes.iter_mut().zip(block) {
            *a = if x > *a { x } else { *a };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &x| if x > a { x } else { a })
}

/// Σ e^(x - shift)
#[inline(always)]
pub(super) fn sum_of_exponentials(row: &[f32], shift: f32) -> f32 {
    let mut lanes = [0.0; 16];
    let (blocks, rest) = row.as_chunks::<16>();
    for block in blocks {
        for (a, &x) in lanes.iter_mut().zip(block) {
            *a += exp(x - shift);
        }
    }
    for (a, &x) in lanes.iter_mut().zip(rest) {
        *a += exp(x - shift);
    }
    lanes.iter().sum()
}

/// Σ f(x) in float64, in an order that depends on the length alone.
#[inline(always)]
pub(super) fn sum(values: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    for block in blocks {
        for (a, &x) in lanes.iter_mut().zip(block) {
            *a += f(f64::from(x));
        }
    }
    for (a, &x) in lanes.iter_mut().zip(rest) {
        *a += f(f64::from(x));
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance to the true value in units of the last place of the nearest float.
    fn ulps(got: f32, wanted: f64) -> f64 {
        let near = (wanted as f32).abs();
        if near.is_infinite() {
            return if got == wanted as f32 { 0.0 } else { f64::INFINITY };
        }
        let unit = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        (f64::from(got) - wanted).abs() / unit
    }

    #[test]
    fn exp_sigmoid_and_tanh_are_within_a_few_units_of_the_last_place() {
        let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
        type Case = (&'static str, fn(f32) -> f32, fn(f64) -> f64);
        let cases: [Case; 3] = [("exp", exp, f64::exp), ("sigmoid", sigmoid, logistic), ("tanh", tanh, f64::tanh)];
        for (name, f, exact) in cases {
            let mut worst = (0.0, 0.0);
            let dense = (-1_100_000..1_100_000).map(|i| i as f32 * 1e-4);
            let every = (0..u32::MAX).step_by(4001).map(f32::from_bits).filter(|x| x.is_finite());
            for x in dense.chain(every) {
                let error = ulps(f(x), exact(f64::from(x)));
                if error > worst.0 {
                    worst = (error, x);
                }
            }
            assert!(worst.0 <= 4.0, "{name}: {} ulp at {}", worst.0, worst.1);
        }
    }

    /// Sigmoid and tanh of registers.
    struct Both<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);

    impl pulp::WithSimd for Both<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) {
            let (x, _) = S::as_simd_f32s(self.0);
            let ((s, _), (t, _)) = (S::as_mut_simd_f32s(self.1), S::as_mut_simd_f32s(self.2));
            for ((&x, s), t) in x.iter().zip(s).zip(t) {
                (*s, *t) = (lanes::sigmoid(simd, x), lanes::tanh(simd, x));
            }
        }
    }

    #[test]
    fn registers_give_the_same_bits() {
        let special = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-42];
        let every = (0..u32::MAX).step_by(50_021).map(f32::from_bits);
        let mut x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 1e-3).chain(every).chain(special).collect();
        x.resize(x.len().next_multiple_of(16), 0.0);
        let (mut s, mut t) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        pulp::Arch::new().dispatch(Both(&x, &mut s, &mut t));
        for ((&x, &s), &t) in x.iter().zip(&s).zip(&t) {
            let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(same(s, sigmoid(x)) && same(t, tanh(x)), "{x}: {s} {} {t} {}", sigmoid(x), tanh(x));
        }
    }

    #[test]
    fn infinities_and_nan() {
        let inf = f32::INFINITY;
        assert_eq!([exp(inf), exp(-inf), sigmoid(inf), sigmoid(-inf)], [inf, 0.0, 1.0, 0.0]);
        assert_eq!([tanh(inf), tanh(-inf), tanh(f32::MAX), tanh(0.0)], [1.0, -1.0, 1.0, 0.0]);
        assert!(exp(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_of_every_short_length() {
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 71) as f32) / 10.0).collect();
            assert_eq!(largest(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let wanted: f64 = x.iter().map(|&x| f64::from(x)).sum();
            assert!((sum(&x, |x| x) - wanted).abs() < 1e-9);
            let wanted: f64 = x.iter().map(|&x| f64::from(x - 3.0).exp()).sum();
            assert!((f64::from(sum_of_exponentials(&x, 3.0)) - wanted).abs() < 1e-5 * wanted.max(1.0));
        }
    }
}
