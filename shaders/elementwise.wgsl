// Expressions over the elements of broadcast values. The prelude declares the values' bindings and the scalars of the
// run, and defines `apply`, which reads, computes and writes one element. One thread an element of a piece,
// grid = elements / 256.
// #import grid
// #import math

struct Params {
    len: u32,     // elements of this piece
    columns: u32, // elements in one row
}

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    if (i < params.len) {
        apply(i, i / params.columns, i % params.columns);
    }
}
