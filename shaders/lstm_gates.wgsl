// Products that a layer takes in place of x, from blocks i f g o into gates unit by unit, with biases (`into`); and back.
// One thread a unit of a row and direction, grid = rows · D · H / 256.
// #import grid

struct Params {
    rows: u32,       // of this piece
    directions: u32, // D
    hidden: u32,     // H
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> blocks: array<f32>;            // [rows, D, 4, H]
@group(0) @binding(2) var<storage, read_write> gates: array<vec4<f32>>; // [rows, D, H] of i f g o
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;        // [D, H]
@group(0) @binding(1) var<storage, read> units: array<vec4<f32>>;       // of `back`: [rows, D, H] of i f g o
@group(0) @binding(2) var<storage, read_write> result: array<f32>;      // of `back`: [rows, D, 4, H]

@compute @workgroup_size(256)
fn into(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    let of_row = params.directions * params.hidden;
    if (i >= params.rows * of_row) {
        return;
    }
    let h = params.hidden;
    let at = i / h * 4u * h + i % h;
    let gate = vec4<f32>(blocks[at], blocks[at + h], blocks[at + 2u * h], blocks[at + 3u * h]);
    gates[i] = gate + bias[i % of_row];
}

@compute @workgroup_size(256)
fn back(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    if (i >= params.rows * params.directions * params.hidden) {
        return;
    }
    let h = params.hidden;
    let at = i / h * 4u * h + i % h;
    let gate = units[i];
    result[at] = gate.x;
    result[at + h] = gate.y;
    result[at + 2u * h] = gate.z;
    result[at + 3u * h] = gate.w;
}
