// h of one timestep from what is projected, of all directions: h = W_hr m, or what y holds already; zoneout, and h under its mask for the next step.
// One thread owns one element of h of one sequence. Grid = directions · sequences · R / 64.
// #import grid
// #import math
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows

struct Params {
    hidden: u32,      // H
    output: u32,      // R
    padded: u32,      // R rounded up to a multiple of four
    running: u32,     // sequences that take the step
    ending: u32,      // sequences from here on end with this step
    step: u32,
    piece_start: u32, // the bound piece holds these rows of m and y
    piece_end: u32,
    sequences: u32,   // B
    slot: u32,        // 0 or 1: the slot of `state` that the step read
    directions: u32,  // D
    reverse: u32,     // bit d: direction d runs back in time
    offsets: u32,     // where the first rows of each step begin in `table`
    lengths: u32,     // where the lengths begin
    start: u32,       // absolute time of step 0
    dropout_x: u32,   // keys of the layer's random operations: recurrent dropout, zoneout of h
    dropout_y: u32,
    zoneout_h_x: u32,
    zoneout_h_y: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;           // [D, H][padded R]
@group(0) @binding(2) var<storage, read_write> m: array<f32>;           // [rows, D, H]; only read, but an output as y is
@group(0) @binding(3) var<storage, read_write> state: array<f32>;       // [2, D, B, padded R]
@group(0) @binding(4) var<storage, read_write> y: array<f32>;           // [rows, D, R]
@group(0) @binding(5) var<storage, read_write> h_n: array<f32>;         // [B, D, R], the running h under zoneout
@group(0) @binding(6) var<storage, read> table: array<u32>;             // sample ids, first rows, lengths

// Whether h is not projected: y holds it before zoneout.
override IDENTITY: bool = false;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 64u + local;
    let p = i % params.output;
    let b = (i / params.output) % params.running;
    let d = i / params.output / params.running;
    if (d >= params.directions) {
        return;
    }
    let t = time_of(b, d, params.step);
    let row = table[params.offsets + t] + b;
    if (row < params.piece_start || row >= params.piece_end) {
        return;
    }
    let at = (row - params.piece_start) * params.directions + d;
    var h = 0.0;
    if (IDENTITY) {
        h = y[at * params.output + p];
    }
    for (var u = 0u; u < select(params.hidden, 0u, IDENTITY); u++) {
        h = fma(m[at * params.hidden + u], weights[(d * params.hidden + u) * params.padded + p], h);
    }
    let sequence = (b * params.directions + d) * params.output + p;
    let sample = table[b];
    let time = params.start + t;
    if (ZONEOUT_H > 0.0) {
        let key = vec2<u32>(params.zoneout_h_x, params.zoneout_h_y);
        let stay = stays(key, sample, time, d * params.output + p, ZONEOUT_H);
        h = stay * h_n[sequence] + (1.0 - stay) * h;
    }
    y[at * params.output + p] = h;
    if (ZONEOUT_H > 0.0 || b >= params.ending) {
        h_n[sequence] = h;
    }
    let next_time = select(time + 1u, time - 1u, reversed(d));
    let mask = recurrent_mask(vec2<u32>(params.dropout_x, params.dropout_y), sample, next_time, d * params.output + p);
    state[(((1u - params.slot) * params.directions + d) * params.sequences + b) * params.padded + p] = h * mask;
}
