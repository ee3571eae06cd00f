// Rows of a table [V, D] by tokens [R]. One thread a value of a piece, grid = R · D / 256.
// #import grid

struct Params {
    len: u32,        // R·D of this piece
    columns: u32,    // D
    table_rows: u32, // V; a token beyond reads the last row, but tokens are checked before they come here
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
    let token = min(tokens[i / params.columns], params.table_rows - 1u);
    y[i] = entries[token * params.columns + i % params.columns];
}
