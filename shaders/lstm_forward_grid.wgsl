// `lstm_forward_sequence` by a grid: the units of a tile of sequences lie in several workgroups, which keep their rows of U in
// registers (16 of one unit a thread, for padded R <= 16 SLICES) for all steps of a dispatch, pass h through `exchange`
// and meet at each step. U is packed as there.
//   main:   grid = directions · sequence blocks · unit blocks
//   resume: what is left where workgroups did not meet, in the same order; grid = directions · sequence blocks
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows
// #import lstm_forward_cell
// #import meeting
// #import lstm_grid

override QUADS: u32 = 4u * SLICES;

@group(0) @binding(2) var<storage, read_write> exchange: array<atomic<u32>>; // [2, D, B, quads] of four numbers

var<workgroup> hs: array<vec4<f32>, PASS * QUADS>;
var<workgroup> sums: array<vec4<f32>, SLICES * PASS * UNITS>;
var<workgroup> parts: array<vec4<f32>, PARTS * PASS * UNITS>;

// What a workgroup computes.
struct Tile {
    number: u32,
    b: u32,     // its first sequence
    d: u32,     // its direction
    steps: u32, // how many steps of this dispatch its longest sequence has
}

fn tile_of(number: u32) -> Tile {
    let b = (number % params.row_blocks) * ROWS;
    let d = number / params.row_blocks;
    let longest = select(0u, table[params.lengths + min(b, params.sequences - 1u)], d < params.directions);
    return Tile(number, b, d, max(min(params.step_end, longest), params.step) - params.step);
}

fn rows_of(t: Tile, thread: Thread, block: u32) -> Rows {
    // What is past R meets zeros.
    let first = weights_of(t.d) + min(block * UNITS + thread.lane, params.hidden - 1u);
    return rows_from(first, params.hidden, 4u * params.quads - 1u, thread);
}

fn multiply(h: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(h.w), w3, fma(vec4<f32>(h.z), w2, fma(vec4<f32>(h.y), w1, fma(vec4<f32>(h.x), w0, sum))));
}

// Where h of one sequence begins in the slot that step `step` reads.
fn state_of(step: u32, d: u32, b: u32) -> u32 {
    return ((step % 2u * params.directions + d) * params.sequences + b) * params.quads * 4u;
}

// Brings h of PASS sequences.
fn load(t: Tile, thread: Thread, first: u32, step: u32) {
    for (var i = thread.number; i < PASS * QUADS; i += UNITS * SLICES) {
        let q = i % QUADS;
        var h = vec4<f32>(0.0);
        if (q < params.quads) {
            // Sequences past the end repeat the last one; they are not stored.
            let at = state_of(step, t.d, min(t.b + first + i / QUADS, params.sequences - 1u)) + 4u * q;
            h = bitcast<vec4<f32>>(vec4<u32>(
                atomicLoad(&exchange[at]),
                atomicLoad(&exchange[at + 1u]),
                atomicLoad(&exchange[at + 2u]),
                atomicLoad(&exchange[at + 3u]),
            ));
        }
        hs[i] = h;
    }
}

// One step of PASS sequences of one block of units.
fn run(t: Tile, thread: Thread, w: Rows, block: u32, first: u32, step: u32) {
    for (var row = 0u; row < PASS; row++) {
        let h = row * QUADS + 4u * thread.slice;
        var sum = multiply(hs[h], w.w0, w.w1, w.w2, w.w3, vec4<f32>(0.0));
        sum = multiply(hs[h + 1u], w.w4, w.w5, w.w6, w.w7, sum);
        sum = multiply(hs[h + 2u], w.w8, w.w9, w.w10, w.w11, sum);
        sum = multiply(hs[h + 3u], w.w12, w.w13, w.w14, w.w15, sum);
        sums[(thread.slice * PASS + row) * UNITS + thread.lane] = sum;
    }
    workgroupBarrier();
    let here = PASS * UNITS;
    for (var i = thread.number; i < PARTS * here; i += UNITS * SLICES) {
        let slice = i / here * 8u;
        var sum = sums[slice * here + i % here];
        for (var s = slice + 1u; s < min(slice + 8u, SLICES); s++) {
            sum += sums[s * here + i % here];
        }
        parts[i] = sum;
    }
    workgroupBarrier();
    for (var i = thread.number; i < here; i += UNITS * SLICES) {
        var sum = parts[i];
        for (var part = 1u; part < PARTS; part++) {
            sum += parts[part * here + i];
        }
        let b = t.b + first + i / UNITS;
        let unit = block * UNITS + i % UNITS;
        let next = finish(b, t.d, unit, step, sum);
        if (next.goes_on) {
            atomicStore(&exchange[state_of(step + 1u, t.d, b) + unit], bitcast<u32>(next.h));
        }
    }
}

// Whether a sequence of the pass has the step.
fn runs(t: Tile, first: u32, step: u32) -> bool {
    let b = t.b + first;
    return b < params.sequences && table[params.lengths + min(b, params.sequences - 1u)] > step;
}

// The same of all sequences of the tile that have the step.
fn run_all(t: Tile, thread: Thread, w: Rows, block: u32, step: u32) {
    for (var first = 0u; first < ROWS; first += PASS) {
        if (runs(t, first, step)) {
            load(t, thread, first, step);
            workgroupBarrier();
            run(t, thread, w, block, first, step);
        }
    }
}

@compute @workgroup_size(UNITS, SLICES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let group = linear_workgroup(workgroup, count);
    let t = tile_of(group / params.unit_blocks);
    let block = group % params.unit_blocks;
    let thread = thread_of(local);
    if (t.steps == 0u) {
        return;
    }
    let w = rows_of(t, thread, block);
    for (var n = 0u; n < t.steps; n++) {
        run_all(t, thread, w, block, params.step + n);
        if (!meet_tile(t.number, block, n + 1u, n + 1u, n + 1u == t.steps, thread)) {
            return;
        }
    }
}

@compute @workgroup_size(UNITS, SLICES)
fn resume(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let t = tile_of(linear_workgroup(workgroup, count));
    let thread = thread_of(local);
    if (t.steps == 0u) {
        return;
    }
    if (thread.number == 0u) {
        together = t.steps;
        if (has_left(t.number)) {
            together = fewest_done(t.number);
            atomicAdd(&stalls[0], 1u);
        }
    }
    for (var n = workgroupUniformLoad(&together); n < t.steps; n++) {
        for (var block = 0u; block < params.unit_blocks; block++) {
            if (thread.number == 0u) {
                together = atomicLoad(&meeting[done_at(t.number, block)]);
            }
            // One that was a step ahead has written its part of this one.
            if (workgroupUniformLoad(&together) > n) {
                continue;
            }
            run_all(t, thread, rows_of(t, thread, block), block, params.step + n);
        }
        storageBarrier();
        workgroupBarrier();
    }
}
