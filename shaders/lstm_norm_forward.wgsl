// One timestep of a normalised LSTM cell (Ba et al. 2016), from the recurrent product of the step: the product is
// normalised over its 4H values, gates and cell follow, and the cell is normalised over its H units before h is made of it.
// One workgroup a sequence and direction, grid = sequences · D; a thread keeps to its own units.
// #import grid
// #import math
// #import activation
// #import threefry
// #import lstm_options
// #import lstm_rows
// #import lstm_norm_place
// #import workgroup_sum

struct Params {
    hidden: u32,      // H
    running: u32,     // sequences that take the step
    step: u32,
    piece_start: u32, // the bound piece holds these rows
    piece_end: u32,
    directions: u32,  // D
    reverse: u32,     // bit d: direction d runs back in time
    save_cells: u32,
    offsets: u32,     // where the first rows of each step begin in `table`
    lengths: u32,     // where the lengths begin
    start: u32,       // absolute time of step 0
    zoneout_c_x: u32, // key of the zoneout of c
    zoneout_c_y: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> product: array<vec4<f32>>; // [rows, D, H] of U h
@group(0) @binding(2) var<storage, read_write> gates: array<vec4<f32>>;   // [rows, D, H]: W x, then what is saved
@group(0) @binding(3) var<storage, read_write> y: array<f32>;             // [rows, D, H]: h before projection and zoneout
@group(0) @binding(4) var<storage, read_write> c: array<f32>;             // [B, D, H]
@group(0) @binding(5) var<storage, read_write> cells: array<f32>;         // [rows, D, H]
@group(0) @binding(6) var<storage, read> table: array<u32>;               // sample ids, first rows, lengths
@group(0) @binding(7) var<storage, read> norms: array<vec4<f32>>;         // [D, H, 3]: gain i f g o; the cell's gain, bias; p_i p_f p_o

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
    let base = place.base;
    let sequence = (b * params.directions + d) * params.hidden;
    // Where the piece does not hold the row no unit is computed.
    let units = select(0u, params.hidden, place.held);
    var sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        sum += dot(product[base + u], vec4<f32>(1.0));
    }
    let mean = workgroup_sum(local, sum) / f32(4u * params.hidden);
    sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        let away = product[base + u] - vec4<f32>(mean);
        sum += dot(away, away);
    }
    let factor = 1.0 / sqrt(workgroup_sum(local, sum) / f32(4u * params.hidden) + params.epsilon);
    sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        let norm = (d * params.hidden + u) * 3u;
        let c_prev = c[sequence + u];
        var z = gates[base + u] + (product[base + u] - vec4<f32>(mean)) * factor * norms[norm];
        if (PEEPHOLES) {
            z.x += norms[norm + 2u].x * c_prev;
            z.y += norms[norm + 2u].y * c_prev;
        }
        let i = gate_value(z.x);
        var f = 1.0 - i;
        if (!COUPLED) {
            f = gate_value(z.y);
        }
        let g = candidate_value(z.z);
        let candidate = within(f * c_prev + i * g, CELL_CLIP);
        var cell = candidate;
        if (ZONEOUT_C > 0.0) {
            let key = vec2<u32>(params.zoneout_c_x, params.zoneout_c_y);
            let stay = stays(key, table[b], params.start + t, d * params.hidden + u, ZONEOUT_C);
            cell = stay * c_prev + (1.0 - stay) * candidate;
        }
        if (PEEPHOLES) {
            z.w += norms[norm + 2u].z * cell;
        }
        c[sequence + u] = cell;
        if (params.save_cells != 0u) {
            cells[base + u] = cell;
        }
        gates[base + u] = select(z, vec4<f32>(i, f, g, gate_value(z.w)), SAVES_ACTIVATED);
        y[base + u] = candidate;
        sum += candidate;
    }
    let centre = workgroup_sum(local, sum) / f32(params.hidden);
    sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        let away = y[base + u] - centre;
        sum += away * away;
    }
    let scale = 1.0 / sqrt(workgroup_sum(local, sum) / f32(params.hidden) + params.epsilon);
    for (var u = local; u < units; u += 64u) {
        let norm = norms[(d * params.hidden + u) * 3u + 1u];
        let argument = (y[base + u] - centre) * scale * norm.x + norm.y;
        var o = gates[base + u].w;
        if (!SAVES_ACTIVATED) {
            o = gate_value(o);
        }
        y[base + u] = o * activate(OUTPUT, OUTPUT_ALPHA, OUTPUT_BETA, argument);
    }
}
