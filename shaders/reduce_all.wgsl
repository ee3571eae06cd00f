// The sum (or sum of squares) of up to seven pieces in two passes: `blocks` sums blocks of 4096 values, one workgroup each,
// those of a piece after those of the one before; `all_blocks` sums all partial sums in one workgroup. The order is fixed by
// the sizes alone.
// #import grid

struct Params {
    len: u32,    // values to read of the first piece, or all partial sums
    len_1: u32,  // of the others
    len_2: u32,
    len_3: u32,
    len_4: u32,
    len_5: u32,
    len_6: u32,
    offset: u32, // the first partial sum that `blocks` writes
    square: u32, // whether values are squared
    accumulate: u32, // whether the total is added to what the output holds
}

const BLOCK: u32 = 4096u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
@group(0) @binding(3) var<storage, read> x_1: array<f32>;
@group(0) @binding(4) var<storage, read> x_2: array<f32>;
@group(0) @binding(5) var<storage, read> x_3: array<f32>;
@group(0) @binding(6) var<storage, read> x_4: array<f32>;
@group(0) @binding(7) var<storage, read> x_5: array<f32>;
@group(0) @binding(8) var<storage, read> x_6: array<f32>;

var<workgroup> parts: array<f32, 256>;

fn tree(local: u32, value: f32) {
    parts[local] = value;
    workgroupBarrier();
    for (var span = 128u; span > 0u; span /= 2u) {
        if (local < span) {
            parts[local] += parts[local + span];
        }
        workgroupBarrier();
    }
}

fn len_of(piece: u32) -> u32 {
    switch (piece) {
        case 0u: { return params.len; }
        case 1u: { return params.len_1; }
        case 2u: { return params.len_2; }
        case 3u: { return params.len_3; }
        case 4u: { return params.len_4; }
        case 5u: { return params.len_5; }
        case 6u: { return params.len_6; }
        default: { return 0u; }
    }
}

fn value_of(piece: u32, i: u32) -> f32 {
    switch (piece) {
        case 0u: { return x[i]; }
        case 1u: { return x_1[i]; }
        case 2u: { return x_2[i]; }
        case 3u: { return x_3[i]; }
        case 4u: { return x_4[i]; }
        case 5u: { return x_5[i]; }
        default: { return x_6[i]; }
    }
}

@compute @workgroup_size(256)
fn blocks(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let block = linear_workgroup(workgroup, count);
    var piece = 0u;
    var first = 0u;
    var next = (params.len + BLOCK - 1u) / BLOCK;
    while (block >= next && piece < 7u) {
        piece++;
        first = next;
        next += (len_of(piece) + BLOCK - 1u) / BLOCK;
    }
    let start = (block - first) * BLOCK;
    let end = min(start + BLOCK, len_of(piece));
    var sum = 0.0;
    for (var i = start + local; i < end; i += 256u) {
        let value = value_of(piece, i);
        sum += select(value, value * value, params.square != 0u);
    }
    tree(local, sum);
    if (local == 0u && start < end) {
        sums[params.offset + block] = parts[0];
    }
}

@compute @workgroup_size(256)
fn all_blocks(@builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    for (var i = local; i < params.len; i += 256u) {
        sum += x[i];
    }
    tree(local, sum);
    if (local == 0u) {
        sums[params.offset] = select(parts[0], sums[params.offset] + parts[0], params.accumulate != 0u);
    }
}
