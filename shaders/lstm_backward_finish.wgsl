// The gradient of h_0: Uᵀ dgates of the first step; dh_n for sequences of no steps.
// One thread a unit of a sequence, grid = B · unit blocks, 64 threads across units.
// #import grid

struct Params {
    hidden: u32,      // H
    sequences: u32,   // B
    running: u32,      // sequences with a first step
    slot: u32,        // 0 or 1: the slot of `state` that holds the first step's gate gradients
    unit_blocks: u32, // workgroups across units
    has_dh_n: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>; // [H][H] of i f g o
@group(0) @binding(2) var<storage, read> state: array<vec4<f32>>;   // [2, B, H]
@group(0) @binding(3) var<storage, read> dh_n: array<f32>;          // [B, H]
@group(0) @binding(4) var<storage, read_write> dh0: array<f32>;     // [B, H]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let b = group / params.unit_blocks;
    let unit = (group % params.unit_blocks) * 64u + local;
    if (b >= params.sequences || unit >= params.hidden) {
        return;
    }
    let at = b * params.hidden + unit;
    if (b >= params.running) {
        var value = 0.0;
        if (params.has_dh_n != 0u) {
            value = dh_n[at];
        }
        dh0[at] = value;
        return;
    }
    let row = (params.slot * params.sequences + b) * params.hidden;
    var sum = vec4<f32>(0.0);
    for (var k = 0u; k < params.hidden; k++) {
        sum = fma(state[row + k], weights[k * params.hidden + unit], sum);
    }
    dh0[at] = sum.x + sum.y + sum.z + sum.w;
}
