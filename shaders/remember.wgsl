// h and the token of each step into their sequence's ring: h at the step's place, the token at the place of the step before,
// which it follows. One thread a value, grid = N (H + 1) / 256.
// #import grid
// #import table

struct Params {
    features: u32, // H
    places: u32,   // R
    rows: u32,     // N
    steps: u32,    // T
    offsets: u32,  // where the first rows of steps begin in `table`
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> own: array<f32>;        // [N, H]
@group(0) @binding(2) var<storage, read> tokens: array<u32>;     // [N]
@group(0) @binding(3) var<storage, read> position: array<f32>;   // [B, 1]: steps read before
@group(0) @binding(4) var<storage, read> slots: array<u32>;      // [B]: rows of the ring
@group(0) @binding(5) var<storage, read> table: array<u32>;      // the region of the axis
@group(0) @binding(6) var<storage, read_write> ring: array<f32>; // [S, R(H + 1)]

override SLOTTED: bool = false;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    let width = params.features + 1u;
    let row = i / width;
    if (row >= params.rows) {
        return;
    }
    let t = step_of(row, params.offsets, params.steps);
    let b = row - table[params.offsets + t];
    var slot = b;
    if (SLOTTED) {
        // Slots are checked before they come here.
        slot = min(slots[b], arrayLength(&ring) / (params.places * width) - 1u);
    }
    let base = slot * params.places * width;
    let step = min(u32(max(position[b], 0.0)), 16777216u) + t;
    let f = i % width;
    if (f < params.features) {
        ring[base + step % params.places * params.features + f] = own[row * params.features + f];
    } else if (step > 0u) {
        ring[base + params.places * params.features + (step - 1u) % params.places] = f32(tokens[row]);
    }
}
