// The step back of an LSTM layer apart from its products: parameters, bindings, what arrives at h, and the gradients of the
// gates in their place. Plain cell:
//   dh = dy_t + Uᵀ dgates_{t+1}   (at a sequence's last step: dy_t + dh_n)
//   dc = dc + dh o (1 - tanh²c)   di = dc g i(1-i)   df = dc c_{t-1} f(1-f)   dg = dc i (1-g²)   do = dh tanh c o(1-o)
struct Params {
    hidden: u32,         // H
    output: u32,         // R
    columns: u32,        // columns of the product: R of what arrives at h, H of what arrives before a projection
    inner: u32,          // vectors of four that the product sums over
    weight_rows: u32,    // rows of one direction's weights, of vectors of four values each
    step: u32,           // number of the first step of this dispatch, which is the last in each direction's order
    steps: u32,          // how many it goes back through
    ahead: u32,          // 1: only sequences with a next step have an operand
    piece_start: u32,    // the bound piece holds these rows of gates, cells, dy and `written`
    piece_end: u32,
    previous_start: u32, // and this one these of the cells before
    previous_end: u32,
    sequences: u32,      // B
    operand: u32,        // where in `state` the product's operand begins
    result: u32,         // where in `state` this step's gradients go
    unit_blocks: u32,    // workgroups across columns
    row_blocks: u32,     // workgroups across sequences
    directions: u32,     // D
    reverse: u32,        // bit d: direction d runs back in time
    has_c0: u32,
    has_dy: u32,
    offsets: u32,        // where the first rows of each step begin in `table`
    lengths: u32,        // where the lengths begin
    start: u32,          // absolute time of step 0
    dropout_x: u32,      // keys of the layer's random operations: recurrent dropout, zoneout of h, of c
    dropout_y: u32,
    zoneout_h_x: u32,
    zoneout_h_y: u32,
    zoneout_c_x: u32,
    zoneout_c_y: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read_write> state: array<vec4<f32>>; // slots of [D, B, H], one of [D, B, padded R / 4]
@group(0) @binding(3) var<storage, read_write> gates: array<vec4<f32>>; // [rows, D, H]: as saved, then their gradients
@group(0) @binding(4) var<storage, read> previous_cells: array<f32>;    // [rows, D, H] or c_0 [B, D, H]
@group(0) @binding(5) var<storage, read> dy: array<f32>;                // [rows, D, R]
@group(0) @binding(6) var<storage, read_write> carry: array<f32>;       // dc [B, D, H], then dh_n or what zoneout hands on [B, D, R]
@group(0) @binding(7) var<storage, read> table: array<u32>;             // sample ids, first rows, lengths
@group(0) @binding(8) var<storage, read> peepholes: array<vec4<f32>>;   // [D, H] of p_i p_f p_o
@group(0) @binding(9) var<storage, read_write> written: array<f32>;     // what arrives at h [rows, D, R], before a projection [rows, D, H], or at h_0 [B, D, R]

// Whether what arrives before the projection is left in `written` for another kernel.
override NORMED: bool = false;

// dy of one element.
fn dy_of(d: u32, column: u32, row: u32) -> f32 {
    if (params.has_dy == 0u) {
        return 0.0;
    }
    return dy[((row - params.piece_start) * params.directions + d) * params.output + column];
}

// What arrives at h of one element, from its row of the product and dy; zoneout's part is set aside.
fn arrive(b: u32, d: u32, column: u32, step: u32, product: f32, from_y: f32, time: u32) -> f32 {
    let sequence = (b * params.directions + d) * params.output + column;
    let carried = params.sequences * params.directions * params.hidden + sequence;
    let unit = d * params.output + column;
    var dh = 0.0;
    if (table[params.lengths + b] > step + 1u) {
        let next_time = select(time + 1u, time - 1u, reversed(d));
        let key = vec2<u32>(params.dropout_x, params.dropout_y);
        dh = product * recurrent_mask(key, table[b], next_time, unit);
        if (ZONEOUT_H > 0.0) {
            dh += carry[carried];
        }
        dh = within(dh, GRADIENT_CLIP);
    } else {
        dh = carry[carried];
    }
    dh += from_y;
    if (ZONEOUT_H > 0.0) {
        let key = vec2<u32>(params.zoneout_h_x, params.zoneout_h_y);
        let stay = stays(key, table[b], time, unit, ZONEOUT_H);
        carry[carried] = stay * dh;
        dh *= 1.0 - stay;
    }
    return dh;
}

// What one unit reads at a step to differentiate its gates.
struct Saved {
    gates: vec4<f32>,
    before: f32, // c of the step before
    dc: f32,     // what the step after hands on
}

fn saved_of(b: u32, d: u32, unit: u32, step: u32, row: u32) -> Saved {
    let sequence = (b * params.directions + d) * params.hidden + unit;
    var before = 0.0;
    if (step > 0u) {
        let previous = row_of(b, d, step - 1u);
        before = previous_cells[((previous - params.previous_start) * params.directions + d) * params.hidden + unit];
    } else if (params.has_c0 != 0u) {
        before = previous_cells[sequence];
    }
    return Saved(gates[((row - params.piece_start) * params.directions + d) * params.hidden + unit], before, carry[sequence]);
}

// The gates' gradients of one unit from that of its h before projection and zoneout.
fn differentiate(b: u32, d: u32, unit: u32, saved: Saved, dh: f32, row: u32, time: u32) -> vec4<f32> {
    let at = ((row - params.piece_start) * params.directions + d) * params.hidden + unit;
    let sequence = (b * params.directions + d) * params.hidden + unit;
    let before = saved.before;
    let here = gates_of(saved.gates);
    let a = here.a;
    let slope = here.slope;
    let raw = a.y * before + a.x * a.z;
    let candidate = within(raw, CELL_CLIP);
    let value = activate(OUTPUT, OUTPUT_ALPHA, OUTPUT_BETA, candidate);
    var output_slope = activation_slope(OUTPUT, OUTPUT_ALPHA, OUTPUT_BETA, candidate);
    if (OUTPUT == 3u && OUTPUT_ALPHA == 1.0 && OUTPUT_BETA == 1.0) {
        output_slope = 1.0 - value * value; // the same, without a second tanh
    }
    let dz_o = dh * value * slope.w;
    var peephole = vec4<f32>(0.0);
    if (PEEPHOLES) {
        peephole = peepholes[d * params.hidden + unit];
    }
    let dc = saved.dc + peephole.z * dz_o;
    var stay = 0.0;
    if (ZONEOUT_C > 0.0) {
        let key = vec2<u32>(params.zoneout_c_x, params.zoneout_c_y);
        stay = stays(key, table[b], time, d * params.hidden + unit, ZONEOUT_C);
    }
    var dcell = dh * a.w * output_slope + (1.0 - stay) * dc;
    if (CELL_CLIP > 0.0 && abs(raw) >= CELL_CLIP) {
        dcell = 0.0;
    }
    let df = dcell * before;
    var dz = vec4<f32>(dcell * a.z * slope.x, df * slope.y, dcell * a.x * slope.z, dz_o);
    if (COUPLED) {
        dz.x = (dcell * a.z - df) * slope.x;
        dz.y = 0.0;
    }
    carry[sequence] = stay * dc + dcell * a.y + peephole.x * dz.x + peephole.y * dz.y;
    gates[at] = dz;
    return dz;
}

// The gradients of one unit's gates, if the step is one of the sequence's and its rows are bound.
struct Gradient {
    dz: vec4<f32>,
    is: bool,
}

// Where the gradients of one unit's gates go in `state`.
fn result_of(b: u32, d: u32, unit: u32) -> u32 {
    return params.result + (d * params.sequences + b) * params.hidden + unit;
}

// Whether sequence `b` has the step.
fn runs(b: u32, step: u32) -> bool {
    return b < params.sequences && table[params.lengths + min(b, params.sequences - 1u)] > step;
}

// Whether the bound pieces hold the step of sequence `b`.
fn holds(b: u32, d: u32, step: u32, row: u32) -> bool {
    var held = row >= params.piece_start && row < params.piece_end;
    if (step > 0u && params.previous_end > 0u) {
        let previous = row_of(b, d, step - 1u);
        held = held && previous >= params.previous_start && previous < params.previous_end;
    }
    return held;
}

// What one element of the fused step reads besides its product.
struct Ready {
    is: bool, // whether the step is one of the sequence's and its rows are bound
    row: u32,
    time: u32, // absolute
    dy: f32,
    saved: Saved,
}

fn ready_for(b: u32, d: u32, unit: u32, step: u32) -> Ready {
    var ready = Ready();
    if (!runs(b, step) || unit >= params.columns) {
        return ready;
    }
    let t = time_of(b, d, step);
    ready.row = table[params.offsets + t] + b;
    ready.time = params.start + t;
    if (!holds(b, d, step, ready.row)) {
        return ready;
    }
    ready.is = true;
    ready.dy = dy_of(d, unit, ready.row);
    ready.saved = saved_of(b, d, unit, step, ready.row);
    return ready;
}

// One element of the fused step: what arrives at h, then the gates.
fn finish_step(b: u32, d: u32, unit: u32, step: u32, product: f32) -> Gradient {
    return finish_from(ready_for(b, d, unit, step), b, d, unit, step, product);
}

fn finish_from(ready: Ready, b: u32, d: u32, unit: u32, step: u32, product: f32) -> Gradient {
    if (!ready.is) {
        return Gradient(vec4<f32>(0.0), false);
    }
    let dh = arrive(b, d, unit, step, product, ready.dy, ready.time);
    return Gradient(differentiate(b, d, unit, ready.saved, dh, ready.row, ready.time), true);
}

// One element of what arrives at a projected h; it is the operand of the next product.
fn finish_arrive(b: u32, d: u32, column: u32, step: u32, product: f32) {
    if (!runs(b, step) || column >= params.columns) {
        return;
    }
    let t = time_of(b, d, step);
    let row = table[params.offsets + t] + b;
    if (row < params.piece_start || row >= params.piece_end) {
        return;
    }
    let dh = arrive(b, d, column, step, product, dy_of(d, column, row), params.start + t);
    written[((row - params.piece_start) * params.directions + d) * params.output + column] = dh;
    let quads = (params.output + 3u) / 4u;
    state[params.result + (d * params.sequences + b) * quads + column / 4u][column % 4u] = dh;
}

// The gates of one unit below a projection.
fn finish_unproject(b: u32, d: u32, unit: u32, step: u32, product: f32) {
    if (!runs(b, step) || unit >= params.columns) {
        return;
    }
    let t = time_of(b, d, step);
    let row = table[params.offsets + t] + b;
    if (NORMED) {
        if (row >= params.piece_start && row < params.piece_end) {
            written[((row - params.piece_start) * params.directions + d) * params.hidden + unit] = product;
        }
    } else if (holds(b, d, step, row)) {
        let saved = saved_of(b, d, unit, step, row);
        state[result_of(b, d, unit)] = differentiate(b, d, unit, saved, product, row, params.start + t);
    }
}

// One element of the gradient of h_0: the product of the first step's gate gradients under the mask, and what zoneout hands
// on; dh_n for sequences of no steps.
fn finish_initial(b: u32, d: u32, column: u32, product: f32) {
    if (b >= params.sequences || column >= params.columns) {
        return;
    }
    let at = (b * params.directions + d) * params.output + column;
    let carried = carry[params.sequences * params.directions * params.hidden + at];
    if (!runs(b, 0u)) {
        written[at] = carried;
        return;
    }
    let key = vec2<u32>(params.dropout_x, params.dropout_y);
    let time = params.start + time_of(b, d, 0u);
    var sum = product * recurrent_mask(key, table[b], time, d * params.output + column);
    if (ZONEOUT_H > 0.0) {
        sum += carried;
    }
    written[at] = within(sum, GRADIENT_CLIP);
}
