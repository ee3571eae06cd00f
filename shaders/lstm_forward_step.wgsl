// One timestep of an LSTM layer, fused: the four gates' products with h, the activations and the state update.
//   i, f, o = sigmoid(xw + U h)   g = tanh(xw + U h)   c = f c + i g   h = o tanh(c)       (gates i f g o)
// One thread owns one unit of 8 sequences with all four gates in registers; U is packed [k][unit] of vec4 (i f g o), h
// is padded to a multiple of four. Nothing but the results leaves registers.
// Grid = sequence blocks · unit blocks, 64 threads across units.
// #import grid
// #import math

struct Params {
    hidden: u32,      // H
    quads: u32,       // padded H / 4
    first: u32,       // first sequence of this dispatch
    end: u32,         // one past the last
    ending: u32,      // sequences from here on end with this step
    row: u32,         // the row of sequence `first` in the piece of gates, cells and y
    sequences: u32,   // B, rows of one slot of the state
    slot: u32,        // 0 or 1: the slot of `state` that holds h_{t-1}
    unit_blocks: u32, // workgroups across units
    save: u32,        // 1: gates are wanted, 2: cells too
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;          // [padded H][H] of i f g o
@group(0) @binding(2) var<storage, read_write> state: array<vec4<f32>>;      // [2, B, quads]
@group(0) @binding(3) var<storage, read_write> gates: array<vec4<f32>>;      // [rows, H]: xw, then activated gates
@group(0) @binding(4) var<storage, read_write> y: array<f32>;                // [rows, H]
@group(0) @binding(5) var<storage, read_write> c: array<f32>;                // [B, H]
@group(0) @binding(6) var<storage, read_write> cells: array<f32>;            // [rows, H]
@group(0) @binding(7) var<storage, read_write> h_n: array<f32>;              // [B, H]

fn multiply(h: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(h.w), w3, fma(vec4<f32>(h.z), w2, fma(vec4<f32>(h.y), w1, fma(vec4<f32>(h.x), w0, sum))));
}

fn finish(b: u32, unit: u32, product: vec4<f32>) {
    if (b >= params.end) {
        return;
    }
    let row = params.row + b - params.first;
    let at = row * params.hidden + unit;
    let z = gates[at] + product;
    let i = sigmoid_f32(z.x);
    let f = sigmoid_f32(z.y);
    let g = tanh_f32(z.z);
    let o = sigmoid_f32(z.w);
    let sequence = b * params.hidden + unit;
    let cell = f * c[sequence] + i * g;
    let h = o * tanh_f32(cell);
    c[sequence] = cell;
    y[at] = h;
    let next = ((1u - params.slot) * params.sequences + b) * params.quads + unit / 4u;
    state[next][unit % 4u] = h;
    if (params.save >= 1u) {
        gates[at] = vec4<f32>(i, f, g, o);
    }
    if (params.save >= 2u) {
        cells[at] = cell;
    }
    if (b >= params.ending) {
        h_n[sequence] = h;
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let b = params.first + (group / params.unit_blocks) * 8u;
    let unit = (group % params.unit_blocks) * 64u + local;
    if (b >= params.end || unit >= params.hidden) {
        return;
    }
    // Sequences past the end repeat the last one; they are not stored.
    let last = params.end - 1u;
    let base = params.slot * params.sequences;
    let r0 = (base + b) * params.quads;
    let r1 = (base + min(b + 1u, last)) * params.quads;
    let r2 = (base + min(b + 2u, last)) * params.quads;
    let r3 = (base + min(b + 3u, last)) * params.quads;
    let r4 = (base + min(b + 4u, last)) * params.quads;
    let r5 = (base + min(b + 5u, last)) * params.quads;
    let r6 = (base + min(b + 6u, last)) * params.quads;
    let r7 = (base + min(b + 7u, last)) * params.quads;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    for (var q = 0u; q < params.quads; q++) {
        let w = q * 4u * params.hidden + unit;
        let w0 = weights[w];
        let w1 = weights[w + params.hidden];
        let w2 = weights[w + 2u * params.hidden];
        let w3 = weights[w + 3u * params.hidden];
        s0 = multiply(state[r0 + q], w0, w1, w2, w3, s0);
        s1 = multiply(state[r1 + q], w0, w1, w2, w3, s1);
        s2 = multiply(state[r2 + q], w0, w1, w2, w3, s2);
        s3 = multiply(state[r3 + q], w0, w1, w2, w3, s3);
        s4 = multiply(state[r4 + q], w0, w1, w2, w3, s4);
        s5 = multiply(state[r5 + q], w0, w1, w2, w3, s5);
        s6 = multiply(state[r6 + q], w0, w1, w2, w3, s6);
        s7 = multiply(state[r7 + q], w0, w1, w2, w3, s7);
    }
    finish(b, unit, s0);
    finish(b + 1u, unit, s1);
    finish(b + 2u, unit, s2);
    finish(b + 3u, unit, s3);
    finish(b + 4u, unit, s4);
    finish(b + 5u, unit, s5);
    finish(b + 6u, unit, s6);
    finish(b + 7u, unit, s7);
}
