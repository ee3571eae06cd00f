// One timestep of an LSTM layer's gradient, back in time, fused: the product of the next step's gate gradients with U,
// and the gradients of this step's gates, in their place.
// One thread owns one unit of 8 sequences; U is packed [k][unit] of vec4 (i f g o of unit k, into `unit`).
// Grid = sequence blocks · unit blocks, 64 threads across units.
// #import grid
// #import math
// #import lstm_backward_cell

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;          // [H][H] of i f g o

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
    let r0 = (base + b) * params.hidden;
    let r1 = (base + min(b + 1u, last)) * params.hidden;
    let r2 = (base + min(b + 2u, last)) * params.hidden;
    let r3 = (base + min(b + 3u, last)) * params.hidden;
    let r4 = (base + min(b + 4u, last)) * params.hidden;
    let r5 = (base + min(b + 5u, last)) * params.hidden;
    let r6 = (base + min(b + 6u, last)) * params.hidden;
    let r7 = (base + min(b + 7u, last)) * params.hidden;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    // Only sequences with a next step have gate gradients to multiply.
    let inner = select(0u, params.hidden, b < params.ongoing);
    for (var k = 0u; k < inner; k++) {
        let w = weights[k * params.hidden + unit];
        s0 = fma(state[r0 + k], w, s0);
        s1 = fma(state[r1 + k], w, s1);
        s2 = fma(state[r2 + k], w, s2);
        s3 = fma(state[r3 + k], w, s3);
        s4 = fma(state[r4 + k], w, s4);
        s5 = fma(state[r5 + k], w, s5);
        s6 = fma(state[r6 + k], w, s6);
        s7 = fma(state[r7 + k], w, s7);
    }
    for (var r = 0u; r < 8u; r++) {
        finish(b + r, unit, s0.x + s0.y + s0.z + s0.w);
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
    }
}
