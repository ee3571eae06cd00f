// One timestep of an LSTM layer, fused, of all its directions: the four gates' products with h, the activations and the
// state update. One thread owns one unit of 8 sequences with all four gates in registers; U is packed [k][unit] of vec4
// (i f g o), h is padded to a multiple of four. Nothing but the results leaves registers.
// Grid = directions · sequence blocks · unit blocks, 64 threads across units.
// #import grid
// #import math
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows
// #import lstm_forward_cell

fn multiply(h: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(h.w), w3, fma(vec4<f32>(h.z), w2, fma(vec4<f32>(h.y), w1, fma(vec4<f32>(h.x), w0, sum))));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let unit = (group % params.unit_blocks) * 64u + local;
    let block = group / params.unit_blocks;
    let b = params.first + (block % params.row_blocks) * 8u;
    let d = block / params.row_blocks;
    if (d >= params.directions || b >= params.end || unit >= params.hidden) {
        return;
    }
    // Sequences past the end repeat the last one; they are not stored.
    let last = params.end - 1u;
    let base = (params.slot * params.directions + d) * params.sequences;
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
        let w = weights_of(d) + q * 4u * params.hidden + unit;
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
    for (var r = 0u; r < 8u; r++) {
        finish(b + r, d, unit, s0);
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
    }
}
