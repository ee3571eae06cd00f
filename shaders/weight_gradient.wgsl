// C [m, n] = Aᵀ B summed over rows of A [rows, m] and B [rows, n]: the rows of each chunk of 64 timesteps first, then
// the chunks, last first, so that the sum does not depend on how it is cut into runs. Tiles are those of
// `common/product_tile`.
//   main:      grid = row tiles · column tiles
//   partial:   where these are few: the rows of a chunk are shared by `parts` workgroups, whose sums wait in `partials`;
//              grid = row tiles · column tiles · parts · chunks of this dispatch
//   add_parts: the parts of each chunk in their order, then the chunks; one thread an element, grid = m · n / 256
// #import grid
// #import product_tile
// #import weight_gradient_rows
// #import weight_gradient_operands

// [half][row of A and B][quad of their columns].
var<workgroup> a_tile: array<vec4<f32>, 2u * 8u * 4u * ROWS>;
var<workgroup> b_tile: array<vec4<f32>, 2u * 8u * select(16u, 32u, WIDE)>;

// What a thread computes and brings.
struct Place {
    row: u32,    // the tile's first row of C
    column: u32, // and its first column
    local: vec2<u32>,
    thread: u32,
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
        a_tile[p.thread] = four_of_a(rows.start + depth_a, rows.end, column_a);
    }
    if (brings_b) {
        b_tile[p.thread] = four_of_b(rows.start + depth_b, rows.end, column_b);
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
                next_a = four_of_a(next + depth_a, rows.end, column_a);
            }
            if (brings_b) {
                next_b = four_of_b(next + depth_b, rows.end, column_b);
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
