// e^x over the sum of each row's. One workgroup a row, grid = rows.
// #import grid
// #import math

struct Params {
    rows: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;       // [rows, columns]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [rows, columns]

var<workgroup> parts: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    // The same for the whole workgroup, so that barriers are reached by all.
    let row = linear_workgroup(workgroup, count);
    let base = min(row, params.rows - 1u) * params.columns;
    var largest = x[base];
    for (var j = local; j < params.columns; j += 64u) {
        largest = max(largest, x[base + j]);
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
    for (var j = local; j < params.columns; j += 64u) {
        sum += exp_any_f32(x[base + j] - largest);
    }
    parts[local] = sum;
    workgroupBarrier();
    for (var span = 32u; span > 0u; span /= 2u) {
        if (local < span) {
            parts[local] += parts[local + span];
        }
        workgroupBarrier();
    }
    if (row >= params.rows) {
        return;
    }
    let scale = 1.0 / parts[0];
    for (var j = local; j < params.columns; j += 64u) {
        y[base + j] = exp_any_f32(x[base + j] - largest) * scale;
    }
}
