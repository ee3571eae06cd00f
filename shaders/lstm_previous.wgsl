// h_{t-1} of every row: h_0 at the first step, else y of the same sequence one step before.
// One thread a value of a piece, grid = rows · H / 256.
// #import grid
// #import table

struct Params {
    hidden: u32,
    row_start: u32, // the piece of the output holds rows row_start .. row_end of all
    row_end: u32,
    y_start: u32,   // the piece of y holds rows y_start .. y_end; rows that need another are left alone
    y_end: u32,
    steps: u32,     // T
    table: u32,     // where the axis's first rows of each step begin in `table`
    has_h0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> h0: array<f32>; // [B, H]
@group(0) @binding(3) var<storage, read> table: array<u32>;
@group(0) @binding(4) var<storage, read_write> previous: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    let row = params.row_start + i / params.hidden;
    let unit = i % params.hidden;
    if (row >= params.row_end) {
        return;
    }
    let t = step_of(row, params.table, params.steps);
    let b = row - table[params.table + t];
    if (t == 0u) {
        var value = 0.0;
        if (params.has_h0 != 0u) {
            value = h0[b * params.hidden + unit];
        }
        previous[i] = value;
        return;
    }
    let before = table[params.table + t - 1u] + b;
    if (before >= params.y_start && before < params.y_end) {
        previous[i] = y[(before - params.y_start) * params.hidden + unit];
    }
}
