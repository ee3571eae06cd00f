// The gradient of h_0: Uᵀ dgates of the first step; dh_n for sequences of no steps.
// One thread a unit of a sequence, grid = B · H / 64.
// #import grid

struct Params {
    hidden: u32,    // H
    sequences: u32, // B
    running: u32,   // sequences with a first step
    slot: u32,      // 0 or 1: the slot of `state` that holds the first step's gate gradients
    stride_k: u32,  // values of the packed weights from one unit's rows to the next
    stride_g: u32,  // from one gate's row to the next
    stride_u: u32,  // from one column to the next
    has_dh_n: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> state: array<vec4<f32>>; // [2, B, H]
@group(0) @binding(3) var<storage, read> dh_n: array<f32>;        // [B, H]
@group(0) @binding(4) var<storage, read_write> dh0: array<f32>;   // [B, H]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = linear_workgroup(workgroup, count) * 64u + local;
    let b = at / params.hidden;
    let unit = at % params.hidden;
    if (b >= params.sequences) {
        return;
    }
    if (b >= params.running) {
        var value = 0.0;
        if (params.has_dh_n != 0u) {
            value = dh_n[at];
        }
        dh0[at] = value;
        return;
    }
    let row = (params.slot * params.sequences + b) * params.hidden;
    var sum = 0.0;
    for (var k = 0u; k < params.hidden; k++) {
        let d = state[row + k];
        let w = k * params.stride_k + unit * params.stride_u;
        sum = fma(d.x, weights[w], sum);
        sum = fma(d.y, weights[w + params.stride_g], sum);
        sum = fma(d.z, weights[w + 2u * params.stride_g], sum);
        sum = fma(d.w, weights[w + 3u * params.stride_g], sum);
    }
    dh0[at] = sum;
}
