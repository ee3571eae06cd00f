// Dropout: a value is kept and scaled, or zero, by a random word that depends on seed, step, operation, identity, time
// and column alone. One thread two columns of a row, grid = rows · column pairs / 256.
// #import grid
// #import threefry
// #import table

struct Params {
    rows: u32,      // of this piece
    columns: u32,
    row_start: u32, // the piece's first row of all
    mode: u32,      // 0: rows of a time axis, 1: rows are sequences, 2: rows are numbered
    steps: u32,     // T
    table: u32,     // where the axis's first rows of each step begin in `table`
    samples: u32,   // where the sample ids begin in `table`
    time: u32,      // absolute time of step 0
    key_x: u32,     // threefry(seed, [step, operation])
    key_y: u32,
    threshold: u32, // words whose top 24 bits are below are dropped
    scale: f32,     // 1 / (1 - rate)
    each_step: u32, // 0: one mask for all rows of a sequence
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    let pairs = (params.columns + 1u) / 2u;
    let row = i / pairs;
    if (row >= params.rows) {
        return;
    }
    let pair = i % pairs;
    var identity = params.row_start + row;
    var time = 0u;
    if (params.mode == 0u) {
        let t = step_of(identity, params.table, params.steps);
        time = params.time + t;
        identity = table[params.samples + identity - table[params.table + t]];
    } else if (params.mode == 1u) {
        identity = table[params.samples + identity];
    }
    time = select(0xffffffffu, time, params.each_step != 0u);
    let row_key = threefry(vec2<u32>(params.key_x, params.key_y), vec2<u32>(identity, time));
    let words = threefry(row_key, vec2<u32>(pair, 0u));
    let at = row * params.columns + pair * 2u;
    y[at] = select(0.0, x[at] * params.scale, (words.x >> 8u) >= params.threshold);
    if (pair * 2u + 1u < params.columns) {
        y[at + 1u] = select(0.0, x[at + 1u] * params.scale, (words.y >> 8u) >= params.threshold);
    }
}
