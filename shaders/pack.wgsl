// Rearranges a weight for a kernel: elements [A, B, C], B·C of them in a row, each from source a·stride_a + b·stride_b +
// c·stride_c where a, b and c are inside their limits and that is in the source, else zero. With `accumulate` it adds to the destination.
// One thread an element, grid = A·B·C / 256.
// #import grid

struct Params {
    len: u32,      // A·B·C
    b: u32,        // B
    c: u32,        // C
    limit_a: u32,
    limit_b: u32,
    limit_c: u32,
    stride_a: u32,
    stride_b: u32,
    stride_c: u32,
    accumulate: u32,
    first: u32,     // where in the destination the first element goes
    stride_to: u32, // from one A to the next in the destination
    source_len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> destination: array<f32>;

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
    let c = i % params.c;
    let b = (i / params.c) % params.b;
    let a = i / (params.c * params.b);
    let to = params.first + a * params.stride_to + b * params.c + c;
    var value = 0.0;
    let at = a * params.stride_a + b * params.stride_b + c * params.stride_c;
    if (a < params.limit_a && b < params.limit_b && c < params.limit_c && at < params.source_len) {
        value = source[at];
    }
    if (params.accumulate != 0u) {
        value += destination[to];
    }
    destination[to] = value;
}
