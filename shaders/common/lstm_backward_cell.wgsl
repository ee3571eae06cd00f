// The step back of an LSTM layer apart from its product: parameters, bindings, gradients of the gates in their place.
//   dh = dy_t + Uᵀ dgates_{t+1}   (at a sequence's last step: dy_t + dh_n)
//   dc = dc + dh o (1 - tanh²c)   di = dc g i(1-i)   df = dc c_{t-1} f(1-f)   dg = dc i (1-g²)   do = dh tanh c o(1-o)
struct Params {
    hidden: u32,       // H
    first: u32,        // first sequence of this dispatch
    end: u32,          // one past the last
    ongoing: u32,      // sequences before this one have a next step
    row: u32,          // the row of sequence `first` in the piece of gates, cells and dy
    previous: u32,     // the row of sequence `first` at the step before, in its piece of cells
    sequences: u32,    // B, rows of one slot of the state
    slot: u32,         // 0 or 1: the slot of `state` that holds the next step's gate gradients
    unit_blocks: u32,  // workgroups across units
    has_previous: u32, // 1: the cells before are rows of `previous_cells`, 2: they are c_0, 0: they are zero
    has_dy: u32,
    has_dh_n: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read_write> state: array<vec4<f32>>;      // [2, B, H]
@group(0) @binding(3) var<storage, read_write> gates: array<vec4<f32>>;      // [rows, H]: gates, then their gradients
@group(0) @binding(4) var<storage, read> cells: array<f32>;                  // [rows, H]
@group(0) @binding(5) var<storage, read> previous_cells: array<f32>;         // [rows, H] or c_0 [B, H]
@group(0) @binding(6) var<storage, read> dy: array<f32>;                     // [rows, H]
@group(0) @binding(7) var<storage, read> dh_n: array<f32>;                   // [B, H]
@group(0) @binding(8) var<storage, read_write> dc: array<f32>;               // [B, H]

// The gradients of one unit of one sequence once its row of the product with U is known.
fn finish(b: u32, unit: u32, product: f32) {
    if (b >= params.end || unit >= params.hidden) {
        return;
    }
    let row = params.row + b - params.first;
    let at = row * params.hidden + unit;
    let sequence = b * params.hidden + unit;
    var dh = 0.0;
    if (b < params.ongoing) {
        dh = product;
    } else if (params.has_dh_n != 0u) {
        dh = dh_n[sequence];
    }
    if (params.has_dy != 0u) {
        dh += dy[at];
    }
    let a = gates[at];
    let tanh_c = tanh_f32(cells[at]);
    let dcell = dc[sequence] + dh * a.w * (1.0 - tanh_c * tanh_c);
    var before = 0.0;
    if (params.has_previous == 1u) {
        before = previous_cells[(params.previous + b - params.first) * params.hidden + unit];
    } else if (params.has_previous == 2u) {
        before = previous_cells[sequence];
    }
    let d = vec4<f32>(
        dcell * a.z * a.x * (1.0 - a.x),
        dcell * before * a.y * (1.0 - a.y),
        dcell * a.x * (1.0 - a.z * a.z),
        dh * tanh_c * a.w * (1.0 - a.w),
    );
    dc[sequence] = dcell * a.y;
    gates[at] = d;
    state[((1u - params.slot) * params.sequences + b) * params.hidden + unit] = d;
}
