// The sum over columns of each row (or of squares). One thread a row of a piece, grid = rows / 64.
// #import grid

struct Params {
    rows: u32,
    columns: u32,
    square: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

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
    var sum = 0.0;
    for (var column = 0u; column < params.columns; column++) {
        let value = x[row * params.columns + column];
        sum += select(value, value * value, params.square != 0u);
    }
    sums[row] = sum;
}
