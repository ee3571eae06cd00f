// The product of one step, of a tile of sequences and lanes a workgroup; a lane is four columns side by side, which forward are
// the four gates of a unit. A thread sums, of one lane of ROWS sequences, every SLICES-th vector of the operand: the sum of a
// slice has the same bits in any tile. Threads are UNITS lanes × SLICES × GROUPS of sequences. Operands come straight from
// memory: nothing that one thread reads of the operand is read by another of its workgroup but those of its lanes.

// Sequences of one thread: 1, 2, 4 or 8.
override ROWS: u32 = 8u;
override UNITS: u32 = 16u;
override SLICES: u32 = 8u;
override GROUPS: u32 = 2u;
// Whether operands are fetched ahead of their use.
override AHEAD: bool = false;

// [slice][sequence of the tile][lane]
var<workgroup> sums: array<vec4<f32>, UNITS * SLICES * GROUPS * ROWS>;

fn threads() -> u32 {
    return UNITS * SLICES * GROUPS;
}

// Where the operands of a thread lie.
struct Source {
    weights: u32, // its lane in the first row of weights
    stride: u32,  // from one row of weights to the next
    operand: u32, // the first vector of the operand of the direction's first sequence
    depth: u32,   // from one sequence's operand to the next
    b: u32,       // its first sequence; those past the end repeat the last one, and are not stored
}

// Four rows of weights of one lane, and the vector that meets them of each sequence.
struct Operands {
    w0: vec4<f32>,
    w1: vec4<f32>,
    w2: vec4<f32>,
    w3: vec4<f32>,
    x0: vec4<f32>,
    x1: vec4<f32>,
    x2: vec4<f32>,
    x3: vec4<f32>,
    x4: vec4<f32>,
    x5: vec4<f32>,
    x6: vec4<f32>,
    x7: vec4<f32>,
}

fn operand_of(s: Source, row: u32, q: u32) -> vec4<f32> {
    return state[s.operand + min(s.b + row, params.sequences - 1u) * s.depth + q];
}

fn operands(s: Source, q: u32) -> Operands {
    var o = Operands();
    let w = s.weights + q * 4u * s.stride;
    o.w0 = four(weights[w]);
    o.w1 = four(weights[w + s.stride]);
    o.w2 = four(weights[w + 2u * s.stride]);
    o.w3 = four(weights[w + 3u * s.stride]);
    o.x0 = operand_of(s, 0u, q);
    if (ROWS > 1u) {
        o.x1 = operand_of(s, 1u, q);
    }
    if (ROWS > 2u) {
        o.x2 = operand_of(s, 2u, q);
        o.x3 = operand_of(s, 3u, q);
    }
    if (ROWS > 4u) {
        o.x4 = operand_of(s, 4u, q);
        o.x5 = operand_of(s, 5u, q);
        o.x6 = operand_of(s, 6u, q);
        o.x7 = operand_of(s, 7u, q);
    }
    return o;
}

struct Sums {
    s0: vec4<f32>,
    s1: vec4<f32>,
    s2: vec4<f32>,
    s3: vec4<f32>,
    s4: vec4<f32>,
    s5: vec4<f32>,
    s6: vec4<f32>,
    s7: vec4<f32>,
}

fn multiply(x: vec4<f32>, o: Operands, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(x.w), o.w3, fma(vec4<f32>(x.z), o.w2, fma(vec4<f32>(x.y), o.w1, fma(vec4<f32>(x.x), o.w0, sum))));
}

fn add(o: Operands, sums: Sums) -> Sums {
    var t = sums;
    t.s0 = multiply(o.x0, o, t.s0);
    if (ROWS > 1u) {
        t.s1 = multiply(o.x1, o, t.s1);
    }
    if (ROWS > 2u) {
        t.s2 = multiply(o.x2, o, t.s2);
        t.s3 = multiply(o.x3, o, t.s3);
    }
    if (ROWS > 4u) {
        t.s4 = multiply(o.x4, o, t.s4);
        t.s5 = multiply(o.x5, o, t.s5);
        t.s6 = multiply(o.x6, o, t.s6);
        t.s7 = multiply(o.x7, o, t.s7);
    }
    return t;
}

// The first `inner` vectors of the operand, of them this thread's slice, fetched two turns before they are multiplied: measured
// on an H200, a turn is over in a third of the time that a load takes to come.
fn sum_ahead(s: Source, inner: u32, slice: u32) -> Sums {
    var t = Sums();
    // Past the last vector it is fetched again rather than none.
    let last = inner - 1u;
    var a = operands(s, slice);
    var b = operands(s, min(slice + SLICES, last));
    for (var q = slice; q < inner; q += 3u * SLICES) {
        let c = operands(s, min(q + 2u * SLICES, last));
        t = add(a, t);
        if (q + SLICES < inner) {
            a = operands(s, min(q + 3u * SLICES, last));
            t = add(b, t);
        }
        if (q + 2u * SLICES < inner) {
            b = operands(s, min(q + 4u * SLICES, last));
            t = add(c, t);
        }
    }
    return t;
}

// The same, fetched as they are multiplied.
fn sum_at_once(s: Source, inner: u32, slice: u32) -> Sums {
    var t = Sums();
    for (var q = slice; q < inner; q += SLICES) {
        t = add(operands(s, q), t);
    }
    return t;
}

// Leaves this thread's slice of the first `inner` vectors of the operand in `sums`.
fn leave_sums(s: Source, inner: u32, local: vec3<u32>) {
    var t = Sums();
    if (AHEAD) {
        if (local.y < inner) {
            t = sum_ahead(s, inner, local.y);
        }
    } else {
        t = sum_at_once(s, inner, local.y);
    }
    let at = (local.y * GROUPS + local.z) * ROWS * UNITS + local.x;
    for (var row = 0u; row < ROWS; row++) {
        sums[at + row * UNITS] = t.s0;
        t = Sums(t.s1, t.s2, t.s3, t.s4, t.s5, t.s6, t.s7, t.s7);
    }
}
