// The product of one step, of a tile of sequences and lanes a workgroup; a lane is four columns side by side, which forward are
// the four gates of a unit. A thread sums, of one lane of ROWS sequences, every SLICES-th vector of the operand: the sum of a
// slice has the same bits in any tile. Threads are UNITS lanes × SLICES × GROUPS of sequences. What a thread multiplies next is
// on its way meanwhile, and straight from memory: nothing that one thread reads of the operand is read by another of its
// workgroup but those of its lanes.

// Sequences of one thread: 1, 2, 4 or 8.
override ROWS: u32 = 8u;
override UNITS: u32 = 16u;
override SLICES: u32 = 8u;
override GROUPS: u32 = 2u;

// [slice][sequence of the tile][lane]
var<workgroup> sums: array<vec4<f32>, UNITS * SLICES * GROUPS * ROWS>;

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

fn multiply(x: vec4<f32>, o: Operands, sum: vec4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(x.w), o.w3, fma(vec4<f32>(x.z), o.w2, fma(vec4<f32>(x.y), o.w1, fma(vec4<f32>(x.x), o.w0, sum))));
}

// Leaves this thread's slice of the first `inner` vectors of the operand in `sums`.
fn leave_sums(s: Source, inner: u32, local: vec3<u32>) {
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    if (local.y < inner) {
        var o = operands(s, local.y);
        for (var q = local.y; q < inner; q += SLICES) {
            // The last vector is fetched once more rather than none.
            let next = operands(s, min(q + SLICES, inner - 1u));
            s0 = multiply(o.x0, o, s0);
            if (ROWS > 1u) {
                s1 = multiply(o.x1, o, s1);
            }
            if (ROWS > 2u) {
                s2 = multiply(o.x2, o, s2);
                s3 = multiply(o.x3, o, s3);
            }
            if (ROWS > 4u) {
                s4 = multiply(o.x4, o, s4);
                s5 = multiply(o.x5, o, s5);
                s6 = multiply(o.x6, o, s6);
                s7 = multiply(o.x7, o, s7);
            }
            o = next;
        }
    }
    let at = (local.y * GROUPS + local.z) * ROWS * UNITS + local.x;
    for (var row = 0u; row < ROWS; row++) {
        sums[at + row * UNITS] = s0;
        s0 = s1;
        s1 = s2;
        s2 = s3;
        s3 = s4;
        s4 = s5;
        s5 = s6;
        s6 = s7;
    }
}
