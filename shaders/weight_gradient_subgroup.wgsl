// `weight_gradient` with broadcasts inside subgroups; see `lstm_forward_step_subgroup`.
// One thread computes 4 rows of 16 columns of C: it loads four values of a row of A, the lanes of its subgroup one value of B
// each (and one eight further on). Grid = column blocks · row blocks, 64 threads across quads of rows.
// #import grid
// #import weight_gradient_rows

@group(0) @binding(1) var<storage, read> a: array<f32>; // the piece's rows
@group(0) @binding(2) var<storage, read> b: array<f32>; // the piece's rows

fn load(r: u32, row: u32) -> vec4<f32> {
    let at = r * params.a_stride + params.a_first;
    let last = params.m - 1u;
    return vec4<f32>(a[at + row], a[at + min(row + 1u, last)], a[at + min(row + 2u, last)], a[at + min(row + 3u, last)]);
}

fn before(row: u32, column: u32) -> f32 {
    if (params.accumulate == 0u || row >= params.m || column >= params.n) {
        return 0.0;
    }
    return c[address(row) + column];
}

// Where the sums begin: they are one chain over all pieces.
fn held(row: u32, column: u32) -> vec4<f32> {
    return vec4<f32>(before(row, column), before(row + 1u, column), before(row + 2u, column), before(row + 3u, column));
}

fn keep(row: u32, column: u32, value: f32) {
    if (row < params.m && column < params.n) {
        c[address(row) + column] = value;
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let column = (group / params.blocks) * 16u;
    let row = ((group % params.blocks) * 64u + local) * 4u;
    // No thread leaves early, since all lanes take part in broadcasts; what is past the end is not stored.
    let origin = min(row, (params.m - 1u) & ~3u);
    let n0 = min(column + (lane & 7u), params.n - 1u);
    let n8 = min(column + (lane & 7u) + 8u, params.n - 1u);
    var t0 = held(row, column + 0u);
    var t1 = held(row, column + 1u);
    var t2 = held(row, column + 2u);
    var t3 = held(row, column + 3u);
    var t4 = held(row, column + 4u);
    var t5 = held(row, column + 5u);
    var t6 = held(row, column + 6u);
    var t7 = held(row, column + 7u);
    var t8 = held(row, column + 8u);
    var t9 = held(row, column + 9u);
    var t10 = held(row, column + 10u);
    var t11 = held(row, column + 11u);
    var t12 = held(row, column + 12u);
    var t13 = held(row, column + 13u);
    var t14 = held(row, column + 14u);
    var t15 = held(row, column + 15u);
    let chunks = select((params.steps + CHUNK - 1u) / CHUNK, 1u, params.steps == 0u);
    for (var i = 0u; i < chunks; i++) {
        let rows = rows_of(chunks - 1u - i);
        let start = rows.start;
        let end = rows.end;
        var s0 = vec4<f32>(0.0);
        var s1 = vec4<f32>(0.0);
        var s2 = vec4<f32>(0.0);
        var s3 = vec4<f32>(0.0);
        var s4 = vec4<f32>(0.0);
        var s5 = vec4<f32>(0.0);
        var s6 = vec4<f32>(0.0);
        var s7 = vec4<f32>(0.0);
        var s8 = vec4<f32>(0.0);
        var s9 = vec4<f32>(0.0);
        var s10 = vec4<f32>(0.0);
        var s11 = vec4<f32>(0.0);
        var s12 = vec4<f32>(0.0);
        var s13 = vec4<f32>(0.0);
        var s14 = vec4<f32>(0.0);
        var s15 = vec4<f32>(0.0);
        // Four rows at a time keep sums in registers for longer.
        let whole = start + ((end - start) & ~3u);
        for (var r = start; r < whole; r += 4u) {
            let a0 = load(r + 0u, origin);
            let b0 = b[(r + 0u) * params.b_stride + params.b_first + n0];
            let d0 = b[(r + 0u) * params.b_stride + params.b_first + n8];
            let a1 = load(r + 1u, origin);
            let b1 = b[(r + 1u) * params.b_stride + params.b_first + n0];
            let d1 = b[(r + 1u) * params.b_stride + params.b_first + n8];
            let a2 = load(r + 2u, origin);
            let b2 = b[(r + 2u) * params.b_stride + params.b_first + n0];
            let d2 = b[(r + 2u) * params.b_stride + params.b_first + n8];
            let a3 = load(r + 3u, origin);
            let b3 = b[(r + 3u) * params.b_stride + params.b_first + n0];
            let d3 = b[(r + 3u) * params.b_stride + params.b_first + n8];
            s0 = fma(vec4<f32>(subgroupBroadcast(b0, 0u)), a0, s0);
            s0 = fma(vec4<f32>(subgroupBroadcast(b1, 0u)), a1, s0);
            s0 = fma(vec4<f32>(subgroupBroadcast(b2, 0u)), a2, s0);
            s0 = fma(vec4<f32>(subgroupBroadcast(b3, 0u)), a3, s0);
            s1 = fma(vec4<f32>(subgroupBroadcast(b0, 1u)), a0, s1);
            s1 = fma(vec4<f32>(subgroupBroadcast(b1, 1u)), a1, s1);
            s1 = fma(vec4<f32>(subgroupBroadcast(b2, 1u)), a2, s1);
            s1 = fma(vec4<f32>(subgroupBroadcast(b3, 1u)), a3, s1);
            s2 = fma(vec4<f32>(subgroupBroadcast(b0, 2u)), a0, s2);
            s2 = fma(vec4<f32>(subgroupBroadcast(b1, 2u)), a1, s2);
            s2 = fma(vec4<f32>(subgroupBroadcast(b2, 2u)), a2, s2);
            s2 = fma(vec4<f32>(subgroupBroadcast(b3, 2u)), a3, s2);
            s3 = fma(vec4<f32>(subgroupBroadcast(b0, 3u)), a0, s3);
            s3 = fma(vec4<f32>(subgroupBroadcast(b1, 3u)), a1, s3);
            s3 = fma(vec4<f32>(subgroupBroadcast(b2, 3u)), a2, s3);
            s3 = fma(vec4<f32>(subgroupBroadcast(b3, 3u)), a3, s3);
            s4 = fma(vec4<f32>(subgroupBroadcast(b0, 4u)), a0, s4);
            s4 = fma(vec4<f32>(subgroupBroadcast(b1, 4u)), a1, s4);
            s4 = fma(vec4<f32>(subgroupBroadcast(b2, 4u)), a2, s4);
            s4 = fma(vec4<f32>(subgroupBroadcast(b3, 4u)), a3, s4);
            s5 = fma(vec4<f32>(subgroupBroadcast(b0, 5u)), a0, s5);
            s5 = fma(vec4<f32>(subgroupBroadcast(b1, 5u)), a1, s5);
            s5 = fma(vec4<f32>(subgroupBroadcast(b2, 5u)), a2, s5);
            s5 = fma(vec4<f32>(subgroupBroadcast(b3, 5u)), a3, s5);
            s6 = fma(vec4<f32>(subgroupBroadcast(b0, 6u)), a0, s6);
            s6 = fma(vec4<f32>(subgroupBroadcast(b1, 6u)), a1, s6);
            s6 = fma(vec4<f32>(subgroupBroadcast(b2, 6u)), a2, s6);
            s6 = fma(vec4<f32>(subgroupBroadcast(b3, 6u)), a3, s6);
            s7 = fma(vec4<f32>(subgroupBroadcast(b0, 7u)), a0, s7);
            s7 = fma(vec4<f32>(subgroupBroadcast(b1, 7u)), a1, s7);
            s7 = fma(vec4<f32>(subgroupBroadcast(b2, 7u)), a2, s7);
            s7 = fma(vec4<f32>(subgroupBroadcast(b3, 7u)), a3, s7);
            s8 = fma(vec4<f32>(subgroupBroadcast(d0, 0u)), a0, s8);
            s8 = fma(vec4<f32>(subgroupBroadcast(d1, 0u)), a1, s8);
            s8 = fma(vec4<f32>(subgroupBroadcast(d2, 0u)), a2, s8);
            s8 = fma(vec4<f32>(subgroupBroadcast(d3, 0u)), a3, s8);
            s9 = fma(vec4<f32>(subgroupBroadcast(d0, 1u)), a0, s9);
            s9 = fma(vec4<f32>(subgroupBroadcast(d1, 1u)), a1, s9);
            s9 = fma(vec4<f32>(subgroupBroadcast(d2, 1u)), a2, s9);
            s9 = fma(vec4<f32>(subgroupBroadcast(d3, 1u)), a3, s9);
            s10 = fma(vec4<f32>(subgroupBroadcast(d0, 2u)), a0, s10);
            s10 = fma(vec4<f32>(subgroupBroadcast(d1, 2u)), a1, s10);
            s10 = fma(vec4<f32>(subgroupBroadcast(d2, 2u)), a2, s10);
            s10 = fma(vec4<f32>(subgroupBroadcast(d3, 2u)), a3, s10);
            s11 = fma(vec4<f32>(subgroupBroadcast(d0, 3u)), a0, s11);
            s11 = fma(vec4<f32>(subgroupBroadcast(d1, 3u)), a1, s11);
            s11 = fma(vec4<f32>(subgroupBroadcast(d2, 3u)), a2, s11);
            s11 = fma(vec4<f32>(subgroupBroadcast(d3, 3u)), a3, s11);
            s12 = fma(vec4<f32>(subgroupBroadcast(d0, 4u)), a0, s12);
            s12 = fma(vec4<f32>(subgroupBroadcast(d1, 4u)), a1, s12);
            s12 = fma(vec4<f32>(subgroupBroadcast(d2, 4u)), a2, s12);
            s12 = fma(vec4<f32>(subgroupBroadcast(d3, 4u)), a3, s12);
            s13 = fma(vec4<f32>(subgroupBroadcast(d0, 5u)), a0, s13);
            s13 = fma(vec4<f32>(subgroupBroadcast(d1, 5u)), a1, s13);
            s13 = fma(vec4<f32>(subgroupBroadcast(d2, 5u)), a2, s13);
            s13 = fma(vec4<f32>(subgroupBroadcast(d3, 5u)), a3, s13);
            s14 = fma(vec4<f32>(subgroupBroadcast(d0, 6u)), a0, s14);
            s14 = fma(vec4<f32>(subgroupBroadcast(d1, 6u)), a1, s14);
            s14 = fma(vec4<f32>(subgroupBroadcast(d2, 6u)), a2, s14);
            s14 = fma(vec4<f32>(subgroupBroadcast(d3, 6u)), a3, s14);
            s15 = fma(vec4<f32>(subgroupBroadcast(d0, 7u)), a0, s15);
            s15 = fma(vec4<f32>(subgroupBroadcast(d1, 7u)), a1, s15);
            s15 = fma(vec4<f32>(subgroupBroadcast(d2, 7u)), a2, s15);
            s15 = fma(vec4<f32>(subgroupBroadcast(d3, 7u)), a3, s15);
        }
        for (var r = whole; r < end; r++) {
            let a0 = load(r, origin);
            let b0 = b[r * params.b_stride + params.b_first + n0];
            let d0 = b[r * params.b_stride + params.b_first + n8];
            s0 = fma(vec4<f32>(subgroupBroadcast(b0, 0u)), a0, s0);
            s1 = fma(vec4<f32>(subgroupBroadcast(b0, 1u)), a0, s1);
            s2 = fma(vec4<f32>(subgroupBroadcast(b0, 2u)), a0, s2);
            s3 = fma(vec4<f32>(subgroupBroadcast(b0, 3u)), a0, s3);
            s4 = fma(vec4<f32>(subgroupBroadcast(b0, 4u)), a0, s4);
            s5 = fma(vec4<f32>(subgroupBroadcast(b0, 5u)), a0, s5);
            s6 = fma(vec4<f32>(subgroupBroadcast(b0, 6u)), a0, s6);
            s7 = fma(vec4<f32>(subgroupBroadcast(b0, 7u)), a0, s7);
            s8 = fma(vec4<f32>(subgroupBroadcast(d0, 0u)), a0, s8);
            s9 = fma(vec4<f32>(subgroupBroadcast(d0, 1u)), a0, s9);
            s10 = fma(vec4<f32>(subgroupBroadcast(d0, 2u)), a0, s10);
            s11 = fma(vec4<f32>(subgroupBroadcast(d0, 3u)), a0, s11);
            s12 = fma(vec4<f32>(subgroupBroadcast(d0, 4u)), a0, s12);
            s13 = fma(vec4<f32>(subgroupBroadcast(d0, 5u)), a0, s13);
            s14 = fma(vec4<f32>(subgroupBroadcast(d0, 6u)), a0, s14);
            s15 = fma(vec4<f32>(subgroupBroadcast(d0, 7u)), a0, s15);
        }
        t0 += s0;
        t1 += s1;
        t2 += s2;
        t3 += s3;
        t4 += s4;
        t5 += s5;
        t6 += s6;
        t7 += s7;
        t8 += s8;
        t9 += s9;
        t10 += s10;
        t11 += s11;
        t12 += s12;
        t13 += s13;
        t14 += s14;
        t15 += s15;
    }
    for (var j = 0u; j < 16u; j++) {
        for (var g = 0u; g < 4u; g++) {
            keep(row + g, column + j, t0.x);
            t0 = t0.yzwx;
        }
        t0 = t1;
        t1 = t2;
        t2 = t3;
        t3 = t4;
        t4 = t5;
        t5 = t6;
        t6 = t7;
        t7 = t8;
        t8 = t9;
        t9 = t10;
        t10 = t11;
        t11 = t12;
        t12 = t13;
        t13 = t14;
        t14 = t15;
    }
}
