// One timestep of an LSTM layer's gradient, back in time, fused: the product of the next step's gate gradients with U,
// and the gradients of this step's gates, in their place.
//   dh = dy_t + Uᵀ dgates_{t+1}   (at a sequence's last step: dy_t + dh_n)
//   dc = dc + dh o (1 - tanh²c)   di = dc g i(1-i)   df = dc c_{t-1} f(1-f)   dg = dc i (1-g²)   do = dh tanh c o(1-o)
// One thread owns one unit of 8 sequences; U is packed [k][unit] of vec4 (i f g o of unit k, into `unit`).
// Grid = sequence blocks · unit blocks, 64 threads across units.
// #import grid
// #import math

struct Params {
    hidden: u32,       // H
    first: u32,        // first sequence of this dispatch
    end: u32,          // one past the last
    ongoing: u32,   // sequences before this one have a next step
    row: u32,          // the row of sequence `first` in the piece of gates, cells and dy
    previous: u32,     // the row of sequence `first` at the step before, in its piece of cells
    sequences: u32,    // B, rows of one slot of the state
    slot: u32,         // 0 or 1: the slot of `state` that holds the next step's gate gradients
    unit_blocks: u32,  // workgroups across units
    has_previous: u32, // 1: the cells before are rows of `previous_cells`, 2: they are c_0, 0: they are zero
    has_dy: u32,
    has_dh_n: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;          // [H][H] of i f g o
@group(0) @binding(2) var<storage, read_write> state: array<vec4<f32>>;      // [2, B, H]
@group(0) @binding(3) var<storage, read_write> gates: array<vec4<f32>>;      // [rows, H]: gates, then their gradients
@group(0) @binding(4) var<storage, read> cells: array<f32>;                  // [rows, H]
@group(0) @binding(5) var<storage, read> previous_cells: array<f32>;         // [rows, H] or c_0 [B, H]
@group(0) @binding(6) var<storage, read> dy: array<f32>;                     // [rows, H]
@group(0) @binding(7) var<storage, read> dh_n: array<f32>;                   // [B, H]
@group(0) @binding(8) var<storage, read_write> dc: array<f32>;               // [B, H]

fn finish(b: u32, unit: u32, product: vec4<f32>) {
    if (b >= params.end) {
        return;
    }
    let row = params.row + b - params.first;
    let at = row * params.hidden + unit;
    let sequence = b * params.hidden + unit;
    var dh = 0.0;
    if (b < params.ongoing) {
        dh = product.x + product.y + product.z + product.w;
    } else if (params.has_dh_n != 0u) {
        dh = dh_n[sequence];
    }
    if (params.has_dy != 0u) {
        dh += dy[at];
    }
    let a = gates[at];
    let tanh_c = tanh_f32(cells[at]);
    let dcell = dc[sequence] + dh * a.w * (1.0 - tanh_c * tanh_c);
    var before = 0.0;
    if (params.has_previous == 1u) {
        before = previous_cells[(params.previous + b - params.first) * params.hidden + unit];
    } else if (params.has_previous == 2u) {
        before = previous_cells[sequence];
    }
    let d = vec4<f32>(
        dcell * a.z * a.x * (1.0 - a.x),
        dcell * before * a.y * (1.0 - a.y),
        dcell * a.x * (1.0 - a.z * a.z),
        dh * tanh_c * a.w * (1.0 - a.w),
    );
    dc[sequence] = dcell * a.y;
    gates[at] = d;
    state[((1u - params.slot) * params.sequences + b) * params.hidden + unit] = d;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let b = params.first + (group / params.unit_blocks) * 8u;
    let unit = (group % params.unit_blocks) * 64u + local;
    if (b >= params.end || unit >= params.hidden) {
        return;
    }
    // Sequences past the end repeat the last one; they are not stored.
    let last = params.end - 1u;
    let base = params.slot * params.sequences;
    let r0 = (base + b) * params.hidden;
    let r1 = (base + min(b + 1u, last)) * params.hidden;
    let r2 = (base + min(b + 2u, last)) * params.hidden;
    let r3 = (base + min(b + 3u, last)) * params.hidden;
    let r4 = (base + min(b + 4u, last)) * params.hidden;
    let r5 = (base + min(b + 5u, last)) * params.hidden;
    let r6 = (base + min(b + 6u, last)) * params.hidden;
    let r7 = (base + min(b + 7u, last)) * params.hidden;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    // Only sequences with a next step have gate gradients to multiply.
    let inner = select(0u, params.hidden, b < params.ongoing);
    for (var k = 0u; k < inner; k++) {
        let w = weights[k * params.hidden + unit];
        s0 = fma(state[r0 + k], w, s0);
        s1 = fma(state[r1 + k], w, s1);
        s2 = fma(state[r2 + k], w, s2);
        s3 = fma(state[r3 + k], w, s3);
        s4 = fma(state[r4 + k], w, s4);
        s5 = fma(state[r5 + k], w, s5);
        s6 = fma(state[r6 + k], w, s6);
        s7 = fma(state[r7 + k], w, s7);
    }
    finish(b, unit, s0);
    finish(b + 1u, unit, s1);
    finish(b + 2u, unit, s2);
    finish(b + 3u, unit, s3);
    finish(b + 4u, unit, s4);
    finish(b + 5u, unit, s5);
    finish(b + 6u, unit, s6);
    finish(b + 7u, unit, s7);
}
