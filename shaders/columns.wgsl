// Columns of a matrix copied into columns of another. One thread a value, grid = rows · count / 256.
// #import grid

struct Params {
    rows: u32,
    count: u32,       // columns that are copied
    from_stride: u32, // values from one row to the next
    from_first: u32,  // the first column
    to_stride: u32,
    to_first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    let row = i / params.count;
    if (row >= params.rows) {
        return;
    }
    let column = i % params.count;
    y[row * params.to_stride + params.to_first + column] = x[row * params.from_stride + params.from_first + column];
}
