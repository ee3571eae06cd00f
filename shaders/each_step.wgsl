// The row of each sequence at each of its steps. One thread a value, grid = rows · columns / 256.
// #import grid
// #import table

struct Params {
    columns: u32,
    row_start: u32, // the piece holds rows row_start .. row_end of all
    row_end: u32,
    steps: u32,     // T
    table: u32,     // where the axis's first rows of each step begin in `table`
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [B, columns]
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

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
    y[i] = x[b * params.columns + i % params.columns];
}
