// Exponential, sigmoid and tanh, finite and accurate to a few ulp for every input. WGSL's own tanh overflows to NaN for
// large arguments on several backends, and its exp may be off by many ulp.
// Polynomials: minimax fits (Remez), relative error 3e-9 and 5e-9 before rounding.

// e^x for x in [-87.336, 88.722], where it is a normal number; clamped outside.
fn exp_f32(x: f32) -> f32 {
    let c = clamp(x, -87.336, 88.722);
    let n = round(c * 1.4426950408889634);
    // ln 2 in two parts, the first exact in few bits, so that n·ln 2 loses nothing.
    let r = (c - n * 0.693359375) + n * 2.12194440e-4;
    var p = 0.0013814191;
    p = p * r + 0.008368914;
    p = p * r + 0.041668408;
    p = p * r + 0.1666652;
    p = p * r + 0.49999994;
    let e = p * r * r + r + 1.0;
    // Two factors, since 2^n alone may leave the range of normal numbers.
    let span = i32(n) / 2;
    return e * bitcast<f32>((span + 127) << 23u) * bitcast<f32>((i32(n) - span + 127) << 23u);
}

// The number with these bits. Through a variable, since infinity may not be a constant of the language.
fn float_of(bits: u32) -> f32 {
    var variable = bits;
    return bitcast<f32>(variable);
}

// Whether x is NaN; by its bits, since compilers may assume that there is none. clamp and min would lose it.
fn is_nan_f32(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// 1/(1+e^-x); zero where that is below the smallest normal number, NaN for NaN.
fn sigmoid_f32(x: f32) -> f32 {
    let a = abs(x);
    let z = select(exp_f32(-a), 0.0, a > 87.336);
    let y = select(z, 1.0, x >= 0.0) / (1.0 + z);
    return select(y, x, is_nan_f32(x));
}

// tanh x; NaN for NaN.
fn tanh_f32(x: f32) -> f32 {
    let a = min(abs(x), 10.0); // tanh is 1 to within span an ulp beyond 9.02
    let s = a * a;
    var p = -0.0056483163;
    p = p * s + 0.020589827;
    p = p * s - 0.053725127;
    p = p * s + 0.13331275;
    p = p * s - 0.33333275;
    let small = a + a * s * p;
    let large = 1.0 - 2.0 / (exp_f32(2.0 * a) + 1.0);
    let y = select(large, small, a < 0.625);
    return select(select(y, -y, x < 0.0), x, is_nan_f32(x));
}

// 1 where x is finite; a test of its bits, since compilers may assume that there is no infinity or NaN.
fn is_finite_f32(x: f32) -> f32 {
    return select(0.0, 1.0, (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u);
}

// e^x for every x: zero below and infinity above the range of exp_f32, NaN for NaN.
fn exp_any_f32(x: f32) -> f32 {
    if (is_nan_f32(x)) {
        return x;
    }
    if (x > 88.722) {
        return float_of(0x7f800000u);
    }
    if (x < -87.336) {
        return 0.0;
    }
    return exp_f32(x);
}
