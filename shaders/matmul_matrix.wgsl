// C [rows, columns] = A [rows, inner] · B [inner, columns] (+ bias [columns]) by matrix units, B's rows padded to multiples of
// four. Grid = row tiles · column tiles.
// #import grid
// #import weights
// #import math
// #import epilogue
// #import matmul_store
// #import matrix_tile

@group(0) @binding(1) var<storage, read> a: array<f32>;

const SLICES: u32 = 1u;
const A_ACROSS: u32 = DEPTH;
const B_ACROSS: u32 = TILE;

fn a_element(at: u32, k: u32, end: u32) -> f32 {
    return select(0.0, a[at + min(k, end - 1u)], k < end);
}

fn fetch_a(p: Place, first: u32, end: u32, line: u32, across: u32) -> vec4<f32> {
    // Rows past the end repeat the last one; they are not stored.
    let at = min(p.row + line, params.rows - 1u) * params.a_stride;
    let k = first + across;
    return vec4<f32>(
        a_element(at, k, end),
        a_element(at, k + 1u, end),
        a_element(at, k + 2u, end),
        a_element(at, k + 3u, end),
    );
}

fn fetch_b(p: Place, first: u32, end: u32, line: u32, across: u32) -> vec4<f32> {
    let quads = (params.columns + 3u) / 4u;
    let k = first + line;
    let w = four(b[min(k, end - 1u) * quads + min((p.column + across) / 4u, quads - 1u)]);
    return select(vec4<f32>(0.0), w, k < end);
}

@compute @workgroup_size(THREADS)
fn main(here: Here) {
    let group = linear_workgroup(here.workgroup, here.count);
    let row = group / params.column_blocks * TILE;
    let column = group % params.column_blocks * TILE;
    if (row >= params.rows) {
        return;
    }
    multiply_tile(Place(row, column, 0u, here), 0u, params.inner);
    for (var i = here.thread; i < TILE * TILE / 4u; i += THREADS) {
        let at = i % (TILE / 4u) * 4u;
        store(row + i / (TILE / 4u), column + at, sum_of(i / (TILE / 4u), at) + bias_of(column + at));
    }
}
