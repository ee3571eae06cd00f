// Rows of x [R, D] to the rows of a table [V, D] that rows [R] name, none twice. One thread a value of a piece,
// grid = R · D / 256.
// #import grid

struct Params {
    len: u32,         // R·D of this piece
    columns: u32,     // D
    table_first: u32, // the first row of the slab of the table
    table_rows: u32,  // rows of the slab, or V; rows of other slabs write nothing
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
    let row = rows[i / params.columns] - params.table_first; // far beyond the last where it is before the first
    if (row < params.table_rows) {
        entries[row * params.columns + i % params.columns] = x[i];
    }
}
