// The sum over rows of [rows, columns] (or of squares): the rows of each chunk of 64 timesteps first, in 16 interleaved
// slices, then the chunks, last first. One workgroup 16 columns, grid = columns / 16.
// #import grid

struct Params {
    columns: u32,
    row_start: u32,  // the piece holds rows row_start .. row_end of all
    row_end: u32,
    steps: u32,      // T; 0 where the rows are no time axis, and so one chunk
    table: u32,      // where the axis's first rows of each step begin in `table`
    units: u32,      // H where columns are gates unit by unit: column 4u+g is stored as g·H+u; else 0
    accumulate: u32, // whether the output holds the sum of later pieces
    square: u32,
    stride: u32,     // values from one row to the next
    first: u32,      // where the columns that count begin
}

const CHUNK: u32 = 64u;
const SLICES: u32 = 16u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;

var<workgroup> parts: array<f32, 256>;

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let column = linear_workgroup(workgroup, count) * 16u + local.x;
    let inside = column < params.columns;
    let stored = select(column, (column & 3u) * params.units + (column >> 2u), params.units > 0u);
    var total = 0.0;
    if (inside && params.accumulate != 0u) {
        total = sums[stored];
    }
    let chunks = select((params.steps + CHUNK - 1u) / CHUNK, 1u, params.steps == 0u);
    for (var i = 0u; i < chunks; i++) {
        var start = params.row_start;
        var end = params.row_end;
        if (params.steps > 0u) {
            let chunk = chunks - 1u - i;
            start = max(start, table[params.table + chunk * CHUNK]);
            end = min(end, table[params.table + min((chunk + 1u) * CHUNK, params.steps)]);
        }
        var sum = 0.0;
        if (inside) {
            for (var row = start + local.y; row < end; row += SLICES) {
                let value = x[(row - params.row_start) * params.stride + params.first + column];
                sum += select(value, value * value, params.square != 0u);
            }
        }
        parts[local.y * 16u + local.x] = sum;
        workgroupBarrier();
        if (local.y == 0u) {
            var part = 0.0;
            for (var slice = 0u; slice < SLICES; slice++) {
                part += parts[slice * 16u + local.x];
            }
            total += part;
        }
        workgroupBarrier();
    }
    if (inside && local.y == 0u) {
        sums[stored] = total;
    }
}
