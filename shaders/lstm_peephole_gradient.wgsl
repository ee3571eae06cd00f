// The gradients of peepholes: Σ over rows of the gradients of i and f times the cell before, and of o times the cell; the
// rows of each chunk of 64 timesteps first, in 16 interleaved slices, then the chunks, last first.
// One workgroup 16 units, grid = H / 16.
// #import grid

struct Params {
    hidden: u32,     // H
    directions: u32, // D
    direction: u32,
    row_start: u32,  // the piece holds rows row_start .. row_end of all
    row_end: u32,
    steps: u32,      // T
    table: u32,      // where the axis's first rows of each step begin in `table`
    accumulate: u32, // whether the output holds the sum of later pieces
}

const CHUNK: u32 = 64u;
const SLICES: u32 = 16u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dgates: array<vec4<f32>>; // [rows, D, H] of i f g o
@group(0) @binding(2) var<storage, read> cells: array<f32>;        // [rows, D, H]
@group(0) @binding(3) var<storage, read> previous: array<f32>;     // [rows, H]
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read_write> sums: array<f32>;   // [3, H]

var<workgroup> parts: array<vec3<f32>, 256>;

@compute @workgroup_size(16, 16)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let unit = linear_workgroup(workgroup, count) * 16u + local.x;
    let inside = unit < params.hidden;
    var total = vec3<f32>(0.0);
    if (inside && params.accumulate != 0u) {
        total = vec3<f32>(sums[unit], sums[params.hidden + unit], sums[2u * params.hidden + unit]);
    }
    let chunks = (params.steps + CHUNK - 1u) / CHUNK;
    for (var i = 0u; i < chunks; i++) {
        let chunk = chunks - 1u - i;
        let start = max(params.row_start, table[params.table + chunk * CHUNK]);
        let end = min(params.row_end, table[params.table + min((chunk + 1u) * CHUNK, params.steps)]);
        var sum = vec3<f32>(0.0);
        if (inside) {
            for (var row = start + local.y; row < end; row += SLICES) {
                let at = row - params.row_start;
                let own = (at * params.directions + params.direction) * params.hidden + unit;
                let d = dgates[own];
                let before = previous[at * params.hidden + unit];
                sum += vec3<f32>(d.x * before, d.y * before, d.w * cells[own]);
            }
        }
        parts[local.y * 16u + local.x] = sum;
        workgroupBarrier();
        if (local.y == 0u) {
            for (var slice = 0u; slice < SLICES; slice++) {
                total += parts[slice * 16u + local.x];
            }
        }
        workgroupBarrier();
    }
    if (inside && local.y == 0u) {
        sums[unit] = total.x;
        sums[params.hidden + unit] = total.y;
        sums[2u * params.hidden + unit] = total.z;
    }
}
