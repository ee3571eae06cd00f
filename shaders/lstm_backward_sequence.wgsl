// The gradient of an LSTM layer's recurrence over many steps, back in time, of a tile of sequences and all columns a workgroup;
// tiles are those of `lstm_forward_sequence`. A thread sums one slice of the product of one column of ROWS sequences; weights
// are packed [k][column] of vec4 (i f g o of unit k).
//   main:      the product of the next step's gate gradients with U, what arrives at h, and the gradients of the gates
//   registers: the same with weights in registers, 16 rows of one column a thread, for H <= UNITS and H <= 16 SLICES
//   initial:   the product of the first step's gate gradients with U, and the gradient of h_0; columns over workgroups
// Grid = directions · sequence blocks (· column blocks).
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_slopes
// #import lstm_rows
// #import lstm_backward_cell

override ROWS: u32 = 8u;
override UNITS: u32 = 32u;
override SLICES: u32 = 2u;
// Vectors of the operand of one sequence.
override DEPTH: u32 = 16u;
// Rows of weights that stay in workgroup memory, and how many vectors that makes.
override HELD: u32 = 0u;
override HELD_VALUES: u32 = 1u;

@group(0) @binding(1) var<storage, read> weights: array<Weights>; // [D, weight_rows][columns]

var<workgroup> operand: array<vec4<f32>, 2u * ROWS * DEPTH>;
var<workgroup> sums: array<f32, UNITS * SLICES * ROWS>;
var<workgroup> held: array<Weights, HELD_VALUES>;

// What a workgroup computes.
struct Tile {
    b: u32,     // its first sequence
    d: u32,     // its direction
    steps: u32, // how many steps it goes back through; 0 for a workgroup without work
}

// What a thread computes of it.
struct Thread {
    lane: u32,   // its column within a block of columns
    slice: u32,  // its slice of the product
    number: u32,
}

fn tile_of(block: u32) -> Tile {
    let d = block / params.row_blocks;
    return Tile(block % params.row_blocks * ROWS, d, select(0u, params.steps, d < params.directions));
}

fn thread_of(local: vec3<u32>) -> Thread {
    return Thread(local.x, local.y, local.y * UNITS + local.x);
}

// Brings the operand of the tile's sequences into half `half`.
fn load(t: Tile, thread: Thread, half: u32) {
    for (var i = thread.number; i < ROWS * DEPTH; i += UNITS * SLICES) {
        let k = i % DEPTH;
        // Sequences past the end repeat the last one; they are not stored.
        let b = min(t.b + i / DEPTH, params.sequences - 1u);
        var v = vec4<f32>(0.0);
        if (k < params.inner) {
            v = state[params.operand + (t.d * params.sequences + b) * params.inner + k];
        }
        operand[half * ROWS * DEPTH + i] = v;
    }
}

// Leaves gate gradients in `state` for the dispatch that goes on.
fn store(t: Tile, thread: Thread, half: u32) {
    for (var i = thread.number; i < ROWS * DEPTH; i += UNITS * SLICES) {
        let b = t.b + i / DEPTH;
        if (b < params.sequences && i % DEPTH < params.inner) {
            state[result_of(b, t.d, i % DEPTH)] = operand[half * ROWS * DEPTH + i];
        }
    }
}

// Keeps the first rows of the weights in workgroup memory.
fn hold(t: Tile, thread: Thread) {
    for (var i = thread.number; i < HELD * params.columns; i += UNITS * SLICES) {
        held[i] = weights[t.d * params.weight_rows * params.columns + i];
    }
}

fn total(v: vec4<f32>) -> f32 {
    return v.x + v.y + v.z + v.w;
}

// Leaves this thread's slice of one column's product with half `half` of the operand in `sums`.
fn multiply(t: Tile, thread: Thread, column: u32, half: u32, inner: u32) {
    let share = DEPTH / SLICES;
    let weight = t.d * params.weight_rows * params.columns;
    let base = half * ROWS * DEPTH;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    for (var k = thread.slice * share; k < min((thread.slice + 1u) * share, inner); k++) {
        var w: vec4<f32>;
        if (k < HELD) {
            w = four(held[k * params.columns + column]);
        } else {
            w = four(weights[weight + k * params.columns + column]);
        }
        s0 = fma(operand[base + k], w, s0);
        if (ROWS > 1u) {
            s1 = fma(operand[base + DEPTH + k], w, s1);
        }
        if (ROWS > 2u) {
            s2 = fma(operand[base + 2u * DEPTH + k], w, s2);
            s3 = fma(operand[base + 3u * DEPTH + k], w, s3);
        }
        if (ROWS > 4u) {
            s4 = fma(operand[base + 4u * DEPTH + k], w, s4);
            s5 = fma(operand[base + 5u * DEPTH + k], w, s5);
            s6 = fma(operand[base + 6u * DEPTH + k], w, s6);
            s7 = fma(operand[base + 7u * DEPTH + k], w, s7);
        }
    }
    let at = thread.slice * ROWS * UNITS + thread.lane;
    for (var row = 0u; row < ROWS; row++) {
        sums[at + row * UNITS] = total(s0);
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
    }
}

// One sequence's product of this thread's column: all slices in their order.
fn added(thread: Thread, row: u32) -> f32 {
    var sum = sums[row * UNITS + thread.lane];
    for (var slice = 1u; slice < SLICES; slice++) {
        sum += sums[(slice * ROWS + row) * UNITS + thread.lane];
    }
    return sum;
}

// What this thread's first sequence reads at a step besides its product: on its way while that is made.
fn first_ready(t: Tile, thread: Thread, unit: u32, step: u32) -> Ready {
    if (thread.slice >= ROWS) {
        return Ready();
    }
    return ready_for(t.b + thread.slice, t.d, unit, step);
}

// Finishes this thread's sequences of a step; the gradients go to half `half`.
fn finish_rows(t: Tile, thread: Thread, first: Ready, unit: u32, step: u32, half: u32) {
    var ready = first;
    workgroupBarrier();
    for (var row = thread.slice; row < ROWS; row += SLICES) {
        if (row > thread.slice) {
            ready = ready_for(t.b + row, t.d, unit, step);
        }
        let gradient = finish_from(ready, t.b + row, t.d, unit, step, added(thread, row));
        if (gradient.is) {
            operand[(half * ROWS + row) * DEPTH + unit] = gradient.dz;
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(UNITS, SLICES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let t = tile_of(linear_workgroup(workgroup, count));
    let thread = thread_of(local);
    hold(t, thread);
    load(t, thread, 0u);
    workgroupBarrier();
    for (var n = 0u; n < t.steps; n++) {
        let step = params.step - n;
        // The tile's first sequence is its longest.
        if (runs(t.b, step)) {
            let inner = select(0u, params.inner, runs(t.b, step + params.ahead));
            for (var first = 0u; first < params.columns; first += UNITS) {
                let unit = first + thread.lane;
                let ready = first_ready(t, thread, unit, step);
                multiply(t, thread, min(unit, params.columns - 1u), n % 2u, inner);
                finish_rows(t, thread, ready, unit, step, (n + 1u) % 2u);
            }
        }
    }
    store(t, thread, t.steps % 2u);
}

@compute @workgroup_size(UNITS, SLICES)
fn registers(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let t = tile_of(linear_workgroup(workgroup, count));
    let thread = thread_of(local);
    // What is past the last row of weights meets zeros.
    let most = params.inner - 1u;
    let k = 16u * thread.slice;
    let w = t.d * params.weight_rows * params.columns + min(thread.lane, params.columns - 1u);
    let w0 = four(weights[w + min(k, most) * params.columns]);
    let w1 = four(weights[w + min(k + 1u, most) * params.columns]);
    let w2 = four(weights[w + min(k + 2u, most) * params.columns]);
    let w3 = four(weights[w + min(k + 3u, most) * params.columns]);
    let w4 = four(weights[w + min(k + 4u, most) * params.columns]);
    let w5 = four(weights[w + min(k + 5u, most) * params.columns]);
    let w6 = four(weights[w + min(k + 6u, most) * params.columns]);
    let w7 = four(weights[w + min(k + 7u, most) * params.columns]);
    let w8 = four(weights[w + min(k + 8u, most) * params.columns]);
    let w9 = four(weights[w + min(k + 9u, most) * params.columns]);
    let w10 = four(weights[w + min(k + 10u, most) * params.columns]);
    let w11 = four(weights[w + min(k + 11u, most) * params.columns]);
    let w12 = four(weights[w + min(k + 12u, most) * params.columns]);
    let w13 = four(weights[w + min(k + 13u, most) * params.columns]);
    let w14 = four(weights[w + min(k + 14u, most) * params.columns]);
    let w15 = four(weights[w + min(k + 15u, most) * params.columns]);
    load(t, thread, 0u);
    load(t, thread, 1u); // its padding is read too
    workgroupBarrier();
    for (var n = 0u; n < t.steps; n++) {
        let step = params.step - n;
        if (runs(t.b, step)) {
            let ready = first_ready(t, thread, thread.lane, step);
            for (var row = 0u; row < ROWS; row++) {
                let at = (n % 2u * ROWS + row) * DEPTH + k;
                var sum = fma(operand[at], w0, vec4<f32>(0.0));
                sum = fma(operand[at + 1u], w1, sum);
                sum = fma(operand[at + 2u], w2, sum);
                sum = fma(operand[at + 3u], w3, sum);
                sum = fma(operand[at + 4u], w4, sum);
                sum = fma(operand[at + 5u], w5, sum);
                sum = fma(operand[at + 6u], w6, sum);
                sum = fma(operand[at + 7u], w7, sum);
                sum = fma(operand[at + 8u], w8, sum);
                sum = fma(operand[at + 9u], w9, sum);
                sum = fma(operand[at + 10u], w10, sum);
                sum = fma(operand[at + 11u], w11, sum);
                sum = fma(operand[at + 12u], w12, sum);
                sum = fma(operand[at + 13u], w13, sum);
                sum = fma(operand[at + 14u], w14, sum);
                sum = fma(operand[at + 15u], w15, sum);
                sums[(thread.slice * ROWS + row) * UNITS + thread.lane] = total(sum);
            }
            finish_rows(t, thread, ready, thread.lane, step, (n + 1u) % 2u);
        }
    }
    store(t, thread, t.steps % 2u);
}

@compute @workgroup_size(UNITS, SLICES)
fn initial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let group = linear_workgroup(workgroup, count);
    let t = tile_of(group / params.unit_blocks);
    let thread = thread_of(local);
    if (t.steps == 0u) {
        return;
    }
    load(t, thread, 0u);
    workgroupBarrier();
    let column = group % params.unit_blocks * UNITS + thread.lane;
    multiply(t, thread, min(column, params.columns - 1u), 0u, select(0u, params.inner, runs(t.b, 0u)));
    workgroupBarrier();
    for (var row = thread.slice; row < ROWS; row += SLICES) {
        finish_initial(t.b + row, t.d, column, added(thread, row));
    }
}
