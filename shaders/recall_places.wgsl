// e^(q·h) of each place that a step sees over their sum, zero elsewhere, and the logarithm of the sum. One workgroup a row,
// grid = N.
// #import grid
// #import math
// #import table
// #import memory

@group(0) @binding(6) var<storage, read_write> shares: array<f32>; // [N, R]
@group(0) @binding(7) var<storage, read_write> total: array<f32>;  // [N, 1]

var<workgroup> parts: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    // The same for the whole workgroup, so that barriers are reached by all.
    let row = min(group, params.rows - 1u);
    let t = step_of(row, params.offsets, params.steps);
    let b = row - table[params.offsets + t];
    let base = ring_of(b);
    let here = before_of(b) + t;
    let seen = min(here, params.window);
    let to = row * params.places;
    var largest = NOTHING;
    for (var place = local; place < params.places; place += 64u) {
        if (is_seen(place, here, seen)) {
            let s = score(row, base, place);
            shares[to + place] = s;
            largest = max(largest, s);
        }
    }
    parts[local] = largest;
    workgroupBarrier();
    for (var span = 32u; span > 0u; span /= 2u) {
        if (local < span) {
            parts[local] = max(parts[local], parts[local + span]);
        }
        workgroupBarrier();
    }
    largest = parts[0];
    workgroupBarrier();
    var sum = 0.0;
    for (var place = local; place < params.places; place += 64u) {
        if (is_seen(place, here, seen)) {
            sum += exp_any_f32(shares[to + place] - largest);
        }
    }
    parts[local] = sum;
    workgroupBarrier();
    for (var span = 32u; span > 0u; span /= 2u) {
        if (local < span) {
            parts[local] += parts[local + span];
        }
        workgroupBarrier();
    }
    if (group >= params.rows) {
        return;
    }
    for (var place = local; place < params.places; place += 64u) {
        var share = 0.0;
        if (is_sum(parts[0]) && is_seen(place, here, seen)) {
            share = exp_any_f32(shares[to + place] - largest) / parts[0];
        }
        shares[to + place] = share;
    }
    if (local == 0u) {
        total[row] = NOTHING;
        if (is_sum(parts[0])) {
            total[row] = largest + log(parts[0]);
        }
    }
}

// Whether a place is that of one of the `seen` steps before `here`.
fn is_seen(place: u32, here: u32, seen: u32) -> bool {
    if (seen == 0u) {
        return false;
    }
    let back = ((here - 1u) % params.places + params.places - place) % params.places;
    return back < seen;
}
