// `lstm_backward_sequence` by a grid; see `lstm_forward_grid`. Weights are packed as there: 16 rows of one column a thread, for
// H <= 16 SLICES.
//   main:    grid = directions · sequence blocks · column blocks
//   resume:  what is left where workgroups did not meet, in the same order; grid = directions · sequence blocks
//   initial: the product of the first step's gate gradients with U, and the gradient of h_0; grid as main
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_slopes
// #import lstm_rows
// #import lstm_backward_cell
// #import meeting
// #import lstm_grid

override DEPTH: u32 = 16u * SLICES;

@group(0) @binding(1) var<storage, read> weights: array<Weights>;          // [D, H][R]
@group(0) @binding(2) var<storage, read_write> exchange: array<atomic<u32>>; // [2, D, B, H] of four gradients

var<workgroup> operand: array<vec4<f32>, PASS * DEPTH>;
var<workgroup> sums: array<f32, SLICES * PASS * UNITS>;
var<workgroup> parts: array<f32, PARTS * PASS * UNITS>;

// What a workgroup computes.
struct Tile {
    number: u32,
    b: u32, // its first sequence
    d: u32, // its direction
}

fn tile_of(number: u32) -> Tile {
    return Tile(number, (number % params.row_blocks) * ROWS, number / params.row_blocks);
}

fn rows_of(t: Tile, thread: Thread, block: u32) -> Rows {
    // What is past the last row of weights meets zeros.
    let first = t.d * params.weight_rows * params.columns + min(block * UNITS + thread.lane, params.columns - 1u);
    return rows_from(first, params.columns, params.inner - 1u, thread);
}

// Brings the gate gradients of PASS sequences from the slot that begins at vector `slot`.
fn load(t: Tile, thread: Thread, first: u32, slot: u32) {
    for (var i = thread.number; i < PASS * DEPTH; i += UNITS * SLICES) {
        let k = i % DEPTH;
        var v = vec4<f32>(0.0);
        if (k < params.inner) {
            // Sequences past the end repeat the last one; they are not stored.
            let b = min(t.b + first + i / DEPTH, params.sequences - 1u);
            let at = 4u * (slot + (t.d * params.sequences + b) * params.inner + k);
            v = bitcast<vec4<f32>>(vec4<u32>(
                atomicLoad(&exchange[at]),
                atomicLoad(&exchange[at + 1u]),
                atomicLoad(&exchange[at + 2u]),
                atomicLoad(&exchange[at + 3u]),
            ));
        }
        operand[i] = v;
    }
}

fn total(v: vec4<f32>) -> f32 {
    return v.x + v.y + v.z + v.w;
}

// Leaves the parts of the product of PASS sequences in `parts`.
fn multiply(thread: Thread, w: Rows) {
    for (var row = 0u; row < PASS; row++) {
        let at = row * DEPTH + 16u * thread.slice;
        var sum = fma(operand[at], w.w0, vec4<f32>(0.0));
        sum = fma(operand[at + 1u], w.w1, sum);
        sum = fma(operand[at + 2u], w.w2, sum);
        sum = fma(operand[at + 3u], w.w3, sum);
        sum = fma(operand[at + 4u], w.w4, sum);
        sum = fma(operand[at + 5u], w.w5, sum);
        sum = fma(operand[at + 6u], w.w6, sum);
        sum = fma(operand[at + 7u], w.w7, sum);
        sum = fma(operand[at + 8u], w.w8, sum);
        sum = fma(operand[at + 9u], w.w9, sum);
        sum = fma(operand[at + 10u], w.w10, sum);
        sum = fma(operand[at + 11u], w.w11, sum);
        sum = fma(operand[at + 12u], w.w12, sum);
        sum = fma(operand[at + 13u], w.w13, sum);
        sum = fma(operand[at + 14u], w.w14, sum);
        sum = fma(operand[at + 15u], w.w15, sum);
        sums[(thread.slice * PASS + row) * UNITS + thread.lane] = total(sum);
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
}

// One element of the product, once `multiply` is done.
fn added(i: u32) -> f32 {
    var sum = parts[i];
    for (var part = 1u; part < PARTS; part++) {
        sum += parts[part * PASS * UNITS + i];
    }
    return sum;
}

// Step number `n` back of this dispatch, of PASS sequences of one block of columns.
fn run(t: Tile, thread: Thread, w: Rows, block: u32, first: u32, n: u32) {
    let slots = select(vec2<u32>(params.operand, params.result), vec2<u32>(params.result, params.operand), n % 2u == 1u);
    let step = params.step - n;
    // A sequence whose last step this is has no product; what stands in the slot is not used.
    load(t, thread, first, slots.x);
    workgroupBarrier();
    multiply(thread, w);
    for (var i = thread.number; i < PASS * UNITS; i += UNITS * SLICES) {
        let b = t.b + first + i / UNITS;
        let unit = block * UNITS + i % UNITS;
        let gradient = finish_step(b, t.d, unit, step, added(i));
        if (gradient.is) {
            let at = 4u * (slots.y + (t.d * params.sequences + b) * params.hidden + unit);
            let words = bitcast<vec4<u32>>(gradient.dz);
            atomicStore(&exchange[at], words.x);
            atomicStore(&exchange[at + 1u], words.y);
            atomicStore(&exchange[at + 2u], words.z);
            atomicStore(&exchange[at + 3u], words.w);
        }
    }
}

// The same of all sequences of the tile that have the step.
fn run_all(t: Tile, thread: Thread, w: Rows, block: u32, n: u32) {
    for (var first = 0u; first < ROWS; first += PASS) {
        if (runs(t.b + first, params.step - n)) {
            run(t, thread, w, block, first, n);
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
    if (t.d >= params.directions) {
        return;
    }
    let w = rows_of(t, thread, block);
    // The tile's first sequence is its longest; later steps are not its own.
    let longest = table[params.lengths + min(t.b, params.sequences - 1u)];
    let begin = max(params.step + 1u, longest) - longest;
    for (var n = begin; n < params.steps; n++) {
        run_all(t, thread, w, block, n);
        if (!meet_tile(t.number, block, n + 1u, n + 1u - begin, n + 1u == params.steps, thread)) {
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
    if (t.d >= params.directions) {
        return;
    }
    if (thread.number == 0u) {
        together = params.steps;
        if (has_left(t.number)) {
            together = fewest_done(t.number);
            atomicAdd(&stalls[0], 1u);
        }
    }
    for (var n = workgroupUniformLoad(&together); n < params.steps; n++) {
        for (var block = 0u; block < params.unit_blocks; block++) {
            if (thread.number == 0u) {
                together = atomicLoad(&meeting[done_at(t.number, block)]);
            }
            // One that was a step ahead has written its part of this one.
            if (workgroupUniformLoad(&together) > n) {
                continue;
            }
            run_all(t, thread, rows_of(t, thread, block), block, n);
        }
        storageBarrier();
        workgroupBarrier();
    }
}

@compute @workgroup_size(UNITS, SLICES)
fn initial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let group = linear_workgroup(workgroup, count);
    let t = tile_of(group / params.unit_blocks);
    let block = group % params.unit_blocks;
    let thread = thread_of(local);
    if (t.d >= params.directions) {
        return;
    }
    let w = rows_of(t, thread, block);
    for (var first = 0u; first < ROWS; first += PASS) {
        load(t, thread, first, params.operand);
        workgroupBarrier();
        multiply(thread, w);
        for (var i = thread.number; i < PASS * UNITS; i += UNITS * SLICES) {
            finish_initial(t.b + first + i / UNITS, t.d, block * UNITS + i % UNITS, added(i));
        }
    }
}
