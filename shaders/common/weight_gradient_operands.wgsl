// The operands of a weight's gradient, four columns at a time.

// Whether the columns of A that count, and its rows, are whole quads; and those of B.
override A_QUADS: bool = false;
override B_QUADS: bool = false;

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>; // the piece's rows
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>; // the piece's rows

fn value_of_a(at: u32) -> f32 {
    return a[at / 4u][at % 4u];
}

fn value_of_b(at: u32) -> f32 {
    return b[at / 4u][at % 4u];
}

// Four columns of row `r` of A, those past the end repeat the last ones; zeros past the chunk's rows.
fn four_of_a(r: u32, end: u32, column: u32) -> vec4<f32> {
    let at = min(r, end - 1u) * params.a_stride + params.a_first;
    var x: vec4<f32>;
    if (A_QUADS) {
        x = a[(at + min(column, params.m - 4u)) / 4u];
    } else {
        let last = params.m - 1u;
        x = vec4<f32>(
            value_of_a(at + min(column, last)),
            value_of_a(at + min(column + 1u, last)),
            value_of_a(at + min(column + 2u, last)),
            value_of_a(at + min(column + 3u, last)),
        );
    }
    return select(vec4<f32>(0.0), x, r < end);
}

fn four_of_b(r: u32, end: u32, column: u32) -> vec4<f32> {
    let at = min(r, end - 1u) * params.b_stride + params.b_first;
    var x: vec4<f32>;
    if (B_QUADS) {
        x = b[(at + min(column, params.n - 4u)) / 4u];
    } else {
        let last = params.n - 1u;
        x = vec4<f32>(
            value_of_b(at + min(column, last)),
            value_of_b(at + min(column + 1u, last)),
            value_of_b(at + min(column + 2u, last)),
            value_of_b(at + min(column + 3u, last)),
        );
    }
    return select(vec4<f32>(0.0), x, r < end);
}
