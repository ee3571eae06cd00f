// A gradient of attention. With p of a query and a key and dscore = p (dy · v - Σ dy y): dq is Σ dscore ∂score/∂q over keys,
// ds of a query likewise, dk the sum over queries, and dv Σ p dy. One workgroup for 256 columns of a row, grid = rows ·
// chunks. Partners come 64 at a time, a thread each for p and dscore.
// #import grid
// #import math
// #import table
// #import attention

@group(0) @binding(6) var<storage, read> given: array<f32>;          // of each query log-sum-exp, Σ dy y, then dy: [Nq, 2 + columns]
@group(0) @binding(7) var<storage, read_write> gradient: array<f32>; // [rows, width]

// 0: of queries, 1: of the scale, a row a query, 2: of keys, 3: of values.
override PART: u32 = 0u;

var<workgroup> weights: array<f32, 64>;

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
    let of_queries = PART < 2u;
    let width = select(params.features, params.columns, PART == 3u);
    let stride = params.columns + 2u;
    let seen = partners(row, of_queries);
    var sums = vec4<f32>();
    for (var first = seen.first; first < seen.end; first += 64u) {
        let here = min(64u, seen.end - first);
        if (local < here) {
            let other = partner(seen, first + local);
            let query = select(other, row, of_queries);
            let key = select(row, other, of_queries);
            let p = exp_any_f32(score(query, key) - given[query * stride]);
            var weight = p;
            if (PART != 3u) {
                var product = 0.0;
                for (var c = 0u; c < params.columns; c++) {
                    product += given[query * stride + 2u + c] * v[key * params.columns + c];
                }
                weight = p * (product - given[query * stride + 1u]);
            }
            weights[local] = weight;
        }
        workgroupBarrier();
        for (var i = 0u; i < here; i++) {
            let other = partner(seen, first + i);
            let query = select(other, row, of_queries);
            let key = select(row, other, of_queries);
            for (var c = 0u; c < 4u; c++) {
                let column = chunk * 256u + c * 64u + local;
                if (column < width) {
                    sums[c] += weights[i] * slope(query, key, column, stride);
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
        if (column < width) {
            gradient[row * width + column] = sums[c];
        }
    }
}

// What a column of the gradient is multiplied by.
fn slope(query: u32, key: u32, column: u32, stride: u32) -> f32 {
    if (PART == 3u) {
        return given[query * stride + 2u + column];
    }
    let a = query * params.features + column;
    let b = key * params.features + column;
    if (ADDITIVE) {
        let u = tanh_f32(q[a] + k[b]);
        if (PART == 1u) {
            return u;
        }
        return scale_of(column) * (1.0 - u * u);
    }
    if (PART == 2u) {
        return q[a];
    }
    return k[b];
}
