// The gradient of an embedding's table, or of a slab of it: for each entry, the sum of dy over the rows that read it, in the order of
// `sorted` (chunks of 64 timesteps last first). One thread a value of the table, grid = V · D / 256.
// #import grid

struct Params {
    len: u32,        // V·D
    columns: u32,    // D
    table_first: u32, // the first row of the slab of the table
    row_start: u32,  // the piece of dy holds rows row_start .. row_end of all
    row_end: u32,
    accumulate: u32, // whether the table holds the sum of other pieces
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> sorted: array<u32>;  // rows by token
@group(0) @binding(2) var<storage, read> starts: array<u32>;  // [V + 1]: where each token's rows begin in `sorted`
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dtable: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    if (i >= params.len) {
        return;
    }
    let token = params.table_first + i / params.columns;
    let column = i % params.columns;
    var sum = 0.0;
    if (params.accumulate != 0u) {
        sum = dtable[i];
    }
    let end = starts[token + 1u];
    for (var at = starts[token]; at < end; at++) {
        let row = sorted[at];
        if (row >= params.row_start && row < params.row_end) {
            sum += dy[(row - params.row_start) * params.columns + column];
        }
    }
    dtable[i] = sum;
}
