// The step of an LSTM layer apart from its product: parameters, bindings, activations, state.
//   i, f, o = sigmoid(xw + U h)   g = tanh(xw + U h)   c = f c + i g   h = o tanh(c)       (gates i f g o)
struct Params {
    hidden: u32,      // H
    quads: u32,       // padded H / 4
    first: u32,       // first sequence of this dispatch
    end: u32,         // one past the last
    ending: u32,      // sequences from here on end with this step
    row: u32,         // the row of sequence `first` in the piece of gates, cells and y
    sequences: u32,   // B, rows of one slot of the state
    slot: u32,        // 0 or 1: the slot of `state` that holds h_{t-1}
    unit_blocks: u32, // workgroups across units
    save: u32,        // 1: gates are wanted, 2: cells too
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;          // [padded H][H] of i f g o
@group(0) @binding(2) var<storage, read_write> state: array<vec4<f32>>;      // [2, B, quads]
@group(0) @binding(3) var<storage, read_write> gates: array<vec4<f32>>;      // [rows, H]: xw, then activated gates
@group(0) @binding(4) var<storage, read_write> y: array<f32>;                // [rows, H]
@group(0) @binding(5) var<storage, read_write> c: array<f32>;                // [B, H]
@group(0) @binding(6) var<storage, read_write> cells: array<f32>;            // [rows, H]
@group(0) @binding(7) var<storage, read_write> h_n: array<f32>;              // [B, H]

// What is left of one unit of one sequence once its row of U h is known.
fn finish(b: u32, unit: u32, product: vec4<f32>) {
    if (b >= params.end || unit >= params.hidden) {
        return;
    }
    let row = params.row + b - params.first;
    let at = row * params.hidden + unit;
    let z = gates[at] + product;
    let i = sigmoid_f32(z.x);
    let f = sigmoid_f32(z.y);
    let g = tanh_f32(z.z);
    let o = sigmoid_f32(z.w);
    let sequence = b * params.hidden + unit;
    let cell = f * c[sequence] + i * g;
    let h = o * tanh_f32(cell);
    c[sequence] = cell;
    y[at] = h;
    let next = ((1u - params.slot) * params.sequences + b) * params.quads + unit / 4u;
    state[next][unit % 4u] = h;
    if (params.save >= 1u) {
        gates[at] = vec4<f32>(i, f, g, o);
    }
    if (params.save >= 2u) {
        cells[at] = cell;
    }
    if (b >= params.ending) {
        h_n[sequence] = h;
    }
}
