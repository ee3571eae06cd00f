// `lstm_backward_step` with broadcasts inside subgroups; see `lstm_forward_step_subgroup`.
// One thread owns four units of 1, 8 or 16 sequences; U is packed [k][gate i f g o][padded unit].
// Grid = sequence blocks · unit blocks, 32 threads across quads of units.
// #import grid
// #import math
// #import lstm_backward_cell

// Sequences of one thread: 1, 8 or 16.
override ROWS: u32 = 16u;

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;          // [H, 4][padded H / 4]

fn multiply(d: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(d.w), w3, fma(vec4<f32>(d.z), w2, fma(vec4<f32>(d.y), w1, fma(vec4<f32>(d.x), w0, sum))));
}

@compute @workgroup_size(32)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let b = params.first + (group / params.unit_blocks) * ROWS;
    let quads = (params.hidden + 3u) / 4u;
    let quad = (group % params.unit_blocks) * 32u + local;
    // No thread leaves early, since all lanes take part in broadcasts; what is past the end is not stored.
    let column = min(quad, quads - 1u);
    let last = params.end - 1u;
    let base = params.slot * params.sequences;
    let row = b + select(lane & 7u, 0u, ROWS == 1u);
    let r0 = (base + min(row, last)) * params.hidden;
    let r8 = (base + min(row + 8u, last)) * params.hidden;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    var s8 = vec4<f32>(0.0);
    var s9 = vec4<f32>(0.0);
    var s10 = vec4<f32>(0.0);
    var s11 = vec4<f32>(0.0);
    var s12 = vec4<f32>(0.0);
    var s13 = vec4<f32>(0.0);
    var s14 = vec4<f32>(0.0);
    var s15 = vec4<f32>(0.0);
    // Only sequences with a next step have gate gradients to multiply.
    let inner = select(0u, params.hidden, b < params.ongoing);
    for (var k = 0u; k < inner; k++) {
        let w = k * 4u * quads + column;
        let w0 = weights[w];
        let w1 = weights[w + quads];
        let w2 = weights[w + 2u * quads];
        let w3 = weights[w + 3u * quads];
        let d0 = state[r0 + k];
        s0 = multiply(subgroupBroadcast(d0, 0u), w0, w1, w2, w3, s0);
        if (ROWS > 1u) {
            s1 = multiply(subgroupBroadcast(d0, 1u), w0, w1, w2, w3, s1);
            s2 = multiply(subgroupBroadcast(d0, 2u), w0, w1, w2, w3, s2);
            s3 = multiply(subgroupBroadcast(d0, 3u), w0, w1, w2, w3, s3);
            s4 = multiply(subgroupBroadcast(d0, 4u), w0, w1, w2, w3, s4);
            s5 = multiply(subgroupBroadcast(d0, 5u), w0, w1, w2, w3, s5);
            s6 = multiply(subgroupBroadcast(d0, 6u), w0, w1, w2, w3, s6);
            s7 = multiply(subgroupBroadcast(d0, 7u), w0, w1, w2, w3, s7);
        }
        if (ROWS > 8u) {
            let d8 = state[r8 + k];
            s8 = multiply(subgroupBroadcast(d8, 0u), w0, w1, w2, w3, s8);
            s9 = multiply(subgroupBroadcast(d8, 1u), w0, w1, w2, w3, s9);
            s10 = multiply(subgroupBroadcast(d8, 2u), w0, w1, w2, w3, s10);
            s11 = multiply(subgroupBroadcast(d8, 3u), w0, w1, w2, w3, s11);
            s12 = multiply(subgroupBroadcast(d8, 4u), w0, w1, w2, w3, s12);
            s13 = multiply(subgroupBroadcast(d8, 5u), w0, w1, w2, w3, s13);
            s14 = multiply(subgroupBroadcast(d8, 6u), w0, w1, w2, w3, s14);
            s15 = multiply(subgroupBroadcast(d8, 7u), w0, w1, w2, w3, s15);
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var u = 0u; u < 4u; u++) {
            finish(b + r, 4u * quad + u, s0.x);
            s0 = s0.yzwx;
        }
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
        s7 = s8;
        s8 = s9;
        s9 = s10;
        s10 = s11;
        s11 = s12;
        s12 = s13;
        s13 = s14;
        s14 = s15;
    }
}
