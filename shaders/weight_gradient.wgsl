// C [m, n] = Aᵀ B summed over rows of A [rows, m] and B [rows, n]: the rows of each chunk of 64 timesteps first, then
// the chunks, last first, so that the sum does not depend on how it is cut into runs.
// One thread computes 8 rows of 4 columns of C. Grid = row blocks · column blocks, 64 threads across columns.
// #import grid

struct Params {
    m: u32,
    n: u32,
    row_start: u32,     // the piece holds rows row_start .. row_end of all
    row_end: u32,
    steps: u32,         // T; 0 where the rows are no time axis, and so one chunk
    table: u32,         // where the axis's first rows of each step begin in `table`
    blocks: u32, // workgroups across columns of C
    units: u32,         // H where A holds gates unit by unit: row 4u+g of C is stored as g·H+u; else 0
    accumulate: u32,    // whether C holds the sum of later pieces
    a_stride: u32,      // values from one row of A to the next
    a_first: u32,       // where the columns of A that count begin
    b_stride: u32,      // the same of B
    b_first: u32,
}

const CHUNK: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>; // the piece's rows
@group(0) @binding(2) var<storage, read> b: array<f32>; // the piece's rows
@group(0) @binding(3) var<storage, read> table: array<u32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

struct Tile {
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
    s3: vec4<f32>,
    s4: vec4<f32>,
    s5: vec4<f32>,
    s6: vec4<f32>,
    s7: vec4<f32>,
}

fn address(row: u32) -> u32 {
    let stored = select(row, (row & 3u) * params.units + (row >> 2u), params.units > 0u);
    return stored * params.n;
}

fn load(row: u32, column: u32) -> vec4<f32> {
    if (row >= params.m) {
        return vec4<f32>(0.0);
    }
    let at = address(row) + column;
    let last = address(row) + params.n - 1u;
    return vec4<f32>(c[at], c[min(at + 1u, last)], c[min(at + 2u, last)], c[min(at + 3u, last)]);
}

fn store(row: u32, column: u32, value: vec4<f32>) {
    if (row >= params.m) {
        return;
    }
    let at = address(row) + column;
    c[at] = value.x;
    if (column + 1u < params.n) {
        c[at + 1u] = value.y;
    }
    if (column + 2u < params.n) {
        c[at + 2u] = value.z;
    }
    if (column + 3u < params.n) {
        c[at + 3u] = value.w;
    }
}

// The sum over rows start .. end of the piece.
fn chunk_sum(start: u32, end: u32, row: u32, column: u32) -> Tile {
    var t = Tile();
    let m = params.m - 1u;
    let n = params.n - 1u;
    let o = array<u32, 8>(row, min(row + 1u, m), min(row + 2u, m), min(row + 3u, m), min(row + 4u, m), min(row + 5u, m), min(row + 6u, m), min(row + 7u, m));
    let p = vec4<u32>(column, min(column + 1u, n), min(column + 2u, n), min(column + 3u, n));
    for (var r = start; r < end; r++) {
        let at = r * params.b_stride + params.b_first;
        let x = vec4<f32>(b[at + p.x], b[at + p.y], b[at + p.z], b[at + p.w]);
        let row_a = r * params.a_stride + params.a_first;
        t.s0 = fma(vec4<f32>(a[row_a + o[0]]), x, t.s0);
        t.s1 = fma(vec4<f32>(a[row_a + o[1]]), x, t.s1);
        t.s2 = fma(vec4<f32>(a[row_a + o[2]]), x, t.s2);
        t.s3 = fma(vec4<f32>(a[row_a + o[3]]), x, t.s3);
        t.s4 = fma(vec4<f32>(a[row_a + o[4]]), x, t.s4);
        t.s5 = fma(vec4<f32>(a[row_a + o[5]]), x, t.s5);
        t.s6 = fma(vec4<f32>(a[row_a + o[6]]), x, t.s6);
        t.s7 = fma(vec4<f32>(a[row_a + o[7]]), x, t.s7);
    }
    return t;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let row = (group / params.blocks) * 8u;
    let column = ((group % params.blocks) * 64u + local) * 4u;
    if (row >= params.m || column >= params.n) {
        return;
    }
    var total = Tile();
    if (params.accumulate != 0u) {
        total = Tile(
            load(row, column), load(row + 1u, column), load(row + 2u, column), load(row + 3u, column),
            load(row + 4u, column), load(row + 5u, column), load(row + 6u, column), load(row + 7u, column),
        );
    }
    let chunks = select((params.steps + CHUNK - 1u) / CHUNK, 1u, params.steps == 0u);
    for (var i = 0u; i < chunks; i++) {
        var start = params.row_start;
        var end = params.row_end;
        if (params.steps > 0u) {
            let chunk = chunks - 1u - i;
            start = max(start, table[params.table + chunk * CHUNK]);
            end = min(end, table[params.table + min((chunk + 1u) * CHUNK, params.steps)]);
        }
        if (start < end) {
            let part = chunk_sum(start - params.row_start, end - params.row_start, row, column);
            total.s0 += part.s0;
            total.s1 += part.s1;
            total.s2 += part.s2;
            total.s3 += part.s3;
            total.s4 += part.s4;
            total.s5 += part.s5;
            total.s6 += part.s6;
            total.s7 += part.s7;
        }
    }
    store(row, column, total.s0);
    store(row + 1u, column, total.s1);
    store(row + 2u, column, total.s2);
    store(row + 3u, column, total.s3);
    store(row + 4u, column, total.s4);
    store(row + 5u, column, total.s5);
    store(row + 6u, column, total.s6);
    store(row + 7u, column, total.s7);
}
