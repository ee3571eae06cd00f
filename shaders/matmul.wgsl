// C [rows, columns] = A [rows, inner] · B [inner, columns] (+ bias [columns]), B's rows padded to multiples of four.
// Each element is one chain of multiply-adds over the inner dimension, whatever the tile. Grid = row tiles · column tiles.
// #import grid
// #import weights
// #import math
// #import epilogue
// #import matmul_store
// #import product_tile

// Whether rows of A are whole quads.
override A_QUADS: bool = false;

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;

// [half][quad of the inner dimension][row] and [half][inner][quad of columns].
var<workgroup> a_tile: array<vec4<f32>, 2u * 16u * ROWS * 2u>;
var<workgroup> b_tile: array<vec4<f32>, 2u * 8u * select(16u, 32u, WIDE)>;

// Four elements of A that thread `i` brings of the columns from `k` on. What is past the inner dimension must not count: it is
// zero in both operands. Loads are of quads, for a load of a value touches as many lines of a cache as one of four.
fn fetch_a(first_row: u32, k: u32, i: u32) -> vec4<f32> {
    // Rows past the end repeat the last one; they are not stored.
    let row = min(first_row + i / 2u, params.rows - 1u);
    let at = k + (i % 2u) * 4u;
    if (A_QUADS) {
        let x = a[(row * params.a_stride + min(at, params.inner - 4u)) / 4u];
        return select(vec4<f32>(0.0), x, at < params.inner);
    }
    let first = row * params.a_stride + at;
    let last = (params.rows * params.a_stride - 1u) / 4u;
    let p = a[min(first / 4u, last)];
    let q = a[min(first / 4u + 1u, last)];
    let x01 = select(p, vec4<f32>(p.yzw, q.x), first % 4u == 1u);
    let x23 = select(vec4<f32>(p.zw, q.xy), vec4<f32>(p.w, q.xyz), first % 4u == 3u);
    let x = select(x01, x23, first % 4u >= 2u);
    return select(vec4<f32>(0.0), x, vec4<u32>(at, at + 1u, at + 2u, at + 3u) < vec4<u32>(params.inner));
}

fn fetch_b(first_quad: u32, k: u32, i: u32) -> vec4<f32> {
    let quads = (params.columns + 3u) / 4u;
    let across = tile_columns() / 4u;
    let row = k + i / across;
    let w = four(b[min(row, params.inner - 1u) * quads + min(first_quad + i % across, quads - 1u)]);
    return select(vec4<f32>(0.0), w, row < params.inner);
}

fn multiply(x: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(x.w), w3, fma(vec4<f32>(x.z), w2, fma(vec4<f32>(x.y), w1, fma(vec4<f32>(x.x), w0, sum))));
}

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let row = group / params.column_blocks * tile_rows();
    let column = group % params.column_blocks * tile_columns();
    if (row >= params.rows) {
        return;
    }
    let left = bias_of(column + 4u * local.x);
    let right = bias_of(column + 64u + 4u * local.x);
    var c = Sums(left, left, left, left, left, left, left, left, right, right, right, right, right, right, right, right);
    let across = tile_columns() / 4u;
    let brings_a = thread < 2u * tile_rows();
    let a_place = thread % 2u * tile_rows() + thread / 2u;
    let brings_b = thread < DEPTH * across;
    if (brings_a) {
        a_tile[a_place] = fetch_a(row, 0u, thread);
    }
    if (brings_b) {
        b_tile[thread] = fetch_b(column / 4u, 0u, thread);
    }
    workgroupBarrier();
    let tiles = (params.inner + DEPTH - 1u) / DEPTH;
    for (var tile = 0u; tile < tiles; tile++) {
        let half = tile % 2u;
        let next = (tile + 1u) * DEPTH;
        // The next tile is on its way while this one is multiplied.
        var next_a = vec4<f32>(0.0);
        var next_b = vec4<f32>(0.0);
        if (tile + 1u < tiles) {
            if (brings_a) {
                next_a = fetch_a(row, next, thread);
            }
            if (brings_b) {
                next_b = fetch_b(column / 4u, next, thread);
            }
        }
        for (var q = 0u; q < 2u; q++) {
            let w = (half * DEPTH + 4u * q) * across + local.x;
            let w0 = b_tile[w];
            let w1 = b_tile[w + across];
            let w2 = b_tile[w + 2u * across];
            let w3 = b_tile[w + 3u * across];
            let at = (half * 2u + q) * tile_rows() + 4u * local.y;
            let x0 = a_tile[at];
            let x1 = a_tile[at + 1u];
            let x2 = a_tile[at + 2u];
            let x3 = a_tile[at + 3u];
            c.s0 = multiply(x0, w0, w1, w2, w3, c.s0);
            c.s1 = multiply(x1, w0, w1, w2, w3, c.s1);
            c.s2 = multiply(x2, w0, w1, w2, w3, c.s2);
            c.s3 = multiply(x3, w0, w1, w2, w3, c.s3);
            var v0 = vec4<f32>(0.0);
            var v1 = vec4<f32>(0.0);
            var v2 = vec4<f32>(0.0);
            var v3 = vec4<f32>(0.0);
            if (WIDE) {
                v0 = b_tile[w + 16u];
                v1 = b_tile[w + 16u + across];
                v2 = b_tile[w + 16u + 2u * across];
                v3 = b_tile[w + 16u + 3u * across];
                c.t0 = multiply(x0, v0, v1, v2, v3, c.t0);
                c.t1 = multiply(x1, v0, v1, v2, v3, c.t1);
                c.t2 = multiply(x2, v0, v1, v2, v3, c.t2);
                c.t3 = multiply(x3, v0, v1, v2, v3, c.t3);
            }
            if (ROWS > 4u) {
                let x4 = a_tile[at + 64u];
                let x5 = a_tile[at + 65u];
                let x6 = a_tile[at + 66u];
                let x7 = a_tile[at + 67u];
                c.s4 = multiply(x4, w0, w1, w2, w3, c.s4);
                c.s5 = multiply(x5, w0, w1, w2, w3, c.s5);
                c.s6 = multiply(x6, w0, w1, w2, w3, c.s6);
                c.s7 = multiply(x7, w0, w1, w2, w3, c.s7);
                if (WIDE) {
                    c.t4 = multiply(x4, v0, v1, v2, v3, c.t4);
                    c.t5 = multiply(x5, v0, v1, v2, v3, c.t5);
                    c.t6 = multiply(x6, v0, v1, v2, v3, c.t6);
                    c.t7 = multiply(x7, v0, v1, v2, v3, c.t7);
                }
            }
        }
        if (brings_a) {
            a_tile[(1u - half) * 2u * tile_rows() + a_place] = next_a;
        }
        if (brings_b) {
            b_tile[(1u - half) * DEPTH * across + thread] = next_b;
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < ROWS; r++) {
        let at = row + row_in_tile(local.y, r);
        store(at, column + 4u * local.x, c.s0);
        if (WIDE) {
            store(at, column + 64u + 4u * local.x, c.t0);
        }
        c = Sums(c.s1, c.s2, c.s3, c.s4, c.s5, c.s6, c.s7, c.s7, c.t1, c.t2, c.t3, c.t4, c.t5, c.t6, c.t7, c.t7);
    }
}
