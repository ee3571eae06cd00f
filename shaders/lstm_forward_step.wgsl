// One step of an LSTM layer, fused: the four gates' products with h of a tile of sequences and units, the activations and the
// state update. U is packed [k][unit] of vec4 (i f g o), h padded to a multiple of four.
// Grid = directions · sequence blocks · unit blocks.
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows
// #import lstm_forward_cell
// #import step_tile

// The first vector of h of one sequence in a slot of `state`.
fn state_of(slot: u32, d: u32, b: u32) -> u32 {
    return ((slot * params.directions + d) * params.sequences + b) * params.quads;
}

// All slices of one unit of one sequence, in their order.
fn added(row: u32, lane: u32) -> vec4<f32> {
    var sum = sums[row * UNITS + lane];
    for (var slice = 1u; slice < SLICES; slice++) {
        sum += sums[(slice * GROUPS * ROWS + row) * UNITS + lane];
    }
    return sum;
}

@compute @workgroup_size(UNITS, SLICES, GROUPS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) number: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let block = group / params.unit_blocks;
    let b = block % params.row_blocks * (ROWS * GROUPS);
    let d = block / params.row_blocks;
    // Every tile has a sequence that runs: whether it does is not asked, for nothing else could begin before the answer.
    if (d >= params.directions) {
        return;
    }
    let first = group % params.unit_blocks * UNITS;
    let lane = min(first + local.x, params.hidden - 1u);
    let operand = state_of(params.slot, d, 0u);
    let s = Source(weights_of(d) + lane, params.hidden, operand, params.quads, b + local.z * ROWS);
    // What the update reads is on its way while the product is made.
    var next = before(b + number / UNITS, d, first + number % UNITS, params.step);
    leave_sums(s, params.quads, local);
    workgroupBarrier();
    for (var i = number; i < UNITS * GROUPS * ROWS; i += threads()) {
        let row = i / UNITS;
        let unit = first + i % UNITS;
        let found = next;
        let later = i + threads();
        if (later < UNITS * GROUPS * ROWS) {
            next = before(b + later / UNITS, d, first + later % UNITS, params.step);
        }
        let result = finish_from(found, b + row, d, unit, params.step, added(row, i % UNITS));
        if (result.goes_on) {
            state[state_of(1u - params.slot, d, b + row) + unit / 4u][unit % 4u] = result.h;
        }
    }
}
