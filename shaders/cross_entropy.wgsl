// Cross entropy of softmax(logits) and a target for each row: the loss, whether the row counts, and the logarithm of
// the sum of exponentials. One workgroup a row, grid = rows.
// #import grid
// #import math

struct Params {
    rows: u32,
    columns: u32,
    ignore: u32,     // a target that does not count
    has_ignore: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;           // [rows, columns]
@group(0) @binding(2) var<storage, read> targets: array<u32>;          // [rows]
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;        // [rows]
@group(0) @binding(4) var<storage, read_write> counts: array<f32>;      // [rows]
@group(0) @binding(5) var<storage, read_write> log_sum_exp: array<f32>; // [rows]

var<workgroup> parts: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    // The same for the whole workgroup, so that barriers are reached by all.
    let row = linear_workgroup(workgroup, count);
    let inside = row < params.rows;
    let base = min(row, params.rows - 1u) * params.columns;
    var largest = logits[base];
    for (var j = local; j < params.columns; j += 64u) {
        largest = max(largest, logits[base + j]);
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
        sum += exp_any_f32(logits[base + j] - largest);
    }
    parts[local] = sum;
    workgroupBarrier();
    for (var span = 32u; span > 0u; span /= 2u) {
        if (local < span) {
            parts[local] += parts[local + span];
        }
        workgroupBarrier();
    }
    if (local == 0u && inside) {
        let lse = largest + log(parts[0]);
        let wanted = targets[row];
        let ignored = params.has_ignore != 0u && wanted == params.ignore;
        log_sum_exp[row] = lse;
        counts[row] = select(1.0, 0.0, ignored);
        loss[row] = select(lse - logits[base + min(wanted, params.columns - 1u)], 0.0, ignored);
    }
}
