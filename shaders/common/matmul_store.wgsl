// The parameters and bindings of a matrix product but its left operand, its bias, and its store through what `epilogue` makes of
// it.
struct Params {
    rows: u32,
    columns: u32,
    inner: u32,
    a_stride: u32,      // values from one row of A to the next
    c_stride: u32,      // values from one row of C to the next
    column_blocks: u32, // workgroups across columns
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> b: array<Weights>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

fn bias_of(column: u32) -> vec4<f32> {
    if (params.has_bias == 0u) {
        return vec4<f32>(0.0);
    }
    let last = params.columns - 1u;
    return vec4<f32>(
        bias[min(column, last)],
        bias[min(column + 1u, last)],
        bias[min(column + 2u, last)],
        bias[min(column + 3u, last)],
    );
}

// Four columns of one row, as far as they exist.
fn store(row: u32, column: u32, sum: vec4<f32>) {
    if (row >= params.rows || column >= params.columns) {
        return;
    }
    let value = vec4<f32>(epilogue(sum.x), epilogue(sum.y), epilogue(sum.z), epilogue(sum.w));
    let at = row * params.c_stride + column;
    c[at] = value.x;
    if (column + 1u < params.columns) {
        c[at + 1u] = value.y;
    }
    if (column + 2u < params.columns) {
        c[at + 2u] = value.z;
    }
    if (column + 3u < params.columns) {
        c[at + 3u] = value.w;
    }
}
