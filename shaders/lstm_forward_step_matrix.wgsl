// `lstm_forward_step` by matrix units: the product of a tile of sequences and units, four columns a unit, then the update of
// each. Grid = directions · sequence blocks · unit blocks.
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows
// #import lstm_forward_cell
// #import matrix_tile

const SLICES: u32 = 4u;
const A_ACROSS: u32 = DEPTH;
const B_ACROSS: u32 = TILE;

// The first vector of h of one sequence in a slot of `state`.
fn state_of(slot: u32, d: u32, b: u32) -> u32 {
    return ((slot * params.directions + d) * params.sequences + b) * params.quads;
}

fn fetch_a(p: Place, first: u32, end: u32, line: u32, across: u32) -> vec4<f32> {
    // Sequences past the end repeat the last one; they are not stored.
    let b = min(p.row + line, params.sequences - 1u);
    let k = first + across;
    return select(vec4<f32>(0.0), state[state_of(params.slot, p.direction, b) + min(k, end - 1u) / 4u], k < end);
}

fn fetch_b(p: Place, first: u32, end: u32, line: u32, across: u32) -> vec4<f32> {
    let k = first + line;
    let unit = min((p.column + across) / 4u, params.hidden - 1u);
    let w = four(weights[weights_of(p.direction) + min(k, end - 1u) * params.hidden + unit]);
    return select(vec4<f32>(0.0), w, k < end);
}

@compute @workgroup_size(THREADS)
fn main(here: Here) {
    let group = linear_workgroup(here.workgroup, here.count);
    let block = group / params.unit_blocks;
    let row = block % params.row_blocks * TILE;
    let d = block / params.row_blocks;
    // The tile's first sequence is its longest.
    let longest = select(0u, table[params.lengths + min(row, params.sequences - 1u)], d < params.directions);
    if (params.step >= longest) {
        return;
    }
    let column = group % params.unit_blocks * TILE;
    multiply_tile(Place(row, column, d, here), 0u, 4u * params.quads);
    for (var i = here.thread; i < TILE * TILE / 4u; i += THREADS) {
        let b = row + i / (TILE / 4u);
        let unit = column / 4u + i % (TILE / 4u);
        let next = finish(b, d, unit, params.step, sum_of(i / (TILE / 4u), i % (TILE / 4u) * 4u));
        if (next.goes_on) {
            state[state_of(1u - params.slot, d, b) + unit / 4u][unit % 4u] = next.h;
        }
    }
}
