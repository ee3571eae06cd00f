//! Functions of one float, branch-free and without fused multiplications: loops over them become vector loops of
//! whatever width the processor has, and give the same bits on each. What every cell of a layer computes has forms of its own.
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

/// The exponential of what is not above 0, sigmoid and tanh of a register's values, within 2 units of the last place where the result is a normal number. With fused
/// multiplications, so that their bits are not those of the functions above.
pub(super) mod lanes {
    use super::{EXP, LN_2, LOG2_E, ROUND, TANH, TANH_SMALL};
    use pulp::Simd;

    /// ln 2^126: below its negative, sigmoid x leaves the normal numbers, and is 0 here.
    const SIGMOID_RANGE: f32 = 87.336_54;
    /// Beyond, tanh x is 1.
    const TANH_RANGE: f32 = 10.0;

    #[inline(always)]
    fn polynomial<S: Simd>(simd: S, x: S::f32s, c: [f32; 5]) -> S::f32s {
        let mut y = simd.splat_f32s(c[4]);
        y = simd.mul_add_e_f32s(y, x, simd.splat_f32s(c[3]));
        y = simd.mul_add_e_f32s(y, x, simd.splat_f32s(c[2]));
        y = simd.mul_add_e_f32s(y, x, simd.splat_f32s(c[1]));
        simd.mul_add_e_f32s(y, x, simd.splat_f32s(c[0]))
    }

    /// The smaller of x and a limit; NaN stays.
    #[inline(always)]
    fn at_most<S: Simd>(simd: S, limit: f32, x: S::f32s) -> S::f32s {
        let limit = simd.splat_f32s(limit);
        simd.select_f32s(simd.less_than_f32s(limit, x), limit, x)
    }

    /// p = 2^n and t = e^r - 1, so that e^x = p + p t, for |x| of at most 87.4.
    #[inline(always)]
    fn exp_parts<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
        let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(LOG2_E), simd.splat_f32s(ROUND));
        let whole = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
        let r = simd.mul_add_e_f32s(whole, simd.splat_f32s(-LN_2[0]), x);
        let r = simd.mul_add_e_f32s(whole, simd.splat_f32s(-LN_2[1]), r);
        let t = simd.mul_add_e_f32s(simd.mul_f32s(r, r), polynomial(simd, r, EXP), r);
        let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
        let one = simd.splat_u32s(1.0_f32.to_bits());
        (simd.transmute_f32s_u32s(simd.add_u32s(one, n)), t)
    }

    /// e^x for x of at most 0; zero where that is no normal number.
    #[inline(always)]
    pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let least = simd.splat_f32s(-SIGMOID_RANGE);
        let below = simd.less_than_f32s(x, least);
        let (p, t) = exp_parts(simd, simd.select_f32s(below, least, x));
        simd.select_f32s(below, simd.splat_f32s(0.0), simd.mul_add_e_f32s(p, t, p))
    }

    /// 1/(1+e^-x)
    #[inline(always)]
    pub fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let one = simd.splat_f32s(1.0);
        let least = simd.splat_f32s(-SIGMOID_RANGE);
        let above = simd.select_f32s(simd.less_than_f32s(x, least), simd.splat_f32s(0.0), one);
        let x = at_most(simd, SIGMOID_RANGE, simd.neg_f32s(at_most(simd, SIGMOID_RANGE, x)));
        let (p, t) = exp_parts(simd, x);
        // 1 + p, and what of the 1 was lost in it, which counts where p is near 2^24.
        let sum = simd.add_f32s(p, one);
        let lost = simd.sub_f32s(one, simd.sub_f32s(sum, p));
        simd.div_f32s(above, simd.add_f32s(sum, simd.mul_add_e_f32s(p, t, lost)))
    }

    /// tanh x
    #[inline(always)]
    pub fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let a = at_most(simd, TANH_RANGE, simd.abs_f32s(x));
        let (p, t) = exp_parts(simd, simd.add_f32s(a, a));
        // e^2a - 1
        let m = simd.mul_add_e_f32s(p, t, simd.sub_f32s(p, simd.splat_f32s(1.0)));
        let large = simd.div_f32s(m, simd.add_f32s(m, simd.splat_f32s(2.0)));
        let square = simd.mul_f32s(a, a);
        let small = simd.mul_add_e_f32s(simd.mul_f32s(square, polynomial(simd, square, TANH)), a, a);
        let size = simd.select_f32s(simd.less_than_f32s(a, simd.splat_f32s(TANH_SMALL)), small, large);
        let sign = simd.and_u32s(simd.transmute_u32s_f32s(x), simd.splat_u32s(1 << 31));
        simd.transmute_f32s_u32s(simd.or_u32s(simd.transmute_u32s_f32s(size), sign))
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

    /// On every kind of register that this processor has.
    fn on_all_registers(x: &[f32], check: impl Fn(&[f32], &[f32])) {
        let (mut s, mut t) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        pulp::Arch::new().dispatch(Both(x, &mut s, &mut t));
        check(&s, &t);
        pulp::Arch::Scalar.dispatch(Both(x, &mut s, &mut t));
        check(&s, &t);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            pulp::Simd::vectorize(simd, Both(x, &mut s, &mut t));
            check(&s, &t);
        }
    }

    #[test]
    fn registers_are_within_2_units_of_the_last_place() {
        let mut x: Vec<f32> = (-875_000..875_000).map(|i| i as f32 * 1e-4).collect();
        x.extend((0..u32::MAX).step_by(4001).map(f32::from_bits).filter(|x| x.is_finite()));
        x.resize(x.len().next_multiple_of(16), 0.0);
        on_all_registers(&x, |s, t| {
            for ((&x, &s), &t) in x.iter().zip(s).zip(t) {
                let wide = f64::from(x);
                let error = ulps(t, wide.tanh());
                assert!(error <= 2.0, "tanh {x}: {t}, {error} ulp");
                let exact = 1.0 / (1.0 + (-wide).exp());
                let error = if exact > f64::from(f32::MIN_POSITIVE) { ulps(s, exact) } else { f64::from(s) };
                assert!(error <= 2.0, "sigmoid {x}: {s}, {error} ulp");
            }
        });
    }

    struct Exponential<'a>(&'a [f32], &'a mut [f32]);

    impl pulp::WithSimd for Exponential<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) {
            let ((x, _), (y, _)) = (S::as_simd_f32s(self.0), S::as_mut_simd_f32s(self.1));
            x.iter().zip(y).for_each(|(&x, y)| *y = lanes::exp(simd, x));
        }
    }

    #[test]
    fn exponentials_of_registers_are_within_2_units_of_the_last_place() {
        let mut x: Vec<f32> = (0..1_100_000).map(|i| i as f32 * -1e-4).collect();
        x.extend([f32::NEG_INFINITY, f32::MIN, -1e30, -87.4, f32::NAN]);
        x.resize(x.len().next_multiple_of(16), 0.0);
        let check = |y: &[f32]| {
            for (&x, &y) in x.iter().zip(y) {
                let exact = f64::from(x).exp();
                let error = if exact > f64::from(f32::MIN_POSITIVE) { ulps(y, exact) } else { f64::from(y) };
                assert!(error <= 2.0 || x.is_nan() && y.is_nan(), "e^{x}: {y}, {error} ulp");
            }
            // A score that is the largest counts as one, whole.
            assert!(y[0] == 1.0 && x[0] == 0.0);
        };
        let mut y = vec![0.0; x.len()];
        pulp::Arch::new().dispatch(Exponential(&x, &mut y));
        check(&y);
        pulp::Arch::Scalar.dispatch(Exponential(&x, &mut y));
        check(&y);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            pulp::Simd::vectorize(simd, Exponential(&x, &mut y));
            check(&y);
        }
    }

    #[test]
    fn registers_keep_infinities_nan_and_the_sign_of_zero() {
        let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, f32::MAX, f32::MIN, 1e-42];
        let x = [x, x].concat();
        on_all_registers(&x, |s, t| {
            assert_eq!((s[0], t[0], t[1]), (1.0, 1.0, -1.0));
            assert!(s[1] == 0.0 && s[2].is_nan() && t[2].is_nan());
            assert_eq!((s[3], t[3].to_bits(), t[4].to_bits()), (0.5, 0, 1 << 31));
            assert_eq!((s[5], t[5], t[6], t[7]), (1.0, 1.0, -1.0, 1e-42));
        });
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
