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
