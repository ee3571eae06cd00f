//! One row of one step of any cell, forward and back; see [`crate::config::Cell`] for the formulas.

use super::lstm_layer::{Norm, normalise, normalise_backward};
use super::math;
use crate::config::{Activation, Cell, Curve, GATE_F, GATE_G, GATE_I, GATE_O, GATES};

/// ln(1+e^x) without overflow.
#[inline(always)]
fn softplus(x: f32) -> f32 {
    x.max(0.0) + math::exp(-x.abs()).ln_1p()
}

/// Applies a function to all of `x`.
#[inline(always)]
pub(super) fn apply(activation: Activation, x: &mut [f32]) {
    let (curve, alpha, beta) = activation.curve();
    let each = x.iter_mut();
    match curve {
        Curve::Affine => each.for_each(|x| *x = alpha * *x + beta),
        Curve::Leaky => each.for_each(|x| *x = if *x > 0.0 { *x } else { alpha * *x }),
        Curve::Thresholded => each.for_each(|x| *x = if *x > alpha { *x } else { 0.0 }),
        Curve::Tanh if (alpha, beta) == (1.0, 1.0) => each.for_each(|x| *x = math::tanh(*x)),
        Curve::Tanh => each.for_each(|x| *x = alpha * math::tanh(beta * *x)),
        Curve::HardSigmoid => each.for_each(|x| *x = (alpha * *x + beta).clamp(0.0, 1.0)),
        Curve::Elu => each.for_each(|x| *x = beta * if *x > 0.0 { *x } else { alpha * x.exp_m1() }),
        Curve::Softsign => each.for_each(|x| *x /= 1.0 + x.abs()),
        Curve::Softplus => each.for_each(|x| *x = softplus(*x)),
        Curve::Sigmoid => each.for_each(|x| *x = math::sigmoid(*x)),
        Curve::Swish => each.for_each(|x| *x *= math::sigmoid(*x)),
        Curve::Exponential => each.for_each(|x| *x = math::exp(*x)),
    }
}

/// The function's derivative at each of `x`.
#[inline(always)]
fn slopes(activation: Activation, x: &mut [f32]) {
    let (curve, alpha, beta) = activation.curve();
    let each = x.iter_mut();
    match curve {
        Curve::Affine => each.for_each(|x| *x = alpha),
        Curve::Leaky => each.for_each(|x| *x = if *x > 0.0 { 1.0 } else { alpha }),
        Curve::Thresholded => each.for_each(|x| *x = if *x > alpha { 1.0 } else { 0.0 }),
        Curve::Tanh => each.for_each(|x| {
            let t = math::tanh(beta * *x);
            *x = alpha * beta * (1.0 - t * t);
        }),
        Curve::HardSigmoid => each.for_each(|x| {
            let y = alpha * *x + beta;
            *x = if y > 0.0 && y < 1.0 { alpha } else { 0.0 };
        }),
        Curve::Elu => each.for_each(|x| *x = beta * if *x > 0.0 { 1.0 } else { alpha * math::exp(*x) }),
        Curve::Softsign => each.for_each(|x| *x = 1.0 / ((1.0 + x.abs()) * (1.0 + x.abs()))),
        Curve::Softplus => each.for_each(|x| *x = math::sigmoid(*x)),
        Curve::Sigmoid => each.for_each(|x| {
            let s = math::sigmoid(*x);
            *x = s * (1.0 - s);
        }),
        Curve::Swish => each.for_each(|x| {
            let s = math::sigmoid(*x);
            *x = s + *x * s * (1.0 - s);
        }),
        Curve::Exponential => each.for_each(|x| *x = math::exp(*x)),
    }
}

/// Keeps all of `x` in ± limit.
#[inline(always)]
fn clamp(x: &mut [f32], limit: Option<f32>) {
    if let Some(limit) = limit {
        x.iter_mut().for_each(|x| *x = x.max(-limit).min(limit));
    }
}

/// `to` += `a` · `b`
#[inline(always)]
fn add_product(to: &mut [f32], a: &[f32], b: &[f32]) {
    to.iter_mut().zip(a).zip(b).for_each(|((to, &a), &b)| *to += a * b);
}

/// Values of one row, each of `[H]` or `[4H]`, used again for every row.
#[derive(Default)]
pub(super) struct Scratch {
    gates: Vec<f32>,
    slopes: Vec<f32>,
    /// The cell before zoneout, and what its function is taken of.
    candidate: Vec<f32>,
    argument: Vec<f32>,
    value: Vec<f32>,
    dcandidate: Vec<f32>,
    /// The candidate where the cell's clip keeps it, else its limit: the sign of whether its gradient passes.
    raw: Vec<f32>,
    pub stays: Vec<f32>,
}

impl Scratch {
    pub fn new(hidden: usize) -> Self {
        let one = || vec![0.0; hidden];
        let four = || vec![0.0; GATES * hidden];
        Self {
            gates: four(),
            slopes: four(),
            candidate: one(),
            argument: one(),
            value: one(),
            dcandidate: one(),
            raw: one(),
            stays: one(),
        }
    }
}

/// What a cell has besides its options.
#[derive(Clone, Copy)]
pub(super) struct CellWeights<'a> {
    pub peepholes: Option<&'a [f32]>,
    pub norm: Option<Norm<'a>>,
}

#[inline(always)]
fn block(gates: &[f32], gate: usize, hidden: usize) -> &[f32] {
    &gates[gate * hidden..][..hidden]
}

#[inline(always)]
fn block_mut(gates: &mut [f32], gate: usize, hidden: usize) -> &mut [f32] {
    &mut gates[gate * hidden..][..hidden]
}

/// One step of one row: `gates` hold the pre-activations apart from peepholes and become what is saved, `c` moves on,
/// `hidden` becomes h before projection and zoneout. `scratch.stays` holds how much of c stays.
#[inline(always)]
pub(super) fn forward(
    cell: &Cell,
    weights: &CellWeights<'_>,
    gates: &mut [f32],
    c: &mut [f32],
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let hidden = c.len();
    if let Some(p) = weights.peepholes {
        add_product(block_mut(gates, GATE_I, hidden), block(p, 0, hidden), c);
        add_product(block_mut(gates, GATE_F, hidden), block(p, 1, hidden), c);
    }
    let z = &mut scratch.gates;
    z.copy_from_slice(gates);
    clamp(&mut z[..GATE_O * hidden], cell.clip);
    apply(cell.gate, &mut z[..GATE_G * hidden]);
    apply(cell.candidate, block_mut(z, GATE_G, hidden));
    if cell.coupled {
        let (i, f) = z.split_at_mut(GATE_F * hidden);
        f[..hidden].iter_mut().zip(&*i).for_each(|(f, &i)| *f = 1.0 - i);
    }
    for u in 0..hidden {
        scratch.candidate[u] = z[GATE_F * hidden + u] * c[u] + z[GATE_I * hidden + u] * z[GATE_G * hidden + u];
    }
    clamp(&mut scratch.candidate, cell.cell_clip);
    for ((c, &new), &stay) in c.iter_mut().zip(&scratch.candidate).zip(&scratch.stays) {
        *c = stay * *c + (1.0 - stay) * new;
    }
    if let Some(p) = weights.peepholes {
        add_product(block_mut(gates, GATE_O, hidden), block(p, 2, hidden), c);
        block_mut(z, GATE_O, hidden).copy_from_slice(block(gates, GATE_O, hidden));
    }
    clamp(block_mut(z, GATE_O, hidden), cell.clip);
    apply(cell.gate, block_mut(z, GATE_O, hidden));
    if let Some(norm) = &weights.norm {
        normalise(&mut scratch.candidate, norm.epsilon);
        for ((x, &gain), &bias) in scratch.candidate.iter_mut().zip(norm.gain).zip(norm.bias) {
            *x = *x * gain + bias;
        }
    }
    apply(cell.output, &mut scratch.candidate);
    for ((out, &o), &y) in out.iter_mut().zip(block(z, GATE_O, hidden)).zip(&scratch.candidate) {
        *out = o * y;
    }
    if cell.saves_activated() {
        gates.copy_from_slice(z);
    }
}

/// Values and slopes of the gates, from what is saved of them.
#[inline(always)]
fn saved(cell: &Cell, gates: &[f32], values: &mut [f32], slopes_of: &mut [f32], hidden: usize) {
    values.copy_from_slice(gates);
    if cell.saves_activated() {
        slopes_of.iter_mut().zip(gates).for_each(|(s, &v)| *s = v * (1.0 - v));
        let g = block(gates, GATE_G, hidden);
        block_mut(slopes_of, GATE_G, hidden).iter_mut().zip(g).for_each(|(s, &v)| *s = 1.0 - v * v);
        return;
    }
    clamp(values, cell.clip);
    slopes_of.copy_from_slice(values);
    for (gate, activation) in [(GATE_I, cell.gate), (GATE_F, cell.gate), (GATE_G, cell.candidate), (GATE_O, cell.gate)]
    {
        slopes(activation, block_mut(slopes_of, gate, hidden));
        apply(activation, block_mut(values, gate, hidden));
    }
    if let Some(limit) = cell.clip {
        slopes_of.iter_mut().zip(gates).for_each(|(s, &a)| *s = if a.abs() < limit { *s } else { 0.0 });
    }
}

/// Gradients of the normalised cell of one row, where it is normalised.
pub(super) struct NormGradients<'a> {
    pub dcell: &'a mut [f32],
    pub cell_normed: &'a mut [f32],
}

/// What a step back is made from, each of `[H]`.
pub(super) struct Arrives<'a> {
    /// The cell before the step.
    pub c_prev: &'a [f32],
    /// The gradient of h before projection and zoneout.
    pub dhidden: &'a [f32],
}

/// The step back of one row: `gates` become the gradients of the pre-activations, `dc` moves one step back.
/// `scratch.stays` holds how much of c stayed.
#[inline(always)]
pub(super) fn backward(
    cell: &Cell,
    weights: &CellWeights<'_>,
    gates: &mut [f32],
    arrives: &Arrives<'_>,
    dc: &mut [f32],
    norm_gradients: Option<NormGradients<'_>>,
    scratch: &mut Scratch,
) {
    let (hidden, c_prev, dhidden) = (dc.len(), arrives.c_prev, arrives.dhidden);
    let s = scratch;
    saved(cell, gates, &mut s.gates, &mut s.slopes, hidden);
    if cell.coupled {
        let (i, f) = s.gates.split_at_mut(GATE_F * hidden);
        f[..hidden].iter_mut().zip(&*i).for_each(|(f, &i)| *f = 1.0 - i);
    }
    let gate = |gate: usize| block(&s.gates, gate, hidden);
    let (i, f, g, o) = (gate(GATE_I), gate(GATE_F), gate(GATE_G), gate(GATE_O));
    for u in 0..hidden {
        s.raw[u] = f[u] * c_prev[u] + i[u] * g[u];
    }
    s.candidate.copy_from_slice(&s.raw);
    clamp(&mut s.candidate, cell.cell_clip);
    s.argument.copy_from_slice(&s.candidate);
    let mut factor = 1.0;
    if let Some(norm) = &weights.norm {
        factor = normalise(&mut s.candidate, norm.epsilon);
        for u in 0..hidden {
            s.argument[u] = s.candidate[u] * norm.gain[u] + norm.bias[u];
        }
    }
    s.value.copy_from_slice(&s.argument);
    apply(cell.output, &mut s.value);
    slopes(cell.output, &mut s.argument);
    for u in 0..hidden {
        s.dcandidate[u] = dhidden[u] * o[u] * s.argument[u];
    }
    if let Some(norm) = &weights.norm {
        if let Some(out) = norm_gradients {
            out.dcell.copy_from_slice(&s.dcandidate);
            out.cell_normed.copy_from_slice(&s.candidate);
        }
        s.dcandidate.iter_mut().zip(norm.gain).for_each(|(d, &gain)| *d *= gain);
        normalise_backward(&s.candidate, factor, &mut s.dcandidate);
    }
    let slope = |gate: usize| block(&s.slopes, gate, hidden);
    let limit = cell.cell_clip.unwrap_or(f32::INFINITY);
    for u in 0..hidden {
        let dz_o = dhidden[u] * s.value[u] * slope(GATE_O)[u];
        let dc_now = dc[u] + weights.peepholes.map_or(0.0, |p| p[2 * hidden + u]) * dz_o;
        let through = s.dcandidate[u] + (1.0 - s.stays[u]) * dc_now;
        let draw = if s.raw[u].abs() < limit { through } else { 0.0 };
        let df = draw * c_prev[u];
        let di = draw * g[u] - if cell.coupled { df } else { 0.0 };
        let (dz_i, dz_f) = (di * slope(GATE_I)[u], if cell.coupled { 0.0 } else { df * slope(GATE_F)[u] });
        gates[GATE_I * hidden + u] = dz_i;
        gates[GATE_F * hidden + u] = dz_f;
        gates[GATE_G * hidden + u] = draw * i[u] * slope(GATE_G)[u];
        gates[GATE_O * hidden + u] = dz_o;
        dc[u] = s.stays[u] * dc_now + draw * f[u];
    }
    if let Some(p) = weights.peepholes {
        add_product(dc, block(p, 0, hidden), block(gates, GATE_I, hidden));
        add_product(dc, block(p, 1, hidden), block(gates, GATE_F, hidden));
    }
}
