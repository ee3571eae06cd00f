// Attention: y of a query is Σ p v over the keys that it sees, p the softmax of their scores; and the logarithm of the sum
// of their exponentials. One workgroup for 256 columns of a row, grid = rows · chunks. Keys come 64 at a time, a thread
// each for the scores, and sums are scaled where a larger score appears, so no score is kept.
// #import grid
// #import math
// #import table
// #import attention

@group(0) @binding(6) var<storage, read_write> y: array<f32>;           // [Nq, columns]
@group(0) @binding(7) var<storage, read_write> log_sum_exp: array<f32>; // [Nq, 1]

var<workgroup> weights: array<f32, 64>;

const LEAST: f32 = -3.4e38;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    // The same for the whole workgroup, so that barriers are reached by all.
    let row = min(group / params.chunks, params.rows - 1u);
    let chunk = group % params.chunks;
    let seen = partners(row, true);
    var largest = LEAST;
    var total = 0.0;
    var sums = vec4<f32>();
    for (var first = seen.first; first < seen.end; first += 64u) {
        let here = min(64u, seen.end - first);
        var own = LEAST;
        if (local < here) {
            own = score(row, partner(seen, first + local));
        }
        weights[local] = own;
        workgroupBarrier();
        let before = largest;
        for (var i = 0u; i < here; i++) {
            largest = max(largest, weights[i]);
        }
        workgroupBarrier();
        weights[local] = exp_any_f32(own - largest);
        workgroupBarrier();
        let shrink = exp_any_f32(before - largest);
        total *= shrink;
        sums *= shrink;
        for (var i = 0u; i < here; i++) {
            let p = weights[i];
            let base = partner(seen, first + i) * params.columns;
            total += p;
            for (var c = 0u; c < 4u; c++) {
                let column = chunk * 256u + c * 64u + local;
                if (column < params.columns) {
                    sums[c] += p * v[base + column];
                }
            }
        }
        workgroupBarrier();
    }
    if (group / params.chunks >= params.rows) {
        return;
    }
    for (var c = 0u; c < 4u; c++) {
        let column = chunk * 256u + c * 64u + local;
        if (column < params.columns) {
            y[row * params.columns + column] = select(sums[c] / total, 0.0, seen.end == 0u);
        }
    }
    if (chunk == 0u && local == 0u) {
        log_sum_exp[row] = select(largest + log(total), 0.0, seen.end == 0u);
    }
}
