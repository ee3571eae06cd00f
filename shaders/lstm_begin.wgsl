// The state before the first step: slot 0 of `state` is h_0 padded with zeros, c is c_0, h_n is h_0 (and stays so for
// sequences of no steps). One thread a unit of a sequence, grid = B · padded H / 256.
// #import grid

struct Params {
    sequences: u32, // B
    hidden: u32,    // H
    padded: u32,    // H rounded up to a multiple of four
    has_h0: u32,
    has_c0: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> h0: array<f32>;           // [B, H]
@group(0) @binding(2) var<storage, read> c0: array<f32>;           // [B, H]
@group(0) @binding(3) var<storage, read_write> state: array<f32>;  // [2, B, padded]
@group(0) @binding(4) var<storage, read_write> c: array<f32>;      // [B, H]
@group(0) @binding(5) var<storage, read_write> h_n: array<f32>;    // [B, H]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    if (i >= params.sequences * params.padded) {
        return;
    }
    let b = i / params.padded;
    let u = i % params.padded;
    let inside = u < params.hidden;
    let at = b * params.hidden + u;
    var h = 0.0;
    if (inside && params.has_h0 != 0u) {
        h = h0[at];
    }
    state[i] = h;
    // The padding of the other slot is read too.
    state[params.sequences * params.padded + i] = 0.0;
    if (inside) {
        h_n[at] = h;
        var cell = 0.0;
        if (params.has_c0 != 0u) {
            cell = c0[at];
        }
        c[at] = cell;
    }
}
