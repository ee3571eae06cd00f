// The step of an LSTM layer apart from its product: parameters, bindings, activations, states.
struct Params {
    hidden: u32,      // H
    output: u32,      // R
    quads: u32,       // padded R / 4
    step: u32,        // number of the first step of this dispatch in each direction's order
    step_end: u32,    // one past the last
    piece_start: u32, // the bound piece holds these rows of gates, cells and y
    piece_end: u32,
    sequences: u32,   // B
    slot: u32,        // 0 or 1: the slot of `state` that holds what was h at the step before
    unit_blocks: u32, // workgroups across units
    row_blocks: u32,  // workgroups across sequences
    directions: u32,  // D
    reverse: u32,     // bit d: direction d runs back in time
    save: u32,        // 1: gates are wanted, 2: cells too
    offsets: u32,     // where the first rows of each step begin in `table`
    lengths: u32,     // where the lengths begin
    start: u32,       // absolute time of step 0
    dropout_x: u32,   // keys of the layer's random operations: recurrent dropout, zoneout of h, of c
    dropout_y: u32,
    zoneout_h_x: u32,
    zoneout_h_y: u32,
    zoneout_c_x: u32,
    zoneout_c_y: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<Weights>;       // [D, padded R + 1][H] of i f g o; last peepholes
@group(0) @binding(2) var<storage, read_write> state: array<vec4<f32>>; // [2, D, B, quads]
@group(0) @binding(3) var<storage, read_write> gates: array<vec4<f32>>; // [rows, D, H]: xw, then what is saved
@group(0) @binding(4) var<storage, read_write> y: array<f32>;           // [rows, D, R]; [rows, D, H] before a projection
@group(0) @binding(5) var<storage, read_write> c: array<f32>;           // [B, D, H]
@group(0) @binding(6) var<storage, read_write> cells: array<f32>;       // [rows, D, H]
@group(0) @binding(7) var<storage, read_write> h_n: array<f32>;         // [B, D, R]
@group(0) @binding(8) var<storage, read> table: array<u32>;             // sample ids, first rows, lengths

// Whether y takes h before its projection, and another kernel goes on.
override PROJECTS: bool = false;
// Whether y takes the product alone, [rows, D, H] of i f g o, which another kernel normalises.
override NORMED: bool = false;

// The first row of direction d's weights.
fn weights_of(d: u32) -> u32 {
    return d * (4u * params.quads + 1u) * params.hidden;
}

// What the next step reads of one element of h, if there is one and this kernel makes it.
struct Next {
    h: f32,
    goes_on: bool,
}

// What one unit of one sequence reads at a step besides its product.
struct Before {
    is: bool,      // whether the step is one of the sequence's and its row is bound
    at: u32,       // the unit's place in the bound piece
    length: u32,   // of the sequence
    sample: u32,
    time: u32,     // absolute
    xw: vec4<f32>, // what x adds to the gates, with biases
    c: f32,
}

fn before(b: u32, d: u32, unit: u32, step: u32) -> Before {
    var found = Before();
    if (b >= params.sequences || unit >= params.hidden) {
        return found;
    }
    found.length = table[params.lengths + b];
    if (found.length <= step) {
        return found;
    }
    let t = time_of(b, d, step);
    let row = table[params.offsets + t] + b;
    if (row < params.piece_start || row >= params.piece_end) {
        return found;
    }
    found.is = true;
    found.at = ((row - params.piece_start) * params.directions + d) * params.hidden + unit;
    if (!NORMED) {
        found.sample = table[b];
        found.time = params.start + t;
        found.xw = gates[found.at];
        found.c = c[(b * params.directions + d) * params.hidden + unit];
    }
    return found;
}

// What is left of one unit of one sequence at a step once its row of U h is known.
fn finish(b: u32, d: u32, unit: u32, step: u32, product: vec4<f32>) -> Next {
    return finish_from(before(b, d, unit, step), b, d, unit, step, product);
}

fn finish_from(found: Before, b: u32, d: u32, unit: u32, step: u32, product: vec4<f32>) -> Next {
    let nothing = Next(0.0, false);
    if (!found.is) {
        return nothing;
    }
    let at = found.at;
    let sequence = (b * params.directions + d) * params.hidden + unit;
    if (NORMED) {
        for (var gate = 0u; gate < 4u; gate++) {
            y[at * 4u + gate] = product[gate];
        }
        return nothing;
    }
    let length = found.length;
    let sample = found.sample;
    let time = found.time;
    let c_prev = found.c;
    var z = found.xw + product;
    var peephole = vec4<f32>(0.0);
    if (PEEPHOLES) {
        peephole = four(weights[weights_of(d) + 4u * params.quads * params.hidden + unit]);
        z.x += peephole.x * c_prev;
        z.y += peephole.y * c_prev;
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
        let stay = stays(key, sample, time, d * params.hidden + unit, ZONEOUT_C);
        cell = stay * c_prev + (1.0 - stay) * candidate;
    }
    if (PEEPHOLES) {
        z.w += peephole.z * cell;
    }
    let o = gate_value(z.w);
    var h = o * activate(OUTPUT, OUTPUT_ALPHA, OUTPUT_BETA, candidate);
    c[sequence] = cell;
    if (params.save >= 1u) {
        gates[at] = select(z, vec4<f32>(i, f, g, o), SAVES_ACTIVATED);
    }
    if (params.save >= 2u) {
        cells[at] = cell;
    }
    if (PROJECTS) {
        y[at] = h;
        return nothing;
    }
    if (ZONEOUT_H > 0.0) {
        // h_n holds the running h.
        let key = vec2<u32>(params.zoneout_h_x, params.zoneout_h_y);
        let stay = stays(key, sample, time, d * params.output + unit, ZONEOUT_H);
        h = stay * h_n[sequence] + (1.0 - stay) * h;
    }
    y[at] = h;
    if (ZONEOUT_H > 0.0 || length == step + 1u) {
        h_n[sequence] = h;
    }
    // The mask is that of the step that reads it.
    let next_time = select(time + 1u, time - 1u, reversed(d));
    let mask = recurrent_mask(vec2<u32>(params.dropout_x, params.dropout_y), sample, next_time, d * params.output + unit);
    return Next(h * mask, true);
}
