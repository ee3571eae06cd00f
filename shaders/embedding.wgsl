// Rows of a table [V, D], or of a slab of one, by tokens [R]; zeros for tokens of other slabs. One thread a value of a piece, grid = R · D / 256.
// #import grid

struct Params {
    len: u32,         // R·D of this piece
    columns: u32,     // D
    table_first: u32, // the first row of the slab
    table_rows: u32,  // rows of the slab, or V
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> entries: array<f32>;
@group(0) @binding(2) var<storage, read> tokens: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

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
    let row = tokens[i / params.columns] - params.table_first; // far beyond the last where it is before the first
    var entry = 0.0;
    if (row < params.table_rows) {
        entry = entries[row * params.columns + i % params.columns];
    }
    y[i] = entry;
}
