// C [m, n] = Aᵀ B summed over rows of A [rows, m] and B [rows, n]: the rows of each chunk of 64 timesteps first, then
// the chunks, last first, so that the sum does not depend on how it is cut into runs. Tiles are those of
// `common/product_tile`.
//   main:      grid = row tiles · column tiles
//   partial:   where these are few: the rows of a chunk are shared by `parts` workgroups, whose sums wait in `partials`;
//              grid = row tiles · column tiles · parts · chunks of this dispatch
//   add_parts: the parts of each chunk in their order, then the chunks; one thread an element, grid = m · n / 256
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
    parts: u32,         // workgroups that share the rows of a chunk
    chunk_start: u32,   // chunks chunk_start .. chunk_end are this dispatch's
    chunk_end: u32,
}

const CHUNK: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>; // the piece's rows
@group(0) @binding(2) var<storage, read> b: array<f32>; // the piece's rows
@group(0) @binding(3) var<storage, read> table: array<u32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;
@group(0) @binding(5) var<storage, read_write> partials: array<f32>; // [chunks of a dispatch, parts, m, n]

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

// What a thread computes and brings.
struct Place {
    row: u32,    // the tile's first row of C
    column: u32, // and its first column
    local: vec2<u32>,
    thread: u32,
}

// Rows of the piece.
struct Rows {
    start: u32,
    end: u32,
}

// The piece's rows of a chunk; none where it has none.
fn rows_of(chunk: u32) -> Rows {
    var start = params.row_start;
    var end = params.row_end;
    if (params.steps > 0u) {
        start = max(start, table[params.table + chunk * CHUNK]);
        end = min(end, table[params.table + min((chunk + 1u) * CHUNK, params.steps)]);
    }
    end = max(start, end);
    return Rows(start - params.row_start, end - params.row_start);
}

// This thread's elements of the sum over some rows.
fn sum_over(p: Place, rows: Rows) -> Sums {
    let down = tile_rows() / 4u;
    let across = tile_columns() / 4u;
    let brings_a = p.thread < DEPTH * down;
    let brings_b = p.thread < DEPTH * across;
    let depth_a = p.thread / down;
    let depth_b = p.thread / across;
    let column_a = p.row + 4u * (p.thread % down);
    let column_b = p.column + 4u * (p.thread % across);
    var s = Sums();
    if (brings_a) {
        a_tile[p.thread] = fetch_a(rows.start + depth_a, rows.end, column_a);
    }
    if (brings_b) {
        b_tile[p.thread] = fetch_b(rows.start + depth_b, rows.end, column_b);
    }
    workgroupBarrier();
    let tiles = (rows.end - rows.start + DEPTH - 1u) / DEPTH;
    for (var tile = 0u; tile < tiles; tile++) {
        let half = tile % 2u;
        // The next tile is on its way while this one is multiplied.
        let next = rows.start + (tile + 1u) * DEPTH;
        var next_a = vec4<f32>(0.0);
        var next_b = vec4<f32>(0.0);
        if (tile + 1u < tiles) {
            if (brings_a) {
                next_a = fetch_a(next + depth_a, rows.end, column_a);
            }
            if (brings_b) {
                next_b = fetch_b(next + depth_b, rows.end, column_b);
            }
        }
        for (var k = 0u; k < DEPTH; k++) {
            let x = a_tile[(half * DEPTH + k) * down + p.local.y];
            let w = b_tile[(half * DEPTH + k) * across + p.local.x];
            var v = vec4<f32>(0.0);
            s.s0 = fma(vec4<f32>(x.x), w, s.s0);
            s.s1 = fma(vec4<f32>(x.y), w, s.s1);
            s.s2 = fma(vec4<f32>(x.z), w, s.s2);
            s.s3 = fma(vec4<f32>(x.w), w, s.s3);
            if (WIDE) {
                v = b_tile[(half * DEPTH + k) * across + 16u + p.local.x];
                s.t0 = fma(vec4<f32>(x.x), v, s.t0);
                s.t1 = fma(vec4<f32>(x.y), v, s.t1);
                s.t2 = fma(vec4<f32>(x.z), v, s.t2);
                s.t3 = fma(vec4<f32>(x.w), v, s.t3);
            }
            if (ROWS > 4u) {
                let y = a_tile[(half * DEPTH + k) * down + 16u + p.local.y];
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
            a_tile[(1u - half) * DEPTH * down + p.thread] = next_a;
        }
        if (brings_b) {
            b_tile[(1u - half) * DEPTH * across + p.thread] = next_b;
        }
        workgroupBarrier();
    }
    return s;
}

// The sums of the next row in place of those of the first.
fn moved_up(s: Sums) -> Sums {
    return Sums(s.s1, s.s2, s.s3, s.s4, s.s5, s.s6, s.s7, s.s7, s.t1, s.t2, s.t3, s.t4, s.t5, s.t6, s.t7, s.t7);
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
    var adds = params.accumulate != 0u;
    let chunks = select((params.steps + CHUNK - 1u) / CHUNK, 1u, params.steps == 0u);
    for (var i = 0u; i < chunks; i++) {
        let rows = rows_of(chunks - 1u - i);
        if (rows.start >= rows.end) {
            continue;
        }
        var s = sum_over(Place(row, column, local.xy, thread), rows);
        for (var r = 0u; r < ROWS; r++) {
            let at = row + row_in_tile(local.y, r);
            store(at, column + 4u * local.x, s.s0, adds);
            if (WIDE) {
                store(at, column + 64u + 4u * local.x, s.t0, adds);
            }
            s = moved_up(s);
        }
        adds = true;
    }
}

// Four columns of one row of a part's sum.
fn put(part: u32, row: u32, column: u32, value: vec4<f32>) {
    if (row >= params.m) {
        return;
    }
    for (var i = 0u; i < min(4u, max(params.n, column) - column); i++) {
        partials[(part * params.m + row) * params.n + column + i] = value[i];
    }
}

@compute @workgroup_size(16, 16)
fn partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let all = params.blocks * ((params.m + tile_rows() - 1u) / tile_rows());
    let row = group % all / params.blocks * tile_rows();
    let column = group % all % params.blocks * tile_columns();
    let part = group / all;
    let chunk = params.chunk_start + part / params.parts;
    if (chunk >= params.chunk_end) {
        return;
    }
    let rows = rows_of(chunk);
    // Whole tiles of rows, as many to each part.
    let share = ((rows.end - rows.start + params.parts - 1u) / params.parts + DEPTH - 1u) / DEPTH * DEPTH;
    let start = min(rows.start + part % params.parts * share, rows.end);
    var s = Sums();
    if (start < rows.end) {
        s = sum_over(Place(row, column, local.xy, thread), Rows(start, min(start + share, rows.end)));
    }
    for (var r = 0u; r < ROWS; r++) {
        let at = row + row_in_tile(local.y, r);
        put(part, at, column + 4u * local.x, s.s0);
        if (WIDE) {
            put(part, at, column + 64u + 4u * local.x, s.t0);
        }
        s = moved_up(s);
    }
}

@compute @workgroup_size(256)
fn add_parts(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    if (i >= params.m * params.n) {
        return;
    }
    let at = address(i / params.n) + i % params.n;
    var total = 0.0;
    if (params.accumulate != 0u) {
        total = c[at];
    }
    for (var chunk = params.chunk_end - params.chunk_start; chunk > 0u; chunk--) {
        var sum = 0.0;
        for (var part = 0u; part < params.parts; part++) {
            sum += partials[((chunk - 1u) * params.parts + part) * params.m * params.n + i];
        }
        total += sum;
    }
    c[at] = total;
}
