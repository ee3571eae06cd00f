// One step back of an LSTM layer: a product of a tile of sequences and columns, four columns a lane, and what is made of it.
// Weights are packed [k][four rows][padded column]: of U those of unit k's gates i f g o, or four of W_hr.
//   main:      the product of the next step's gate gradients with U, what arrives at h, and the gradients of the gates
//   arrive_h:  the same product and what arrives at a projected h
//   unproject: the product of that with W_hr, and the gradients of the gates
//   initial:   the product of the first step's gate gradients with U, and the gradient of h_0
// Grid = directions · sequence blocks · column blocks.
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_slopes
// #import lstm_rows
// #import lstm_backward_cell
// #import step_tile

@group(0) @binding(1) var<storage, read> weights: array<Weights>; // [D, 4 weight_rows][padded columns / 4]

// Columns of one lane.
const COLUMNS: u32 = 4u;

// What a workgroup computes.
struct Tile {
    b: u32,      // its first sequence
    d: u32,      // its direction
    column: u32, // its first column
}

fn tile_of(group: u32) -> Tile {
    let block = group / params.unit_blocks;
    let column = group % params.unit_blocks * UNITS * COLUMNS;
    return Tile(block % params.row_blocks * (ROWS * GROUPS), block / params.row_blocks, column);
}

// Leaves this thread's slice of the product of the tile in `sums`; of a sequence that has no operand it is not used.
fn multiply_tile(t: Tile, local: vec3<u32>) {
    let quads = (params.columns + 3u) / 4u;
    let lane = min(t.column / COLUMNS + local.x, quads - 1u);
    let operand = params.operand + t.d * params.sequences * params.inner;
    let s = Source(t.d * params.weight_rows * 4u * quads + lane, quads, operand, params.inner, t.b + local.z * ROWS);
    leave_sums(s, params.inner, local);
    workgroupBarrier();
}

fn elements() -> u32 {
    return UNITS * COLUMNS * GROUPS * ROWS;
}

fn sequence_of(t: Tile, element: u32) -> u32 {
    return t.b + element / (UNITS * COLUMNS);
}

fn column_of(t: Tile, element: u32) -> u32 {
    return t.column + element % (UNITS * COLUMNS);
}

// All slices of one element, in their order.
fn added(element: u32) -> f32 {
    let at = element / COLUMNS;
    let column = element % COLUMNS;
    var sum = sums[at][column];
    for (var slice = 1u; slice < SLICES; slice++) {
        sum += sums[slice * GROUPS * ROWS * UNITS + at][column];
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
    let t = tile_of(linear_workgroup(workgroup, count));
    // Every tile has a sequence that runs: whether it does is not asked, for nothing else could begin before the answer.
    if (t.d >= params.directions) {
        return;
    }
    // What the gates' gradients are made of is on its way while the product is made.
    var next = ready_for(sequence_of(t, number), t.d, column_of(t, number), params.step);
    multiply_tile(t, local);
    for (var i = number; i < elements(); i += threads()) {
        let b = sequence_of(t, i);
        let unit = column_of(t, i);
        let ready = next;
        let later = i + threads();
        if (later < elements()) {
            next = ready_for(sequence_of(t, later), t.d, column_of(t, later), params.step);
        }
        let gradient = finish_from(ready, b, t.d, unit, params.step, added(i));
        if (gradient.is) {
            state[result_of(b, t.d, unit)] = gradient.dz;
        }
    }
}

@compute @workgroup_size(UNITS, SLICES, GROUPS)
fn arrive_h(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) number: u32,
) {
    let t = tile_of(linear_workgroup(workgroup, count));
    if (t.d >= params.directions) {
        return;
    }
    multiply_tile(t, local);
    for (var i = number; i < elements(); i += threads()) {
        finish_arrive(sequence_of(t, i), t.d, column_of(t, i), params.step, added(i));
    }
}

@compute @workgroup_size(UNITS, SLICES, GROUPS)
fn unproject(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) number: u32,
) {
    let t = tile_of(linear_workgroup(workgroup, count));
    if (t.d >= params.directions) {
        return;
    }
    multiply_tile(t, local);
    for (var i = number; i < elements(); i += threads()) {
        finish_unproject(sequence_of(t, i), t.d, column_of(t, i), params.step, added(i));
    }
}

@compute @workgroup_size(UNITS, SLICES, GROUPS)
fn initial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) number: u32,
) {
    let t = tile_of(linear_workgroup(workgroup, count));
    if (t.d >= params.directions) {
        return;
    }
    multiply_tile(t, local);
    for (var i = number; i < elements(); i += threads()) {
        finish_initial(sequence_of(t, i), t.d, column_of(t, i), added(i));
    }
}
