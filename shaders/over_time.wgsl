// The sum or the largest value over the steps of each sequence; zero for no step.
// One thread a column of a sequence, grid = B · columns / 64.
// #import grid

struct Params {
    sequences: u32, // B
    columns: u32,
    row_start: u32, // the piece holds rows row_start .. row_end of all
    row_end: u32,
    offsets: u32,   // where the first rows of each step begin in `table`
    lengths: u32,   // where the lengths begin
    largest: u32,   // 1: the largest, 0: the sum
    begins: u32,    // whether this is the first piece
    places: u32,    // where the place of each sequence on the axis begins
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>; // [B, columns]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 64u + local;
    if (i >= params.sequences * params.columns) {
        return;
    }
    let b = table[params.places + i / params.columns];
    var value = 0.0;
    if (params.begins == 0u) {
        value = y[i];
    }
    let length = table[params.lengths + b];
    for (var t = 0u; t < length; t++) {
        let row = table[params.offsets + t] + b;
        if (row < params.row_start || row >= params.row_end) {
            continue;
        }
        let here = x[(row - params.row_start) * params.columns + i % params.columns];
        if (params.largest != 0u) {
            value = select(max(value, here), here, t == 0u);
        } else {
            value += here;
        }
    }
    y[i] = value;
}
