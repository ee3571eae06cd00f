// One timestep back through a normalised LSTM cell: from what arrives at h before its projection, the gradients of the
// gates, of the cell before the step, and what gain and bias of the cell need. The forms are those of
// common/lstm_backward_cell.wgsl, with n = (c - mean) / deviation, a = n gain + bias in the place of the cell at the output,
// and dc = (dn - mean(dn) - n mean(dn n)) / deviation.
// One workgroup a sequence and direction, grid = sequences · D; a thread keeps to its own units.
// #import grid
// #import math
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_slopes
// #import lstm_rows
// #import lstm_norm_place
// #import workgroup_sum

struct Params {
    hidden: u32,         // H
    running: u32,        // sequences that take the step
    step: u32,
    piece_start: u32,    // the bound piece holds these rows
    piece_end: u32,
    previous_start: u32, // and this one these of the cells before
    previous_end: u32,
    directions: u32,     // D
    reverse: u32,        // bit d: direction d runs back in time
    has_c0: u32,
    offsets: u32,        // where the first rows of each step begin in `table`
    lengths: u32,        // where the lengths begin
    start: u32,          // absolute time of step 0
    zoneout_c_x: u32,    // key of the zoneout of c
    zoneout_c_y: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> gates: array<vec4<f32>>;  // [rows, D, H]: as saved, then their gradients
@group(0) @binding(2) var<storage, read> previous_cells: array<f32>;     // [rows, D, H] or c_0 [B, D, H]
@group(0) @binding(3) var<storage, read_write> carry: array<f32>;        // dc [B, D, H]
@group(0) @binding(4) var<storage, read> table: array<u32>;              // sample ids, first rows, lengths
@group(0) @binding(5) var<storage, read> norms: array<vec4<f32>>;        // [D, H, 3]: gain i f g o; the cell's gain, bias; p_i p_f p_o
@group(0) @binding(6) var<storage, read_write> dcell: array<f32>;        // [rows, D, H]: what arrives, then the gradient of a
@group(0) @binding(7) var<storage, read_write> cell_normed: array<f32>;  // [rows, D, H]: n

fn cell_before(b: u32, d: u32, unit: u32) -> f32 {
    if (params.step > 0u) {
        let previous = row_of(b, d, params.step - 1u);
        return previous_cells[((previous - params.previous_start) * params.directions + d) * params.hidden + unit];
    }
    if (params.has_c0 != 0u) {
        return previous_cells[(b * params.directions + d) * params.hidden + unit];
    }
    return 0.0;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(linear_workgroup(workgroup, count));
    let b = place.b;
    let d = place.d;
    let t = time_of(b, d, params.step);
    var held = place.held;
    if (params.step > 0u && params.previous_end > 0u) {
        let previous = row_of(b, d, params.step - 1u);
        held = held && previous >= params.previous_start && previous < params.previous_end;
    }
    let base = place.base;
    let sequence = (b * params.directions + d) * params.hidden;
    // Where the pieces do not hold the rows no unit is computed.
    let units = select(0u, params.hidden, held);
    var sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        let here = gates_of(gates[base + u]);
        let candidate = within(here.a.y * cell_before(b, d, u) + here.a.x * here.a.z, CELL_CLIP);
        cell_normed[base + u] = candidate;
        sum += candidate;
    }
    let mean = workgroup_sum(local, sum) / f32(params.hidden);
    sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        let away = cell_normed[base + u] - mean;
        sum += away * away;
    }
    let factor = 1.0 / sqrt(workgroup_sum(local, sum) / f32(params.hidden) + params.epsilon);
    var along = 0.0;
    sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        let z = gates[base + u];
        let here = gates_of(z);
        let norm = norms[(d * params.hidden + u) * 3u + 1u];
        let n = (cell_normed[base + u] - mean) * factor;
        let argument = n * norm.x + norm.y;
        let dh = dcell[base + u];
        let given = dh * here.a.w * activation_slope(OUTPUT, OUTPUT_ALPHA, OUTPUT_BETA, argument);
        // The output gate is done with: its gradient takes its place.
        let dz_o = dh * activate(OUTPUT, OUTPUT_ALPHA, OUTPUT_BETA, argument) * here.slope.w;
        gates[base + u] = vec4<f32>(z.xyz, dz_o);
        cell_normed[base + u] = n;
        dcell[base + u] = given;
        sum += given * norm.x;
        along += given * norm.x * n;
    }
    let dn_mean = workgroup_sum(local, sum) / f32(params.hidden);
    let dn_along = workgroup_sum(local, along) / f32(params.hidden);
    for (var u = local; u < units; u += 64u) {
        let norm = (d * params.hidden + u) * 3u;
        let z = gates[base + u];
        let here = gates_of(z);
        let before = cell_before(b, d, u);
        let dz_o = z.w;
        var peephole = vec4<f32>(0.0);
        if (PEEPHOLES) {
            peephole = norms[norm + 2u];
        }
        let dc = carry[sequence + u] + peephole.z * dz_o;
        var stay = 0.0;
        if (ZONEOUT_C > 0.0) {
            let key = vec2<u32>(params.zoneout_c_x, params.zoneout_c_y);
            stay = stays(key, table[b], params.start + t, d * params.hidden + u, ZONEOUT_C);
        }
        let dn = dcell[base + u] * norms[norm + 1u].x;
        var draw = factor * (dn - dn_mean - cell_normed[base + u] * dn_along) + (1.0 - stay) * dc;
        if (CELL_CLIP > 0.0 && abs(here.a.y * before + here.a.x * here.a.z) >= CELL_CLIP) {
            draw = 0.0;
        }
        let df = draw * before;
        var dz = vec4<f32>(draw * here.a.z * here.slope.x, df * here.slope.y, draw * here.a.x * here.slope.z, dz_o);
        if (COUPLED) {
            dz.x = (draw * here.a.z - df) * here.slope.x;
            dz.y = 0.0;
        }
        carry[sequence + u] = stay * dc + draw * here.a.y + peephole.x * dz.x + peephole.y * dz.y;
        gates[base + u] = dz;
    }
}
