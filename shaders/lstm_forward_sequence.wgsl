// The recurrence of an LSTM layer over many steps, fused: the four gates' products with h, the activations and the state
// update, of a tile of sequences and all units a workgroup, which keeps h in workgroup memory. Threads are UNITS × SLICES: a
// thread sums one slice of the product of one unit of ROWS sequences, all four gates at once; U is packed [k][unit] of vec4
// (i f g o), h padded to a multiple of four.
//   main:      U is read from storage, or as far as HELD says from workgroup memory
//   registers: U stays in registers, 16 rows of one unit a thread, for H <= UNITS and padded R <= 16 SLICES
// Grid = directions · sequence blocks.
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows
// #import lstm_forward_cell

override ROWS: u32 = 8u;
override UNITS: u32 = 32u;
override SLICES: u32 = 2u;
// Quads of h of one sequence.
override QUADS: u32 = 16u;
// Quads of rows of U that stay in workgroup memory, and how many vectors that makes.
override HELD: u32 = 0u;
override HELD_VALUES: u32 = 1u;

var<workgroup> hs: array<vec4<f32>, 2u * ROWS * QUADS>;
var<workgroup> sums: array<vec4<f32>, UNITS * SLICES * ROWS>;
var<workgroup> held: array<Weights, HELD_VALUES>;

// What a workgroup computes.
struct Tile {
    b: u32,    // its first sequence
    d: u32,    // its direction
    step: u32, // its first step
    end: u32,  // one past its last
}

// What a thread computes of it.
struct Thread {
    lane: u32,   // its unit within a block of units
    slice: u32,  // its slice of the product
    number: u32,
}

fn tile_of(group: u32) -> Tile {
    let b = (group % params.row_blocks) * ROWS;
    let d = group / params.row_blocks;
    // The tile's first sequence is its longest.
    let longest = select(0u, table[params.lengths + min(b, params.sequences - 1u)], d < params.directions);
    return Tile(b, d, params.step, min(params.step_end, longest));
}

fn thread_of(local: vec3<u32>) -> Thread {
    return Thread(local.x, local.y, local.y * UNITS + local.x);
}

// The first vector of h of one sequence in a slot of `state`.
fn state_of(slot: u32, d: u32, b: u32) -> u32 {
    return ((slot * params.directions + d) * params.sequences + b) * params.quads;
}

// Brings h of the tile's sequences into half `half` of the tile.
fn load(t: Tile, thread: Thread, half: u32) {
    for (var i = thread.number; i < ROWS * QUADS; i += UNITS * SLICES) {
        let q = i % QUADS;
        // Sequences past the end repeat the last one; they are not stored.
        let b = min(t.b + i / QUADS, params.sequences - 1u);
        var h = vec4<f32>(0.0);
        if (q < params.quads) {
            h = state[state_of(0u, t.d, b) + q];
        }
        hs[half * ROWS * QUADS + i] = h;
    }
}

// Leaves h in `state` for the dispatch that goes on.
fn store(t: Tile, thread: Thread, half: u32) {
    for (var i = thread.number; i < ROWS * QUADS; i += UNITS * SLICES) {
        let b = t.b + i / QUADS;
        if (b < params.sequences && i % QUADS < params.quads) {
            state[state_of(0u, t.d, b) + i % QUADS] = hs[half * ROWS * QUADS + i];
        }
    }
}

fn multiply(h: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(h.w), w3, fma(vec4<f32>(h.z), w2, fma(vec4<f32>(h.y), w1, fma(vec4<f32>(h.x), w0, sum))));
}

// One element of h of a sequence, for the step after `step`.
fn pass_on(row: u32, unit: u32, step: u32, h: f32) {
    let at = ((step + 1u) % 2u * ROWS + row) * QUADS + unit / 4u;
    switch (unit % 4u) {
        case 0u: { hs[at].x = h; }
        case 1u: { hs[at].y = h; }
        case 2u: { hs[at].z = h; }
        default: { hs[at].w = h; }
    }
}

// What this thread's first sequence reads at a step besides its product: on its way while that is made.
fn first_before(t: Tile, thread: Thread, unit: u32, step: u32) -> Before {
    if (thread.slice >= ROWS) {
        return Before();
    }
    return before(t.b + thread.slice, t.d, unit, step);
}

// Adds up the slices of this thread's sequences and finishes them.
fn finish_rows(t: Tile, thread: Thread, first: Before, unit: u32, step: u32) {
    var found = first;
    workgroupBarrier();
    for (var row = thread.slice; row < ROWS; row += SLICES) {
        if (row > thread.slice) {
            found = before(t.b + row, t.d, unit, step);
        }
        var sum = sums[row * UNITS + thread.lane];
        for (var slice = 1u; slice < SLICES; slice++) {
            sum += sums[(slice * ROWS + row) * UNITS + thread.lane];
        }
        let next = finish_from(found, t.b + row, t.d, unit, step, sum);
        if (next.goes_on) {
            pass_on(row, unit, step, next.h);
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
    if (t.step >= t.end) {
        return;
    }
    for (var i = thread.number; i < HELD * 4u * params.hidden; i += UNITS * SLICES) {
        held[i] = weights[weights_of(t.d) + i];
    }
    load(t, thread, 0u);
    load(t, thread, 1u); // its padding is read too
    workgroupBarrier();
    let share = QUADS / SLICES;
    for (var step = t.step; step < t.end; step++) {
        for (var first = 0u; first < params.hidden; first += UNITS) {
            let unit = first + thread.lane;
            let column = min(unit, params.hidden - 1u);
            let found = first_before(t, thread, unit, step);
            var s0 = vec4<f32>(0.0);
            var s1 = vec4<f32>(0.0);
            var s2 = vec4<f32>(0.0);
            var s3 = vec4<f32>(0.0);
            var s4 = vec4<f32>(0.0);
            var s5 = vec4<f32>(0.0);
            var s6 = vec4<f32>(0.0);
            var s7 = vec4<f32>(0.0);
            let h = step % 2u * ROWS * QUADS;
            for (var q = thread.slice * share; q < min((thread.slice + 1u) * share, params.quads); q++) {
                var w0: vec4<f32>;
                var w1: vec4<f32>;
                var w2: vec4<f32>;
                var w3: vec4<f32>;
                if (q < HELD) {
                    let w = q * 4u * params.hidden + column;
                    w0 = four(held[w]);
                    w1 = four(held[w + params.hidden]);
                    w2 = four(held[w + 2u * params.hidden]);
                    w3 = four(held[w + 3u * params.hidden]);
                } else {
                    let w = weights_of(t.d) + q * 4u * params.hidden + column;
                    w0 = four(weights[w]);
                    w1 = four(weights[w + params.hidden]);
                    w2 = four(weights[w + 2u * params.hidden]);
                    w3 = four(weights[w + 3u * params.hidden]);
                }
                s0 = multiply(hs[h + q], w0, w1, w2, w3, s0);
                if (ROWS > 1u) {
                    s1 = multiply(hs[h + QUADS + q], w0, w1, w2, w3, s1);
                }
                if (ROWS > 2u) {
                    s2 = multiply(hs[h + 2u * QUADS + q], w0, w1, w2, w3, s2);
                    s3 = multiply(hs[h + 3u * QUADS + q], w0, w1, w2, w3, s3);
                }
                if (ROWS > 4u) {
                    s4 = multiply(hs[h + 4u * QUADS + q], w0, w1, w2, w3, s4);
                    s5 = multiply(hs[h + 5u * QUADS + q], w0, w1, w2, w3, s5);
                    s6 = multiply(hs[h + 6u * QUADS + q], w0, w1, w2, w3, s6);
                    s7 = multiply(hs[h + 7u * QUADS + q], w0, w1, w2, w3, s7);
                }
            }
            let at = thread.slice * ROWS * UNITS + thread.lane;
            for (var row = 0u; row < ROWS; row++) {
                sums[at + row * UNITS] = s0;
                s0 = s1;
                s1 = s2;
                s2 = s3;
                s3 = s4;
                s4 = s5;
                s5 = s6;
                s6 = s7;
            }
            finish_rows(t, thread, found, unit, step);
        }
    }
    store(t, thread, t.end % 2u);
}

@compute @workgroup_size(UNITS, SLICES)
fn registers(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let t = tile_of(linear_workgroup(workgroup, count));
    let thread = thread_of(local);
    if (t.step >= t.end) {
        return;
    }
    // The tile is padded with zeros past R, so that rows of U past its end, which are some other finite row, add nothing.
    let most = 4u * params.quads - 1u;
    let k = 16u * thread.slice;
    let w = weights_of(t.d) + min(thread.lane, params.hidden - 1u);
    let w0 = four(weights[w + min(k, most) * params.hidden]);
    let w1 = four(weights[w + min(k + 1u, most) * params.hidden]);
    let w2 = four(weights[w + min(k + 2u, most) * params.hidden]);
    let w3 = four(weights[w + min(k + 3u, most) * params.hidden]);
    let w4 = four(weights[w + min(k + 4u, most) * params.hidden]);
    let w5 = four(weights[w + min(k + 5u, most) * params.hidden]);
    let w6 = four(weights[w + min(k + 6u, most) * params.hidden]);
    let w7 = four(weights[w + min(k + 7u, most) * params.hidden]);
    let w8 = four(weights[w + min(k + 8u, most) * params.hidden]);
    let w9 = four(weights[w + min(k + 9u, most) * params.hidden]);
    let w10 = four(weights[w + min(k + 10u, most) * params.hidden]);
    let w11 = four(weights[w + min(k + 11u, most) * params.hidden]);
    let w12 = four(weights[w + min(k + 12u, most) * params.hidden]);
    let w13 = four(weights[w + min(k + 13u, most) * params.hidden]);
    let w14 = four(weights[w + min(k + 14u, most) * params.hidden]);
    let w15 = four(weights[w + min(k + 15u, most) * params.hidden]);
    load(t, thread, 0u);
    load(t, thread, 1u); // its padding is read too
    workgroupBarrier();
    for (var step = t.step; step < t.end; step++) {
        let found = first_before(t, thread, thread.lane, step);
        let h = step % 2u * ROWS * QUADS + 4u * thread.slice;
        for (var row = 0u; row < ROWS; row++) {
            var sum = multiply(hs[h + row * QUADS], w0, w1, w2, w3, vec4<f32>(0.0));
            sum = multiply(hs[h + row * QUADS + 1u], w4, w5, w6, w7, sum);
            sum = multiply(hs[h + row * QUADS + 2u], w8, w9, w10, w11, sum);
            sum = multiply(hs[h + row * QUADS + 3u], w12, w13, w14, w15, sum);
            sums[(thread.slice * ROWS + row) * UNITS + thread.lane] = sum;
        }
        finish_rows(t, thread, found, thread.lane, step);
    }
    store(t, thread, t.end % 2u);
}
