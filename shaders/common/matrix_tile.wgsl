// What products by matrix units share: operands rounded to 16 bits, which pass through workgroup memory; sums in 32 bits.
// A prelude enables the extensions and gives the largest square that the units multiply: SIDE, and the types of a left
// operand, a right operand and a sum of that size, `Left`, `Right`, `Sum`. The file that imports this says with SLICES how
// its 128 threads share a tile of TILE x TILE elements: four blocks of it (1), or four slices of the inner dimension (4).
// Subgroups of any width take the four jobs in turns. The file also has
//   A_ACROSS, B_ACROSS: values of a line of an operand in workgroup memory: of DEPTH along the inner dimension, or of TILE
//                       along the other
//   fetch_a, fetch_b:   four values of a line, from the `across`th on, where the inner dimension begins at `first`; zeros past
//                       its end

const THREADS: u32 = 128u;
const JOBS: u32 = 4u;
const BLOCK: u32 = 2u * SIDE;
const BLOCKS: u32 = 2u - SLICES / JOBS; // along each side of the tile
const TILE: u32 = BLOCKS * BLOCK;
const DEPTH: u32 = 2u * SIDE * (1u + SLICES / JOBS);
const QUADS: u32 = TILE * DEPTH / 4u;   // of one operand
// Rows are apart so that banks differ.
const A_STRIDE: u32 = A_ACROSS + 8u;
const B_STRIDE: u32 = B_ACROSS + 8u;
const C_STRIDE: u32 = TILE + 4u;

var<workgroup> a_tile: array<f16, (TILE + 8u) * (DEPTH + 8u)>;
var<workgroup> b_tile: array<f16, (TILE + 8u) * (DEPTH + 8u)>;
var<workgroup> c_tile: array<f32, SLICES * TILE * C_STRIDE>;

// Which thread this is.
struct Here {
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

// What a workgroup computes, and by whom.
struct Place {
    row: u32,       // the tile's first row
    column: u32,    // and its first column
    direction: u32, // of a layer, that these belong to
    here: Here,
}

fn stage_a(i: u32, x: vec4<f32>) {
    if (i >= QUADS) {
        return;
    }
    let at = i / (A_ACROSS / 4u) * A_STRIDE + i % (A_ACROSS / 4u) * 4u;
    a_tile[at] = f16(x.x);
    a_tile[at + 1u] = f16(x.y);
    a_tile[at + 2u] = f16(x.z);
    a_tile[at + 3u] = f16(x.w);
}

fn stage_b(i: u32, x: vec4<f32>) {
    if (i >= QUADS) {
        return;
    }
    let at = i / (B_ACROSS / 4u) * B_STRIDE + i % (B_ACROSS / 4u) * 4u;
    b_tile[at] = f16(x.x);
    b_tile[at + 1u] = f16(x.y);
    b_tile[at + 2u] = f16(x.z);
    b_tile[at + 3u] = f16(x.w);
}

// Four values of A, if this thread brings an `i`th four.
fn bring_a(p: Place, k: u32, end: u32, i: u32) -> vec4<f32> {
    if (i >= QUADS || k >= end) {
        return vec4<f32>(0.0);
    }
    return fetch_a(p, k, end, i / (A_ACROSS / 4u), i % (A_ACROSS / 4u) * 4u);
}

fn bring_b(p: Place, k: u32, end: u32, i: u32) -> vec4<f32> {
    if (i >= QUADS || k >= end) {
        return vec4<f32>(0.0);
    }
    return fetch_b(p, k, end, i / (B_ACROSS / 4u), i % (B_ACROSS / 4u) * 4u);
}

// A square of A, by rows or by columns as its lines lie.
fn left(row: u32, inner: u32) -> Left {
    if (A_ACROSS == DEPTH) {
        return coopLoadT<Left>(&a_tile[row * A_STRIDE + inner], A_STRIDE);
    }
    return coopLoad<Left>(&a_tile[inner * A_STRIDE + row], A_STRIDE);
}

fn right(inner: u32, column: u32) -> Right {
    if (B_ACROSS == TILE) {
        return coopLoadT<Right>(&b_tile[inner * B_STRIDE + column], B_STRIDE);
    }
    return coopLoad<Right>(&b_tile[column * B_STRIDE + inner], B_STRIDE);
}

// Leaves the tile's sums over `start` .. `end` of the inner dimension in `c_tile`. All threads come here together.
fn multiply_tile(p: Place, start: u32, end: u32) {
    for (var first = 0u; first < JOBS; first += p.here.subgroups) {
        let job = first + p.here.subgroup;
        let slice = job % SLICES;
        let row = job / SLICES / BLOCKS * BLOCK;
        let column = job / SLICES % BLOCKS * BLOCK;
        // Subgroups without a job run through no loop: naga takes an `if` on what a subgroup alone agrees upon for an error.
        let begin = slice * (DEPTH / SLICES);
        let upto = select(0u, begin + DEPTH / SLICES, job < JOBS);
        var c00 = Sum();
        var c01 = Sum();
        var c10 = Sum();
        var c11 = Sum();
        let t = p.here.thread;
        var a0 = bring_a(p, start, end, t);
        var a1 = bring_a(p, start, end, t + THREADS);
        var a2 = bring_a(p, start, end, t + 2u * THREADS);
        var a3 = bring_a(p, start, end, t + 3u * THREADS);
        var b0 = bring_b(p, start, end, t);
        var b1 = bring_b(p, start, end, t + THREADS);
        var b2 = bring_b(p, start, end, t + 2u * THREADS);
        var b3 = bring_b(p, start, end, t + 3u * THREADS);
        for (var k = start; k < end; k += DEPTH) {
            workgroupBarrier();
            stage_a(t, a0);
            stage_a(t + THREADS, a1);
            stage_a(t + 2u * THREADS, a2);
            stage_a(t + 3u * THREADS, a3);
            stage_b(t, b0);
            stage_b(t + THREADS, b1);
            stage_b(t + 2u * THREADS, b2);
            stage_b(t + 3u * THREADS, b3);
            workgroupBarrier();
            // The next values are on their way while these are multiplied.
            a0 = bring_a(p, k + DEPTH, end, t);
            a1 = bring_a(p, k + DEPTH, end, t + THREADS);
            a2 = bring_a(p, k + DEPTH, end, t + 2u * THREADS);
            a3 = bring_a(p, k + DEPTH, end, t + 3u * THREADS);
            b0 = bring_b(p, k + DEPTH, end, t);
            b1 = bring_b(p, k + DEPTH, end, t + THREADS);
            b2 = bring_b(p, k + DEPTH, end, t + 2u * THREADS);
            b3 = bring_b(p, k + DEPTH, end, t + 3u * THREADS);
            for (var inner = begin; inner < upto; inner += SIDE) {
                let x0 = left(row, inner);
                let x1 = left(row + SIDE, inner);
                let w0 = right(inner, column);
                let w1 = right(inner, column + SIDE);
                c00 = coopMultiplyAdd(x0, w0, c00);
                c01 = coopMultiplyAdd(x0, w1, c01);
                c10 = coopMultiplyAdd(x1, w0, c10);
                c11 = coopMultiplyAdd(x1, w1, c11);
            }
        }
        for (var stored = job; stored < JOBS; stored += JOBS) {
            let at = (slice * TILE + row) * C_STRIDE + column;
            coopStoreT(c00, &c_tile[at], C_STRIDE);
            coopStoreT(c01, &c_tile[at + SIDE], C_STRIDE);
            coopStoreT(c10, &c_tile[at + SIDE * C_STRIDE], C_STRIDE);
            coopStoreT(c11, &c_tile[at + SIDE * C_STRIDE + SIDE], C_STRIDE);
        }
    }
    workgroupBarrier();
}

// Four elements of the tile, slices added in their order.
fn sum_of(row: u32, column: u32) -> vec4<f32> {
    var sum = vec4<f32>(0.0);
    for (var slice = 0u; slice < SLICES; slice++) {
        let at = (slice * TILE + row) * C_STRIDE + column;
        sum += vec4<f32>(c_tile[at], c_tile[at + 1u], c_tile[at + 2u], c_tile[at + 3u]);
    }
    return sum;
}
