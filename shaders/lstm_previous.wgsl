// A state of the step before in one direction's order, for every row: of y or of the cells; at the first step the initial
// one. h is under its mask, as it met U.
// One thread a value of a piece, grid = rows · columns / 256.
// #import grid
// #import math
// #import activation
// #import threefry
// #import lstm_options
// #import table

struct Params {
    columns: u32,   // of one direction
    stride: u32,    // D · columns
    column: u32,    // where the direction's columns begin
    back: u32,      // 1 where the direction runs back in time
    row_start: u32, // the piece of the output holds rows row_start .. row_end of all
    row_end: u32,
    y_start: u32,   // the piece of the states holds rows y_start .. y_end; rows that need another are left alone
    y_end: u32,
    steps: u32,     // T
    table: u32,     // where the axis's first rows of each step begin in `table`
    has_initial: u32,
    start: u32,     // absolute time of step 0
    dropout_x: u32, // key of the layer's recurrent dropout
    dropout_y: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> initial: array<f32>; // [B, D · columns]
@group(0) @binding(3) var<storage, read> table: array<u32>;
@group(0) @binding(4) var<storage, read_write> previous: array<f32>; // [rows, columns]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    let row = params.row_start + i / params.columns;
    if (row >= params.row_end) {
        return;
    }
    let t = step_of(row, params.table, params.steps);
    let b = row - table[params.table + t];
    let column = params.column + i % params.columns;
    var first = t == 0u;
    var before = 0u;
    if (params.back != 0u) {
        // The sequence's last step is the direction's first.
        first = t + 1u >= params.steps;
        if (!first) {
            first = b >= table[params.table + t + 2u] - table[params.table + t + 1u];
        }
        if (!first) {
            before = table[params.table + t + 1u] + b;
        }
    } else if (!first) {
        before = table[params.table + t - 1u] + b;
    }
    let key = vec2<u32>(params.dropout_x, params.dropout_y);
    let mask = recurrent_mask(key, table[b], params.start + t, column);
    if (first) {
        var value = 0.0;
        if (params.has_initial != 0u) {
            value = initial[b * params.stride + column];
        }
        previous[i] = value * mask;
        return;
    }
    if (before >= params.y_start && before < params.y_end) {
        previous[i] = y[(before - params.y_start) * params.stride + column] * mask;
    }
}
