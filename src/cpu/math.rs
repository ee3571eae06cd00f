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
