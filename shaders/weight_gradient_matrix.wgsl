// `weight_gradient` by matrix units.
//   main:    grid = row tiles · column tiles
//   partial: the rows of a chunk are shared by `parts` workgroups; grid = row tiles · column tiles · parts · chunks
// #import grid
// #import matrix_tile
// #import weight_gradient_rows
// #import weight_gradient_operands

const SLICES: u32 = 1u;
const A_ACROSS: u32 = TILE;
const B_ACROSS: u32 = TILE;

fn fetch_a(p: Place, first: u32, end: u32, line: u32, across: u32) -> vec4<f32> {
    return four_of_a(first + line, end, p.row + across);
}

fn fetch_b(p: Place, first: u32, end: u32, line: u32, across: u32) -> vec4<f32> {
    return four_of_b(first + line, end, p.column + across);
}

@compute @workgroup_size(THREADS)
fn main(here: Here) {
    let group = linear_workgroup(here.workgroup, here.count);
    let p = Place(group / params.blocks * TILE, group % params.blocks * TILE, 0u, here);
    if (p.row >= params.m) {
        return;
    }
    var adds = params.accumulate != 0u;
    let chunks = select((params.steps + CHUNK - 1u) / CHUNK, 1u, params.steps == 0u);
    for (var n = 0u; n < chunks; n++) {
        let rows = rows_of(chunks - 1u - n);
        if (rows.start >= rows.end) {
            continue;
        }
        multiply_tile(p, rows.start, rows.end);
        for (var i = here.thread; i < TILE * TILE / 4u; i += THREADS) {
            let at = i % (TILE / 4u) * 4u;
            store(p.row + i / (TILE / 4u), p.column + at, sum_of(i / (TILE / 4u), at), adds);
        }
        workgroupBarrier();
        adds = true;
    }
}

@compute @workgroup_size(THREADS)
fn partial(here: Here) {
    let group = linear_workgroup(here.workgroup, here.count);
    let all = params.blocks * ((params.m + TILE - 1u) / TILE);
    let tile = group % all;
    let p = Place(tile / params.blocks * TILE, tile % params.blocks * TILE, 0u, here);
    let part = group / all;
    let chunk = params.chunk_start + part / params.parts;
    if (chunk >= params.chunk_end) {
        return;
    }
    let rows = rows_of(chunk);
    // Whole tiles of rows, as many to each part.
    let share = ((rows.end - rows.start + params.parts - 1u) / params.parts + DEPTH - 1u) / DEPTH * DEPTH;
    let start = min(rows.start + part % params.parts * share, rows.end);
    // A part without rows is a sum of none.
    multiply_tile(p, start, min(start + share, rows.end));
    for (var i = here.thread; i < TILE * TILE / 4u; i += THREADS) {
        let at = i % (TILE / 4u) * 4u;
        put(part, p.row + i / (TILE / 4u), p.column + at, sum_of(i / (TILE / 4u), at));
    }
}
