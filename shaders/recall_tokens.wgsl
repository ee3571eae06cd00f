// What the shares of a ring's places come to for each token. One workgroup a row, grid = N: each thread owns every 256th token, and
// looks through all places for those, in order.
// #import grid
// #import table

struct Params {
    places: u32,     // R
    row: u32,        // values of a ring
    vocabulary: u32, // V
    rows: u32,       // N
    steps: u32,      // T
    offsets: u32,    // where the first rows of steps begin in `table`
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> places: array<f32>;       // [N, R]
@group(0) @binding(2) var<storage, read> ring: array<f32>;         // [S, R(H + 1)]
@group(0) @binding(3) var<storage, read> slots: array<u32>;        // [B]
@group(0) @binding(4) var<storage, read> table: array<u32>;        // the region of the axis
@group(0) @binding(5) var<storage, read_write> shares: array<f32>; // [N, V]

override SLOTTED: bool = false;

var<workgroup> weights: array<f32, 256>;
var<workgroup> tokens: array<u32, 256>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    // The same for the whole workgroup, so that barriers are reached by all.
    let row = min(group, params.rows - 1u);
    let exists = group < params.rows;
    let b = row - table[params.offsets + step_of(row, params.offsets, params.steps)];
    var slot = b;
    if (SLOTTED) {
        // Slots are checked before they come here.
        slot = min(slots[b], arrayLength(&ring) / params.row - 1u);
    }
    let kept = (slot + 1u) * params.row - params.places;
    for (var token = local; exists && token < params.vocabulary; token += 256u) {
        shares[row * params.vocabulary + token] = 0.0;
    }
    for (var first = 0u; first < params.places; first += 256u) {
        let some = min(256u, params.places - first);
        workgroupBarrier();
        if (local < some) {
            weights[local] = places[row * params.places + first + local];
            tokens[local] = u32(ring[kept + first + local]);
        }
        workgroupBarrier();
        for (var i = 0u; exists && i < some; i++) {
            let token = tokens[i];
            if (token % 256u == local && token < params.vocabulary && weights[i] > 0.0) {
                shares[row * params.vocabulary + token] += weights[i];
            }
        }
    }
}
