// The gradient of cross entropy by the logits: (softmax - one-hot target) · dloss, zero where the target does not
// count. One thread a logit of a piece, grid = rows · columns / 256.
// #import grid
// #import math

struct Params {
    rows: u32,
    columns: u32,
    ignore: u32,
    has_ignore: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;      // [rows, columns]
@group(0) @binding(2) var<storage, read> targets: array<u32>;     // [rows]
@group(0) @binding(3) var<storage, read> log_sum_exp: array<f32>; // [rows]
@group(0) @binding(4) var<storage, read> dloss: array<f32>;       // [rows]
@group(0) @binding(5) var<storage, read_write> dlogits: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    let row = i / params.columns;
    if (row >= params.rows) {
        return;
    }
    let wanted = targets[row];
    if (params.has_ignore != 0u && wanted == params.ignore) {
        dlogits[i] = 0.0;
        return;
    }
    let p = exp_any_f32(logits[i] - log_sum_exp[row]);
    let hit = select(0.0, 1.0, i % params.columns == wanted);
    dlogits[i] = (p - hit) * dloss[row];
}
