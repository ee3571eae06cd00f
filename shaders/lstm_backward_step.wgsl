// One timestep of an LSTM layer's gradient, back in time, of all its directions.
//   main:      the product of the next step's gate gradients with U, what arrives at h, and the gradients of the gates
//   arrive_h:  the same product and what arrives at a projected h
//   unproject: the product of that with W_hr, and the gradients of the gates
// One thread owns one column of 8 sequences; weights are packed [k][column] of vec4 (i f g o of unit k, or four rows of
// W_hr). Grid = directions · sequence blocks · column blocks, 64 threads across columns.
// #import grid
// #import math
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_slopes
// #import lstm_rows
// #import lstm_backward_cell

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>; // [D, weight_rows][columns]

struct Place {
    b: u32,
    d: u32,
    column: u32,
}

struct Sums {
    s0: f32,
    s1: f32,
    s2: f32,
    s3: f32,
    s4: f32,
    s5: f32,
    s6: f32,
    s7: f32,
}

fn place_of(group: u32, local: u32) -> Place {
    let block = group / params.unit_blocks;
    let b = params.first + (block % params.row_blocks) * 8u;
    return Place(b, block / params.row_blocks, (group % params.unit_blocks) * 64u + local);
}

fn total(v: vec4<f32>) -> f32 {
    return v.x + v.y + v.z + v.w;
}

fn product(place: Place) -> Sums {
    // Sequences past the end repeat the last one; they are not stored.
    let last = params.end - 1u;
    let base = params.operand + place.d * params.sequences * params.inner;
    let r0 = base + min(place.b + 0u, last) * params.inner;
    let r1 = base + min(place.b + 1u, last) * params.inner;
    let r2 = base + min(place.b + 2u, last) * params.inner;
    let r3 = base + min(place.b + 3u, last) * params.inner;
    let r4 = base + min(place.b + 4u, last) * params.inner;
    let r5 = base + min(place.b + 5u, last) * params.inner;
    let r6 = base + min(place.b + 6u, last) * params.inner;
    let r7 = base + min(place.b + 7u, last) * params.inner;
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    // Only sequences with a next step have gate gradients to multiply.
    let inner = select(0u, params.inner, place.b < params.ongoing);
    let first = place.d * params.weight_rows * params.columns + place.column;
    for (var k = 0u; k < inner; k++) {
        let w = weights[first + k * params.columns];
        s0 = fma(state[r0 + k], w, s0);
        s1 = fma(state[r1 + k], w, s1);
        s2 = fma(state[r2 + k], w, s2);
        s3 = fma(state[r3 + k], w, s3);
        s4 = fma(state[r4 + k], w, s4);
        s5 = fma(state[r5 + k], w, s5);
        s6 = fma(state[r6 + k], w, s6);
        s7 = fma(state[r7 + k], w, s7);
    }
    return Sums(total(s0), total(s1), total(s2), total(s3), total(s4), total(s5), total(s6), total(s7));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(linear_workgroup(workgroup, count), local);
    if (place.d >= params.directions || place.b >= params.end || place.column >= params.columns) {
        return;
    }
    var sums = product(place);
    for (var r = 0u; r < 8u; r++) {
        finish_step(place.b + r, place.d, place.column, sums.s0);
        sums = Sums(sums.s1, sums.s2, sums.s3, sums.s4, sums.s5, sums.s6, sums.s7, 0.0);
    }
}

@compute @workgroup_size(64)
fn arrive_h(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(linear_workgroup(workgroup, count), local);
    if (place.d >= params.directions || place.b >= params.end || place.column >= params.columns) {
        return;
    }
    var sums = product(place);
    for (var r = 0u; r < 8u; r++) {
        finish_arrive(place.b + r, place.d, place.column, sums.s0);
        sums = Sums(sums.s1, sums.s2, sums.s3, sums.s4, sums.s5, sums.s6, sums.s7, 0.0);
    }
}

@compute @workgroup_size(64)
fn unproject(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(linear_workgroup(workgroup, count), local);
    if (place.d >= params.directions || place.b >= params.end || place.column >= params.columns) {
        return;
    }
    var sums = product(place);
    for (var r = 0u; r < 8u; r++) {
        finish_unproject(place.b + r, place.d, place.column, sums.s0);
        sums = Sums(sums.s1, sums.s2, sums.s3, sums.s4, sums.s5, sums.s6, sums.s7, 0.0);
    }
}
