// One timestep back through the normalisation of a recurrent product: with n the normalised product and dn = dgates gain,
// dproduct = (dn - mean(dn) - n mean(dn n)) / deviation, which is what the step before multiplies by U, and dgates n, whose
// sum over rows is the gain's gradient.
// One workgroup a sequence and direction, grid = sequences · D; a thread keeps to its own units.
// #import grid
// #import lstm_rows
// #import lstm_norm_place
// #import workgroup_sum

struct Params {
    hidden: u32,      // H
    running: u32,     // sequences that take the step
    step: u32,
    piece_start: u32, // the bound piece holds these rows
    piece_end: u32,
    sequences: u32,   // B
    directions: u32,  // D
    reverse: u32,     // bit d: direction d runs back in time
    result: u32,      // where in `state` dproduct goes
    offsets: u32,     // where the first rows of each step begin in `table`
    lengths: u32,     // where the lengths begin
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> gates: array<vec4<f32>>;    // [rows, D, H]: dgates
@group(0) @binding(2) var<storage, read_write> product: array<vec4<f32>>;  // [rows, D, H]: the product, then dgates n
@group(0) @binding(3) var<storage, read_write> dproduct: array<vec4<f32>>; // [rows, D, H]
@group(0) @binding(4) var<storage, read_write> state: array<vec4<f32>>;    // slots of [D, B, H]
@group(0) @binding(5) var<storage, read> table: array<u32>;                // sample ids, first rows, lengths
@group(0) @binding(6) var<storage, read> norms: array<vec4<f32>>;          // [D, H, 3]: gain i f g o first

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let place = place_of(linear_workgroup(workgroup, count));
    let b = place.b;
    let d = place.d;
    let base = place.base;
    let units = select(0u, params.hidden, place.held);
    let size = f32(4u * params.hidden);
    var sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        sum += dot(product[base + u], vec4<f32>(1.0));
    }
    let mean = workgroup_sum(local, sum) / size;
    sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        let away = product[base + u] - vec4<f32>(mean);
        sum += dot(away, away);
    }
    let factor = 1.0 / sqrt(workgroup_sum(local, sum) / size + params.epsilon);
    var along = 0.0;
    sum = 0.0;
    for (var u = local; u < units; u += 64u) {
        let n = (product[base + u] - vec4<f32>(mean)) * factor;
        let dn = gates[base + u] * norms[(d * params.hidden + u) * 3u];
        sum += dot(dn, vec4<f32>(1.0));
        along += dot(dn, n);
    }
    let dn_mean = workgroup_sum(local, sum) / size;
    let dn_along = workgroup_sum(local, along) / size;
    for (var u = local; u < units; u += 64u) {
        let n = (product[base + u] - vec4<f32>(mean)) * factor;
        let dz = gates[base + u];
        let dn = dz * norms[(d * params.hidden + u) * 3u];
        let back = factor * (dn - vec4<f32>(dn_mean) - n * dn_along);
        product[base + u] = dz * n;
        dproduct[base + u] = back;
        state[params.result + (d * params.sequences + b) * params.hidden + u] = back;
    }
}
