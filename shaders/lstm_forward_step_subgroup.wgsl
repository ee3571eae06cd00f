// `lstm_forward_step`, for adapters where a load from one address by all threads costs as much as any: each of the first
// eight lanes of a subgroup loads h of one sequence (and of one eight further on), and all lanes get it by broadcast.
// One thread owns one unit of 1, 8 or 16 sequences. Grid = directions · sequence blocks · unit blocks, 64 threads across
// units.
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows
// #import lstm_forward_cell

// Sequences of one thread: 1, 8 or 16.
override ROWS: u32 = 16u;

fn multiply(h: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(h.w), w3, fma(vec4<f32>(h.z), w2, fma(vec4<f32>(h.y), w1, fma(vec4<f32>(h.x), w0, sum))));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let unit = (group % params.unit_blocks) * 64u + local;
    let block = group / params.unit_blocks;
    let b = (block % params.row_blocks) * ROWS;
    // No thread leaves early, since all lanes take part in broadcasts; what is past an end repeats the last and is not
    // stored.
    let d = min(block / params.row_blocks, params.directions - 1u);
    let column = min(unit, params.hidden - 1u);
    let last = params.sequences - 1u;
    let base = (params.slot * params.directions + d) * params.sequences;
    let row = b + select(lane & 7u, 0u, ROWS == 1u);
    let r0 = (base + min(row, last)) * params.quads;
    let r8 = (base + min(row + 8u, last)) * params.quads;
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
    for (var q = 0u; q < params.quads; q++) {
        let w = weights_of(d) + q * 4u * params.hidden + column;
        let w0 = four(weights[w]);
        let w1 = four(weights[w + params.hidden]);
        let w2 = four(weights[w + 2u * params.hidden]);
        let w3 = four(weights[w + 3u * params.hidden]);
        let h0 = state[r0 + q];
        s0 = multiply(subgroupBroadcast(h0, 0u), w0, w1, w2, w3, s0);
        if (ROWS > 1u) {
            s1 = multiply(subgroupBroadcast(h0, 1u), w0, w1, w2, w3, s1);
            s2 = multiply(subgroupBroadcast(h0, 2u), w0, w1, w2, w3, s2);
            s3 = multiply(subgroupBroadcast(h0, 3u), w0, w1, w2, w3, s3);
            s4 = multiply(subgroupBroadcast(h0, 4u), w0, w1, w2, w3, s4);
            s5 = multiply(subgroupBroadcast(h0, 5u), w0, w1, w2, w3, s5);
            s6 = multiply(subgroupBroadcast(h0, 6u), w0, w1, w2, w3, s6);
            s7 = multiply(subgroupBroadcast(h0, 7u), w0, w1, w2, w3, s7);
        }
        if (ROWS > 8u) {
            let h8 = state[r8 + q];
            s8 = multiply(subgroupBroadcast(h8, 0u), w0, w1, w2, w3, s8);
            s9 = multiply(subgroupBroadcast(h8, 1u), w0, w1, w2, w3, s9);
            s10 = multiply(subgroupBroadcast(h8, 2u), w0, w1, w2, w3, s10);
            s11 = multiply(subgroupBroadcast(h8, 3u), w0, w1, w2, w3, s11);
            s12 = multiply(subgroupBroadcast(h8, 4u), w0, w1, w2, w3, s12);
            s13 = multiply(subgroupBroadcast(h8, 5u), w0, w1, w2, w3, s13);
            s14 = multiply(subgroupBroadcast(h8, 6u), w0, w1, w2, w3, s14);
            s15 = multiply(subgroupBroadcast(h8, 7u), w0, w1, w2, w3, s15);
        }
    }
    if (block / params.row_blocks > d) {
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        let next = finish(b + r, d, unit, params.step, s0);
        if (next.goes_on) {
            let at = (((1u - params.slot) * params.directions + d) * params.sequences + b + r) * params.quads + unit / 4u;
            state[at][unit % 4u] = next.h;
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
