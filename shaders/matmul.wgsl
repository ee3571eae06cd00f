// C [rows, columns] = A [rows, inner] · B [inner, columns] (+ bias [columns]), B's rows padded to multiples of four.
// One thread computes 8 rows of 4 columns in registers; B is read as whole vectors, A is the same for all threads of a
// row block. Grid = row blocks · column blocks, 64 threads across columns.
// #import grid
// #import matmul_store

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let row = (group / params.column_blocks) * 8u;
    let quad = (group % params.column_blocks) * 64u + local;
    let column = quad * 4u;
    if (row >= params.rows || column >= params.columns) {
        return;
    }
    let quads = (params.columns + 3u) / 4u;
    // Rows past the end repeat the last one; they are not stored.
    let last = params.rows - 1u;
    let r0 = row * params.a_stride;
    let r1 = min(row + 1u, last) * params.a_stride;
    let r2 = min(row + 2u, last) * params.a_stride;
    let r3 = min(row + 3u, last) * params.a_stride;
    let r4 = min(row + 4u, last) * params.a_stride;
    let r5 = min(row + 5u, last) * params.a_stride;
    let r6 = min(row + 6u, last) * params.a_stride;
    let r7 = min(row + 7u, last) * params.a_stride;
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
    for (var k = 0u; k < params.inner; k++) {
        let w = b[k * quads + quad];
        s0 = fma(vec4<f32>(a[r0 + k]), w, s0);
        s1 = fma(vec4<f32>(a[r1 + k]), w, s1);
        s2 = fma(vec4<f32>(a[r2 + k]), w, s2);
        s3 = fma(vec4<f32>(a[r3 + k]), w, s3);
        s4 = fma(vec4<f32>(a[r4 + k]), w, s4);
        s5 = fma(vec4<f32>(a[r5 + k]), w, s5);
        s6 = fma(vec4<f32>(a[r6 + k]), w, s6);
        s7 = fma(vec4<f32>(a[r7 + k]), w, s7);
    }
    for (var r = 0u; r < 8u; r++) {
        store(row + r, column, s0);
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
    }
}
