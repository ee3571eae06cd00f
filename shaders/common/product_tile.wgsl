// What tiled matrix products share. 16 x 16 threads compute ROWS rows of 4 or 8 columns each, in registers: rows four by four
// 64 apart, columns likewise. Operands pass through workgroup memory, double-buffered, DEPTH deep.

// Rows of one thread, 4 or 8.
override ROWS: u32 = 8u;
// Whether a thread has 8 columns, or 4.
override WIDE: bool = true;

const DEPTH: u32 = 8u;

// Elements of one tile: four columns of eight rows, and four more.
struct Sums {
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
    s3: vec4<f32>,
    s4: vec4<f32>,
    s5: vec4<f32>,
    s6: vec4<f32>,
    s7: vec4<f32>,
    t0: vec4<f32>,
    t1: vec4<f32>,
    t2: vec4<f32>,
    t3: vec4<f32>,
    t4: vec4<f32>,
    t5: vec4<f32>,
    t6: vec4<f32>,
    t7: vec4<f32>,
}

fn tile_rows() -> u32 {
    return 16u * ROWS;
}

fn tile_columns() -> u32 {
    return select(64u, 128u, WIDE);
}

// Row number `r` of a thread within its tile.
fn row_in_tile(y: u32, r: u32) -> u32 {
    return (r / 4u) * 64u + y * 4u + r % 4u;
}
