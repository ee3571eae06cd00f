// The gradient of h_0: Uᵀ dgates of the first step under the mask, and what zoneout hands on; dh_n for sequences of no steps.
// One thread an element of h of a sequence and direction, grid = B · D · R / 64.
// #import grid
// #import math
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows

struct Params {
    hidden: u32,     // H
    output: u32,     // R
    sequences: u32,  // B
    running: u32,    // sequences with a first step
    operand: u32,    // where in `state` the first step's gradients begin
    directions: u32, // D
    reverse: u32,    // bit d: direction d runs back in time
    stride_k: u32,   // values of the packed weights from one unit's rows to the next
    stride_g: u32,   // from one gate's row to the next
    stride_u: u32,   // from one column to the next
    lengths: u32,    // where the lengths begin in `table`
    offsets: u32,    // where the first rows of each step begin
    start: u32,      // absolute time of step 0
    dropout_x: u32,  // key of the layer's recurrent dropout
    dropout_y: u32,
}

// Whether the step adds up each gate by itself. The order of sums is the step's, so that a sequence that is read in parts
// has the bits of one that is not.
override GATE_BY_GATE: bool = false;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> state: array<vec4<f32>>; // slots of [D, B, H]
@group(0) @binding(3) var<storage, read> carry: array<f32>;       // [B, D, H], then [B, D, R]
@group(0) @binding(4) var<storage, read_write> dh0: array<f32>;   // [B, D, R]
@group(0) @binding(5) var<storage, read> table: array<u32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = linear_workgroup(workgroup, count) * 64u + local;
    let column = at % params.output;
    let b = at / params.output / params.directions;
    let d = (at / params.output) % params.directions;
    if (b >= params.sequences) {
        return;
    }
    let carried = carry[params.sequences * params.directions * params.hidden + at];
    if (b >= params.running) {
        dh0[at] = carried;
        return;
    }
    let row = params.operand + (d * params.sequences + b) * params.hidden;
    var sum = 0.0;
    var gates = vec4<f32>(0.0);
    for (var k = 0u; k < params.hidden; k++) {
        let dz = state[row + k];
        let at = (d * params.hidden + k) * params.stride_k + column * params.stride_u;
        let g = params.stride_g;
        let w = vec4<f32>(weights[at], weights[at + g], weights[at + 2u * g], weights[at + 3u * g]);
        if (GATE_BY_GATE) {
            gates = fma(dz, w, gates);
        } else {
            sum = fma(dz.w, w.w, fma(dz.z, w.z, fma(dz.y, w.y, fma(dz.x, w.x, sum))));
        }
    }
    if (GATE_BY_GATE) {
        sum = gates.x + gates.y + gates.z + gates.w;
    }
    let key = vec2<u32>(params.dropout_x, params.dropout_y);
    let time = params.start + time_of(b, d, 0u);
    sum *= recurrent_mask(key, table[b], time, d * params.output + column);
    if (ZONEOUT_H > 0.0) {
        sum += carried;
    }
    dh0[at] = within(sum, GRADIENT_CLIP);
}
