// `lstm_backward_step` with broadcasts inside subgroups; see `lstm_forward_step_subgroup`.
// One thread owns four columns of 1, 8 or 16 sequences; weights are packed [k][four rows][padded column].
// Grid = directions · sequence blocks · column blocks, 32 threads across quads of columns.
// #import grid
// #import math
// #import weights
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_slopes
// #import lstm_rows
// #import lstm_backward_cell

// Sequences of one thread: 1, 8 or 16.
override ROWS: u32 = 16u;

@group(0) @binding(1) var<storage, read> weights: array<Weights>; // [D, 4 weight_rows][padded columns / 4]

// Where a workgroup's sequences begin, and its direction; apart from a thread's columns, for these are alike in all threads.
struct Place {
    b: u32,
    d: u32,
}

struct Sums {
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
    s3: vec4<f32>,
    s4: vec4<f32>,
    s5: vec4<f32>,
    s6: vec4<f32>,
    s7: vec4<f32>,
    s8: vec4<f32>,
    s9: vec4<f32>,
    s10: vec4<f32>,
    s11: vec4<f32>,
    s12: vec4<f32>,
    s13: vec4<f32>,
    s14: vec4<f32>,
    s15: vec4<f32>,
}

fn place_of(group: u32) -> Place {
    let block = group / params.unit_blocks;
    return Place((block % params.row_blocks) * ROWS, block / params.row_blocks);
}

fn multiply(d: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(d.w), w3, fma(vec4<f32>(d.z), w2, fma(vec4<f32>(d.y), w1, fma(vec4<f32>(d.x), w0, sum))));
}

// No thread leaves early, since all lanes take part in broadcasts; what is past an end repeats the last and is not stored.
fn product(place: Place, quad: u32, lane: u32) -> Sums {
    let quads = (params.columns + 3u) / 4u;
    let d = min(place.d, params.directions - 1u);
    let last = params.sequences - 1u;
    let base = params.operand + d * params.sequences * params.inner;
    let row = place.b + select(lane & 7u, 0u, ROWS == 1u);
    let r0 = base + min(row, last) * params.inner;
    let r8 = base + min(row + 8u, last) * params.inner;
    let first = d * params.weight_rows * 4u * quads + min(quad, quads - 1u);
    let inner = select(0u, params.inner, runs(place.b, params.step + params.ahead));
    var t = Sums();
    for (var k = 0u; k < inner; k++) {
        let w = first + k * 4u * quads;
        let w0 = four(weights[w]);
        let w1 = four(weights[w + quads]);
        let w2 = four(weights[w + 2u * quads]);
        let w3 = four(weights[w + 3u * quads]);
        let d0 = state[r0 + k];
        t.s0 = multiply(subgroupBroadcast(d0, 0u), w0, w1, w2, w3, t.s0);
        if (ROWS > 1u) {
            t.s1 = multiply(subgroupBroadcast(d0, 1u), w0, w1, w2, w3, t.s1);
            t.s2 = multiply(subgroupBroadcast(d0, 2u), w0, w1, w2, w3, t.s2);
            t.s3 = multiply(subgroupBroadcast(d0, 3u), w0, w1, w2, w3, t.s3);
            t.s4 = multiply(subgroupBroadcast(d0, 4u), w0, w1, w2, w3, t.s4);
            t.s5 = multiply(subgroupBroadcast(d0, 5u), w0, w1, w2, w3, t.s5);
            t.s6 = multiply(subgroupBroadcast(d0, 6u), w0, w1, w2, w3, t.s6);
            t.s7 = multiply(subgroupBroadcast(d0, 7u), w0, w1, w2, w3, t.s7);
        }
        if (ROWS > 8u) {
            let d8 = state[r8 + k];
            t.s8 = multiply(subgroupBroadcast(d8, 0u), w0, w1, w2, w3, t.s8);
            t.s9 = multiply(subgroupBroadcast(d8, 1u), w0, w1, w2, w3, t.s9);
            t.s10 = multiply(subgroupBroadcast(d8, 2u), w0, w1, w2, w3, t.s10);
            t.s11 = multiply(subgroupBroadcast(d8, 3u), w0, w1, w2, w3, t.s11);
            t.s12 = multiply(subgroupBroadcast(d8, 4u), w0, w1, w2, w3, t.s12);
            t.s13 = multiply(subgroupBroadcast(d8, 5u), w0, w1, w2, w3, t.s13);
            t.s14 = multiply(subgroupBroadcast(d8, 6u), w0, w1, w2, w3, t.s14);
            t.s15 = multiply(subgroupBroadcast(d8, 7u), w0, w1, w2, w3, t.s15);
        }
    }
    return t;
}

@compute @workgroup_size(32)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let place = place_of(group);
    let quad = (group % params.unit_blocks) * 32u + local;
    var sums = product(place, quad, lane);
    if (place.d >= params.directions) {
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var u = 0u; u < 4u; u++) {
            let unit = 4u * quad + u;
            let gradient = finish_step(place.b + r, place.d, unit, params.step, sums.s0.x);
            if (gradient.is) {
                state[result_of(place.b + r, place.d, unit)] = gradient.dz;
            }
            sums.s0 = sums.s0.yzwx;
        }
        sums.s0 = sums.s1;
        sums.s1 = sums.s2;
        sums.s2 = sums.s3;
        sums.s3 = sums.s4;
        sums.s4 = sums.s5;
        sums.s5 = sums.s6;
        sums.s6 = sums.s7;
        sums.s7 = sums.s8;
        sums.s8 = sums.s9;
        sums.s9 = sums.s10;
        sums.s10 = sums.s11;
        sums.s11 = sums.s12;
        sums.s12 = sums.s13;
        sums.s13 = sums.s14;
        sums.s14 = sums.s15;
    }
}

@compute @workgroup_size(32)
fn arrive_h(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let place = place_of(group);
    let quad = (group % params.unit_blocks) * 32u + local;
    var sums = product(place, quad, lane);
    if (place.d >= params.directions) {
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var u = 0u; u < 4u; u++) {
            finish_arrive(place.b + r, place.d, 4u * quad + u, params.step, sums.s0.x);
            sums.s0 = sums.s0.yzwx;
        }
        sums.s0 = sums.s1;
        sums.s1 = sums.s2;
        sums.s2 = sums.s3;
        sums.s3 = sums.s4;
        sums.s4 = sums.s5;
        sums.s5 = sums.s6;
        sums.s6 = sums.s7;
        sums.s7 = sums.s8;
        sums.s8 = sums.s9;
        sums.s9 = sums.s10;
        sums.s10 = sums.s11;
        sums.s11 = sums.s12;
        sums.s12 = sums.s13;
        sums.s13 = sums.s14;
        sums.s14 = sums.s15;
    }
}

@compute @workgroup_size(32)
fn unproject(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let place = place_of(group);
    let quad = (group % params.unit_blocks) * 32u + local;
    var sums = product(place, quad, lane);
    if (place.d >= params.directions) {
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var u = 0u; u < 4u; u++) {
            finish_unproject(place.b + r, place.d, 4u * quad + u, params.step, sums.s0.x);
            sums.s0 = sums.s0.yzwx;
        }
        sums.s0 = sums.s1;
        sums.s1 = sums.s2;
        sums.s2 = sums.s3;
        sums.s3 = sums.s4;
        sums.s4 = sums.s5;
        sums.s5 = sums.s6;
        sums.s6 = sums.s7;
        sums.s7 = sums.s8;
        sums.s8 = sums.s9;
        sums.s9 = sums.s10;
        sums.s10 = sums.s11;
        sums.s11 = sums.s12;
        sums.s12 = sums.s13;
        sums.s13 = sums.s14;
        sums.s14 = sums.s15;
    }
}

@compute @workgroup_size(32)
fn initial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let group = linear_workgroup(workgroup, count);
    let place = place_of(group);
    let quad = (group % params.unit_blocks) * 32u + local;
    var sums = product(place, quad, lane);
    if (place.d >= params.directions) {
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var u = 0u; u < 4u; u++) {
            finish_initial(place.b + r, place.d, 4u * quad + u, sums.s0.x);
            sums.s0 = sums.s0.yzwx;
        }
        sums.s0 = sums.s1;
        sums.s1 = sums.s2;
        sums.s2 = sums.s3;
        sums.s3 = sums.s4;
        sums.s4 = sums.s5;
        sums.s5 = sums.s6;
        sums.s6 = sums.s7;
        sums.s7 = sums.s8;
        sums.s8 = sums.s9;
        sums.s9 = sums.s10;
        sums.s10 = sums.s11;
        sums.s11 = sums.s12;
        sums.s12 = sums.s13;
        sums.s13 = sums.s14;
        sums.s14 = sums.s15;
    }
}
