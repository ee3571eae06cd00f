// The parameters and bindings of a weight's gradient but its operands, the rows of its chunks and its stores.
struct Params {
    m: u32,
    n: u32,
    row_start: u32,     // the piece holds rows row_start .. row_end of all
    row_end: u32,
    steps: u32,         // T; 0 where the rows are no time axis, and so one chunk
    table: u32,         // where the axis's first rows of each step begin in `table`
    blocks: u32,        // workgroups across columns of C
    units: u32,         // H where A holds gates unit by unit: row 4u+g of C is stored as g·H+u; else 0
    accumulate: u32,    // whether C holds the sum of later pieces
    a_stride: u32,      // values from one row of A to the next
    a_first: u32,       // where the columns of A that count begin
    b_stride: u32,      // the same of B
    b_first: u32,
    parts: u32,         // workgroups that share the rows of a chunk
    chunk_start: u32,   // chunks chunk_start .. chunk_end are this dispatch's
    chunk_end: u32,
}

const CHUNK: u32 = 64u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> table: array<u32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;
@group(0) @binding(5) var<storage, read_write> partials: array<f32>; // [chunks of a dispatch, parts, m, n]

fn address(row: u32) -> u32 {
    let stored = select(row, (row & 3u) * params.units + (row >> 2u), params.units > 0u);
    return stored * params.n;
}

// Four columns of one row: a chunk's sum, added to those of later chunks if there are any.
fn store(row: u32, column: u32, value: vec4<f32>, adds: bool) {
    if (row >= params.m) {
        return;
    }
    for (var i = 0u; i < min(4u, max(params.n, column) - column); i++) {
        let at = address(row) + column + i;
        var sum = value[i];
        if (adds) {
            sum += c[at];
        }
        c[at] = sum;
    }
}

// Rows of the piece.
struct Rows {
    start: u32,
    end: u32,
}

// The piece's rows of a chunk; none where it has none.
fn rows_of(chunk: u32) -> Rows {
    var start = params.row_start;
    var end = params.row_end;
    if (params.steps > 0u) {
        start = max(start, table[params.table + chunk * CHUNK]);
        end = min(end, table[params.table + min((chunk + 1u) * CHUNK, params.steps)]);
    }
    end = max(start, end);
    return Rows(start - params.row_start, end - params.row_start);
}

// Four columns of one row of a part's sum.
fn put(part: u32, row: u32, column: u32, value: vec4<f32>) {
    if (row >= params.m) {
        return;
    }
    for (var i = 0u; i < min(4u, max(params.n, column) - column); i++) {
        partials[(part * params.m + row) * params.n + column + i] = value[i];
    }
}
