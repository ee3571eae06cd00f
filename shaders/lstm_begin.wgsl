// The states before the first step: slot 0 of `state` is h_0 under its mask, padded with zeros, c is c_0, h_n is h_0 (and
// stays so for sequences of no steps). One thread an element of a sequence and direction, grid = B · D · width / 256.
// #import grid
// #import math
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows

struct Params {
    sequences: u32,  // B
    directions: u32, // D
    reverse: u32,    // bit d: direction d runs back in time
    hidden: u32,     // H
    output: u32,     // R
    padded: u32,     // R rounded up to a multiple of four
    width: u32,      // the larger of padded and H
    has_h0: u32,
    has_c0: u32,
    offsets: u32,    // where the first rows of each step begin in `table`
    lengths: u32,    // where the lengths begin
    start: u32,      // absolute time of step 0
    dropout_x: u32,  // key of the layer's recurrent dropout
    dropout_y: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> h0: array<f32>;           // [B, D, R]
@group(0) @binding(2) var<storage, read> c0: array<f32>;           // [B, D, H]
@group(0) @binding(3) var<storage, read_write> state: array<f32>;  // [2, D, B, padded]
@group(0) @binding(4) var<storage, read_write> c: array<f32>;      // [B, D, H]
@group(0) @binding(5) var<storage, read_write> h_n: array<f32>;    // [B, D, R]
@group(0) @binding(6) var<storage, read> table: array<u32>;        // sample ids, first rows, lengths

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    if (i >= params.sequences * params.directions * params.width) {
        return;
    }
    let u = i % params.width;
    let b = i / params.width / params.directions;
    let d = (i / params.width) % params.directions;
    if (u < params.padded) {
        var h = 0.0;
        var mask = 1.0;
        if (u < params.output) {
            let at = (b * params.directions + d) * params.output + u;
            if (params.has_h0 != 0u) {
                h = h0[at];
            }
            h_n[at] = h;
            // A sequence of no step has no first one; nothing reads its state.
            let last = max(table[params.lengths + b], 1u) - 1u;
            let time = params.start + select(0u, last, reversed(d));
            let key = vec2<u32>(params.dropout_x, params.dropout_y);
            mask = recurrent_mask(key, table[b], time, d * params.output + u);
        }
        let at = (d * params.sequences + b) * params.padded + u;
        state[at] = h * mask;
        // The padding of the other slot is read too.
        state[params.directions * params.sequences * params.padded + at] = 0.0;
    }
    if (u < params.hidden) {
        let at = (b * params.directions + d) * params.hidden + u;
        var cell = 0.0;
        if (params.has_c0 != 0u) {
            cell = c0[at];
        }
        c[at] = cell;
    }
}
