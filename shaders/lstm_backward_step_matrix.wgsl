// `lstm_backward_step` by matrix units; entry points, operands and what is done with the products are those of it.
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
// #import matrix_tile

@group(0) @binding(1) var<storage, read> weights: array<Weights>; // [D, weight_rows][columns]

const SLICES: u32 = 4u;
const A_ACROSS: u32 = DEPTH;
const B_ACROSS: u32 = DEPTH;

fn fetch_a(p: Place, first: u32, end: u32, line: u32, across: u32) -> vec4<f32> {
    // Sequences past the end repeat the last one; they are not stored.
    let b = min(p.row + line, params.sequences - 1u);
    let k = first + across;
    let at = params.operand + (p.direction * params.sequences + b) * params.inner + min(k, end - 1u) / 4u;
    return select(vec4<f32>(0.0), state[at], k < end);
}

fn fetch_b(p: Place, first: u32, end: u32, line: u32, across: u32) -> vec4<f32> {
    let k = first + across;
    let column = min(p.column + line, params.columns - 1u);
    let row = p.direction * params.weight_rows + min(k, end - 1u) / 4u;
    return select(vec4<f32>(0.0), four(weights[row * params.columns + column]), k < end);
}

fn place_of(here: Here) -> Place {
    let group = linear_workgroup(here.workgroup, here.count);
    let block = group / params.unit_blocks;
    let column = group % params.unit_blocks * TILE;
    let row = block % params.row_blocks * TILE;
    return Place(row, column, block / params.row_blocks, here);
}

// Multiplies, if the tile's first sequence, which is its longest, has an operand.
fn multiply(p: Place, has_operand: bool) {
    multiply_tile(p, 0u, select(0u, 4u * params.inner, has_operand));
}

fn element(i: u32) -> f32 {
    var sum = 0.0;
    for (var slice = 0u; slice < SLICES; slice++) {
        sum += c_tile[(slice * TILE + i / TILE) * C_STRIDE + i % TILE];
    }
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(here: Here) {
    let p = place_of(here);
    if (p.direction >= params.directions) {
        return;
    }
    multiply(p, runs(p.row, params.step + params.ahead));
    for (var i = here.thread; i < TILE * TILE; i += THREADS) {
        let b = p.row + i / TILE;
        let unit = p.column + i % TILE;
        let gradient = finish_step(b, p.direction, unit, params.step, element(i));
        if (gradient.is) {
            state[result_of(b, p.direction, unit)] = gradient.dz;
        }
    }
}

@compute @workgroup_size(THREADS)
fn arrive_h(here: Here) {
    let p = place_of(here);
    if (p.direction >= params.directions) {
        return;
    }
    multiply(p, runs(p.row, params.step + params.ahead));
    for (var i = here.thread; i < TILE * TILE; i += THREADS) {
        finish_arrive(p.row + i / TILE, p.direction, p.column + i % TILE, params.step, element(i));
    }
}

@compute @workgroup_size(THREADS)
fn unproject(here: Here) {
    let p = place_of(here);
    if (p.direction >= params.directions) {
        return;
    }
    multiply(p, runs(p.row, params.step));
    for (var i = here.thread; i < TILE * TILE; i += THREADS) {
        finish_unproject(p.row + i / TILE, p.direction, p.column + i % TILE, params.step, element(i));
    }
}

@compute @workgroup_size(THREADS)
fn initial(here: Here) {
    let p = place_of(here);
    if (p.direction >= params.directions) {
        return;
    }
    multiply(p, runs(p.row, 0u));
    for (var i = here.thread; i < TILE * TILE; i += THREADS) {
        finish_initial(p.row + i / TILE, p.direction, p.column + i % TILE, element(i));
    }
}
