// `matmul` with broadcasts inside subgroups; see `lstm_forward_step_subgroup`.
// One thread computes 16 rows of 4 columns. Grid = row blocks · column blocks, 64 threads across columns.
// #import grid
// #import weights
// #import math
// #import epilogue
// #import matmul_store

@group(0) @binding(1) var<storage, read> a: array<f32>;

// Four values of A in a row.
fn load(at: u32) -> vec4<f32> {
    return vec4<f32>(a[at], a[at + 1u], a[at + 2u], a[at + 3u]);
}

fn multiply(a: vec4<f32>, b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(a.w), b3, fma(vec4<f32>(a.z), b2, fma(vec4<f32>(a.y), b1, fma(vec4<f32>(a.x), b0, sum))));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let row = (group / params.column_blocks) * 16u;
    let quads = (params.columns + 3u) / 4u;
    let quad = (group % params.column_blocks) * 64u + local;
    // No thread leaves early, since all lanes take part in broadcasts; what is past the end is not stored.
    let origin = min(quad, quads - 1u);
    let column = 4u * origin;
    let last = params.rows - 1u;
    let r0 = min(row + (lane & 7u), last) * params.a_stride;
    let r8 = min(row + (lane & 7u) + 8u, last) * params.a_stride;
    var start = vec4<f32>(0.0);
    if (params.has_bias != 0u) {
        start.x = bias[column];
        start.y = bias[min(column + 1u, params.columns - 1u)];
        start.z = bias[min(column + 2u, params.columns - 1u)];
        start.w = bias[min(column + 3u, params.columns - 1u)];
    }
    var s0 = start;
    var s1 = start;
    var s2 = start;
    var s3 = start;
    var s4 = start;
    var s5 = start;
    var s6 = start;
    var s7 = start;
    var s8 = start;
    var s9 = start;
    var s10 = start;
    var s11 = start;
    var s12 = start;
    var s13 = start;
    var s14 = start;
    var s15 = start;
    let whole = params.inner & ~3u;
    for (var k = 0u; k < whole; k += 4u) {
        let b0 = four(b[k * quads + origin]);
        let b1 = four(b[(k + 1u) * quads + origin]);
        let b2 = four(b[(k + 2u) * quads + origin]);
        let b3 = four(b[(k + 3u) * quads + origin]);
        let a0 = load(r0 + k);
        let a8 = load(r8 + k);
        s0 = multiply(subgroupBroadcast(a0, 0u), b0, b1, b2, b3, s0);
        s1 = multiply(subgroupBroadcast(a0, 1u), b0, b1, b2, b3, s1);
        s2 = multiply(subgroupBroadcast(a0, 2u), b0, b1, b2, b3, s2);
        s3 = multiply(subgroupBroadcast(a0, 3u), b0, b1, b2, b3, s3);
        s4 = multiply(subgroupBroadcast(a0, 4u), b0, b1, b2, b3, s4);
        s5 = multiply(subgroupBroadcast(a0, 5u), b0, b1, b2, b3, s5);
        s6 = multiply(subgroupBroadcast(a0, 6u), b0, b1, b2, b3, s6);
        s7 = multiply(subgroupBroadcast(a0, 7u), b0, b1, b2, b3, s7);
        s8 = multiply(subgroupBroadcast(a8, 0u), b0, b1, b2, b3, s8);
        s9 = multiply(subgroupBroadcast(a8, 1u), b0, b1, b2, b3, s9);
        s10 = multiply(subgroupBroadcast(a8, 2u), b0, b1, b2, b3, s10);
        s11 = multiply(subgroupBroadcast(a8, 3u), b0, b1, b2, b3, s11);
        s12 = multiply(subgroupBroadcast(a8, 4u), b0, b1, b2, b3, s12);
        s13 = multiply(subgroupBroadcast(a8, 5u), b0, b1, b2, b3, s13);
        s14 = multiply(subgroupBroadcast(a8, 6u), b0, b1, b2, b3, s14);
        s15 = multiply(subgroupBroadcast(a8, 7u), b0, b1, b2, b3, s15);
    }
    for (var k = whole; k < params.inner; k++) {
        let b0 = four(b[k * quads + origin]);
        let a0 = a[r0 + k];
        let a8 = a[r8 + k];
        s0 = fma(vec4<f32>(subgroupBroadcast(a0, 0u)), b0, s0);
        s1 = fma(vec4<f32>(subgroupBroadcast(a0, 1u)), b0, s1);
        s2 = fma(vec4<f32>(subgroupBroadcast(a0, 2u)), b0, s2);
        s3 = fma(vec4<f32>(subgroupBroadcast(a0, 3u)), b0, s3);
        s4 = fma(vec4<f32>(subgroupBroadcast(a0, 4u)), b0, s4);
        s5 = fma(vec4<f32>(subgroupBroadcast(a0, 5u)), b0, s5);
        s6 = fma(vec4<f32>(subgroupBroadcast(a0, 6u)), b0, s6);
        s7 = fma(vec4<f32>(subgroupBroadcast(a0, 7u)), b0, s7);
        s8 = fma(vec4<f32>(subgroupBroadcast(a8, 0u)), b0, s8);
        s9 = fma(vec4<f32>(subgroupBroadcast(a8, 1u)), b0, s9);
        s10 = fma(vec4<f32>(subgroupBroadcast(a8, 2u)), b0, s10);
        s11 = fma(vec4<f32>(subgroupBroadcast(a8, 3u)), b0, s11);
        s12 = fma(vec4<f32>(subgroupBroadcast(a8, 4u)), b0, s12);
        s13 = fma(vec4<f32>(subgroupBroadcast(a8, 5u)), b0, s13);
        s14 = fma(vec4<f32>(subgroupBroadcast(a8, 6u)), b0, s14);
        s15 = fma(vec4<f32>(subgroupBroadcast(a8, 7u)), b0, s15);
    }
    for (var r = 0u; r < 16u; r++) {
        store(row + r, 4u * quad, s0);
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
        s7 = s8;
        s8 = s9;
        s9 = s10;
        s10 = s11;
        s11 = s12;
        s12 = s13;
        s13 = s14;
        s14 = s15;
    }
}
