// What the kernels of the working memory share: parameters, bindings, where a sequence's ring is and what it holds.

struct Params {
    features: u32,  // H
    places: u32,    // R
    window: u32,    // steps that are seen
    rows: u32,      // N
    sequences: u32, // that have steps
    steps: u32,     // T
    offsets: u32,   // where the first rows of steps begin in `table`
    lengths: u32,   // where the lengths of sequences begin
    chunks: u32,    // workgroups a sequence, or a row
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;        // [N, H]
@group(0) @binding(2) var<storage, read> ring: array<f32>;     // [S, R(H + 1)]: h of each place, then the token of each
@group(0) @binding(3) var<storage, read> position: array<f32>; // [B, 1]: steps read before
@group(0) @binding(4) var<storage, read> slots: array<u32>;    // [B]: rows of the ring
@group(0) @binding(5) var<storage, read> table: array<u32>;    // the region of the axis

// Whether there are slots; else a sequence has the ring's row of its own number.
override SLOTTED: bool = false;

const NOTHING: f32 = -1e30;

// Where the ring of sequence b begins. Slots are checked before they come here.
fn ring_of(b: u32) -> u32 {
    let row = params.places * (params.features + 1u);
    var slot = b;
    if (SLOTTED) {
        slot = min(slots[b], arrayLength(&ring) / row - 1u);
    }
    return slot * row;
}

// Steps that sequence b has read before: a count that a float holds.
fn before_of(b: u32) -> u32 {
    return min(u32(max(position[b], 0.0)), 16777216u);
}

// Where the tokens of the places begin in a ring.
fn tokens_of(base: u32) -> u32 {
    return base + params.places * params.features;
}

// Whether a sum of exponentials is one of something, perhaps of what is not a number, which compares as nothing does.
fn is_sum(x: f32) -> bool {
    return x > 0.0 || is_nan_f32(x);
}

// q of a row times h of a place.
fn score(row: u32, base: u32, place: u32) -> f32 {
    let a = row * params.features;
    let b = base + place * params.features;
    var sum = 0.0;
    for (var d = 0u; d < params.features; d++) {
        sum += q[a + d] * ring[b + d];
    }
    return sum;
}
