// Workgroups that run one tile of sequences together, step by step. One that waited in vain leaves with the number of steps
// that it has done; of two workgroups of a tile one is at most one step ahead. Another dispatch, of one workgroup a tile, ends
// what is left.
// In `meeting` lies of each tile the word of its place, then of each tile and block of columns how many steps it has done.

override ROWS: u32 = 1u;   // sequences of a tile
override PASS: u32 = 1u;   // sequences that are computed between two barriers; ROWS is a multiple
override UNITS: u32 = 8u;  // columns of a workgroup
override SLICES: u32 = 2u; // slices of the product: threads are UNITS × SLICES
// A thread adds up to eight slices, then one thread what they made.
override PARTS: u32 = (SLICES + 7u) / 8u;

@group(0) @binding(11) var<storage, read_write> stalls: array<atomic<u32>>; // [1]: tiles whose workgroups did not meet

// What a thread computes.
struct Thread {
    lane: u32,   // its column within a block of columns
    slice: u32,  // its slice of the product
    number: u32,
}

fn thread_of(local: vec3<u32>) -> Thread {
    return Thread(local.x, local.y, local.y * UNITS + local.x);
}

fn done_at(tile: u32, block: u32) -> u32 {
    return params.directions * params.row_blocks + tile * params.unit_blocks + block;
}

// Says that `done` steps are done, and waits for the other workgroups of the tile, for the `time`-th time, unless these were
// the last: the end of the dispatch is a meeting too. Whether it goes on.
fn meet_tile(tile: u32, block: u32, done: u32, time: u32, last: bool, thread: Thread) -> bool {
    if (thread.number == 0u) {
        atomicStore(&meeting[done_at(tile, block)], done);
    }
    if (last) {
        return false;
    }
    return meet(tile, time * params.unit_blocks, thread.number == 0u);
}

// The fewest steps that a workgroup of the tile has done.
fn fewest_done(tile: u32) -> u32 {
    var fewest = atomicLoad(&meeting[done_at(tile, 0u)]);
    for (var block = 1u; block < params.unit_blocks; block++) {
        fewest = min(fewest, atomicLoad(&meeting[done_at(tile, block)]));
    }
    return fewest;
}

// The rows of U that a thread multiplies.
struct Rows {
    w0: vec4<f32>,
    w1: vec4<f32>,
    w2: vec4<f32>,
    w3: vec4<f32>,
    w4: vec4<f32>,
    w5: vec4<f32>,
    w6: vec4<f32>,
    w7: vec4<f32>,
    w8: vec4<f32>,
    w9: vec4<f32>,
    w10: vec4<f32>,
    w11: vec4<f32>,
    w12: vec4<f32>,
    w13: vec4<f32>,
    w14: vec4<f32>,
    w15: vec4<f32>,
}

// Of the column that begins at vector `first`, rows `stride` apart, of which the last is number `most`.
fn rows_from(first: u32, stride: u32, most: u32, thread: Thread) -> Rows {
    let k = 16u * thread.slice;
    return Rows(
        four(weights[first + min(k, most) * stride]),
        four(weights[first + min(k + 1u, most) * stride]),
        four(weights[first + min(k + 2u, most) * stride]),
        four(weights[first + min(k + 3u, most) * stride]),
        four(weights[first + min(k + 4u, most) * stride]),
        four(weights[first + min(k + 5u, most) * stride]),
        four(weights[first + min(k + 6u, most) * stride]),
        four(weights[first + min(k + 7u, most) * stride]),
        four(weights[first + min(k + 8u, most) * stride]),
        four(weights[first + min(k + 9u, most) * stride]),
        four(weights[first + min(k + 10u, most) * stride]),
        four(weights[first + min(k + 11u, most) * stride]),
        four(weights[first + min(k + 12u, most) * stride]),
        four(weights[first + min(k + 13u, most) * stride]),
        four(weights[first + min(k + 14u, most) * stride]),
        four(weights[first + min(k + 15u, most) * stride]),
    );
}
