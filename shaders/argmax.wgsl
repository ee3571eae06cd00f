// The column of each row's largest value, the first of equals. One thread a row of a piece, grid = rows / 64.
// #import grid

struct Params {
    rows: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> columns: array<u32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = linear_workgroup(workgroup, count) * 64u + local;
    if (row >= params.rows) {
        return;
    }
    let base = row * params.columns;
    var best = 0u;
    for (var j = 1u; j < params.columns; j++) {
        if (x[base + j] > x[base + best]) {
            best = j;
        }
    }
    columns[row] = best;
}
