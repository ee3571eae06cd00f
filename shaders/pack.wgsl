// Rearranges a weight for a kernel: elements [A, B, C], B·C of them in a row, each from source a·stride_a + b·stride_b +
// c·stride_c where a, b and c are inside their limits and that is in the source, else zero. With `accumulate` it adds to the destination.
//   main:   to 32 bits; one thread an element, grid = A·B·C / 256
//   halves: to 16 bits; one thread two elements of a row, which has an even number of them, grid = A·B·C / 512
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
    round: u32, // whether values that keep 32 bits are rounded to 16 all the same
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> destination: array<f32>;
@group(0) @binding(2) var<storage, read_write> pairs: array<u32>;

// Where element `i` goes.
fn place_of(i: u32) -> u32 {
    let row = params.b * params.c;
    return params.first + i / row * params.stride_to + i % row;
}

fn value_of(i: u32) -> f32 {
    let c = i % params.c;
    let b = (i / params.c) % params.b;
    let a = i / (params.c * params.b);
    let at = a * params.stride_a + b * params.stride_b + c * params.stride_c;
    if (a < params.limit_a && b < params.limit_b && c < params.limit_c && at < params.source_len) {
        return source[at];
    }
    return 0.0;
}

// Two halves; what is past the largest becomes it, and what is no number stays none.
fn half_pair(value: vec2<f32>) -> u32 {
    let pair = pack2x16float(clamp(value, vec2<f32>(-65504.0), vec2<f32>(65504.0)));
    let none = (bitcast<vec2<u32>>(value) & vec2<u32>(0x7fffffffu)) > vec2<u32>(0x7f800000u);
    return pair | select(0u, 0x7e00u, none.x) | select(0u, 0x7e000000u, none.y);
}

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
    let to = place_of(i);
    var value = value_of(i);
    if (params.round != 0u) {
        value = unpack2x16float(half_pair(vec2<f32>(value))).x;
    }
    if (params.accumulate != 0u) {
        value += destination[to];
    }
    destination[to] = value;
}

@compute @workgroup_size(256)
fn halves(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (linear_workgroup(workgroup, count) * 256u + local) * 2u;
    if (i >= params.len) {
        return;
    }
    let to = place_of(i) / 2u;
    var value = vec2<f32>(value_of(i), value_of(i + 1u));
    if (params.accumulate != 0u) {
        value += unpack2x16float(pairs[to]);
    }
    pairs[to] = half_pair(value);
}
