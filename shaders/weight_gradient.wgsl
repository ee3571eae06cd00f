// C [m, n] = Aᵀ B summed over rows of A [rows, m] and B [rows, n]: the rows of each chunk of 64 timesteps first, then
// the chunks, last first, so that the sum does not depend on how it is cut into runs. Tiles are those of
// `common/product_tile`. Grid = row tiles · column tiles.
// #import grid
// #import product_tile

struct Params {
    m: u32,
    n: u32,
    row_start: u32,     // the piece holds rows row_start .. row_end of all
    row_end: u32,
    steps: u32,         // T; 0 where the rows are no time axis, and so one chunk
    table: u32,         // where the axis's first rows of each step begin in `table`
    blocks: u32,        // workgroups across columns of C
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


// [half][row of A and B][quad of their columns].
var<workgroup> a_tile: array<vec4<f32>, 2u * 8u * 4u * ROWS>;
var<workgroup> b_tile: array<vec4<f32>, 2u * 8u * select(16u, 32u, WIDE)>;

fn address(row: u32) -> u32 {
    let stored = select(row, (row & 3u) * params.units + (row >> 2u), params.units > 0u);
    return stored * params.n;
}

// Four columns of one row: a chunk's sum, added to those of later chunks if there are any.
fn store(row: u32, column: u32, value: vec4<f32>, adds: bool) {
    if (row >= params.m) {
        return;
    }
    for (var i = 0u; i < min(4u, max(params.n, column) - column); i++) {
        let at = address(row) + column + i;
        var sum = value[i];
        if (adds) {
            sum += c[at];
        }
        c[at] = sum;
    }
}

// Four columns of row `r` of A, those past the end repeat the last; zeros past the chunk's rows.
fn fetch_a(r: u32, end: u32, column: u32) -> vec4<f32> {
    let at = min(r, end - 1u) * params.a_stride + params.a_first;
    let last = params.m - 1u;
    let x = vec4<f32>(
        a[at + min(column, last)],
        a[at + min(column + 1u, last)],
        a[at + min(column + 2u, last)],
        a[at + min(column + 3u, last)],
    );
    return select(vec4<f32>(0.0), x, r < end);
}

fn fetch_b(r: u32, end: u32, column: u32) -> vec4<f32> {
    let at = min(r, end - 1u) * params.b_stride + params.b_first;
    let last = params.n - 1u;
    let x = vec4<f32>(
        b[at + min(column, last)],
        b[at + min(column + 1u, last)],
        b[at + min(column + 2u, last)],
        b[at + min(column + 3u, last)],
    );
    return select(vec4<f32>(0.0), x, r < end);
}

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let row = group / params.blocks * tile_rows();
    let column = group % params.blocks * tile_columns();
    if (row >= params.m) {
        return;
    }
    let down = tile_rows() / 4u;
    let across = tile_columns() / 4u;
    let brings_a = thread < DEPTH * down;
    let brings_b = thread < DEPTH * across;
    let depth_a = thread / down;
    let depth_b = thread / across;
    let column_a = row + 4u * (thread % down);
    let column_b = column + 4u * (thread % across);
    var adds = params.accumulate != 0u;
    let chunks = select((params.steps + CHUNK - 1u) / CHUNK, 1u, params.steps == 0u);
    for (var i = 0u; i < chunks; i++) {
        var start = params.row_start;
        var end = params.row_end;
        if (params.steps > 0u) {
            let chunk = chunks - 1u - i;
            start = max(start, table[params.table + chunk * CHUNK]);
            end = min(end, table[params.table + min((chunk + 1u) * CHUNK, params.steps)]);
        }
        if (start >= end) {
            continue;
        }
        start -= params.row_start;
        end -= params.row_start;
        var s = Sums();
        if (brings_a) {
            a_tile[thread] = fetch_a(start + depth_a, end, column_a);
        }
        if (brings_b) {
            b_tile[thread] = fetch_b(start + depth_b, end, column_b);
        }
        workgroupBarrier();
        let tiles = (end - start + DEPTH - 1u) / DEPTH;
        for (var tile = 0u; tile < tiles; tile++) {
            let half = tile % 2u;
            // The next tile is on its way while this one is multiplied.
            let next = start + (tile + 1u) * DEPTH;
            var next_a = vec4<f32>(0.0);
            var next_b = vec4<f32>(0.0);
            if (tile + 1u < tiles) {
                if (brings_a) {
                    next_a = fetch_a(next + depth_a, end, column_a);
                }
                if (brings_b) {
                    next_b = fetch_b(next + depth_b, end, column_b);
                }
            }
            for (var k = 0u; k < DEPTH; k++) {
                let x = a_tile[(half * DEPTH + k) * down + local.y];
                let w = b_tile[(half * DEPTH + k) * across + local.x];
                var v = vec4<f32>(0.0);
                s.s0 = fma(vec4<f32>(x.x), w, s.s0);
                s.s1 = fma(vec4<f32>(x.y), w, s.s1);
                s.s2 = fma(vec4<f32>(x.z), w, s.s2);
                s.s3 = fma(vec4<f32>(x.w), w, s.s3);
                if (WIDE) {
                    v = b_tile[(half * DEPTH + k) * across + 16u + local.x];
                    s.t0 = fma(vec4<f32>(x.x), v, s.t0);
                    s.t1 = fma(vec4<f32>(x.y), v, s.t1);
                    s.t2 = fma(vec4<f32>(x.z), v, s.t2);
                    s.t3 = fma(vec4<f32>(x.w), v, s.t3);
                }
                if (ROWS > 4u) {
                    let y = a_tile[(half * DEPTH + k) * down + 16u + local.y];
                    s.s4 = fma(vec4<f32>(y.x), w, s.s4);
                    s.s5 = fma(vec4<f32>(y.y), w, s.s5);
                    s.s6 = fma(vec4<f32>(y.z), w, s.s6);
                    s.s7 = fma(vec4<f32>(y.w), w, s.s7);
                    if (WIDE) {
                        s.t4 = fma(vec4<f32>(y.x), v, s.t4);
                        s.t5 = fma(vec4<f32>(y.y), v, s.t5);
                        s.t6 = fma(vec4<f32>(y.z), v, s.t6);
                        s.t7 = fma(vec4<f32>(y.w), v, s.t7);
                    }
                }
            }
            if (brings_a) {
                a_tile[(1u - half) * DEPTH * down + thread] = next_a;
            }
            if (brings_b) {
                b_tile[(1u - half) * DEPTH * across + thread] = next_b;
            }
            workgroupBarrier();
        }
        for (var r = 0u; r < ROWS; r++) {
            let at = row + row_in_tile(local.y, r);
            store(at, column + 4u * local.x, s.s0, adds);
            if (WIDE) {
                store(at, column + 64u + 4u * local.x, s.t0, adds);
            }
            s = Sums(s.s1, s.s2, s.s3, s.s4, s.s5, s.s6, s.s7, s.s7, s.t1, s.t2, s.t3, s.t4, s.t5, s.t6, s.t7, s.t7);
        }
        adds = true;
    }
}
