// Rows of x [R, D] to the rows of a table [V, D] that rows [R] name, none twice. One thread a value of a piece,
// grid = R · D / 256.
// #import grid

struct Params {
    len: u32,        // R·D of this piece
    columns: u32,    // D
    table_rows: u32, // V; a row beyond writes nothing, but rows are checked before they come here
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> entries: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    if (i >= params.len) {
        return;
    }
    let row = rows[i / params.columns];
    if (row < params.table_rows) {
        entries[row * params.columns + i % params.columns] = x[i];
    }
}
