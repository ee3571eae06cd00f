// The sum (or sum of squares) of a piece in two passes: `blocks` sums blocks of 4096 values, one workgroup each;
// `all_blocks` sums all partial sums in one workgroup. The order is fixed by the sizes alone.
// #import grid

struct Params {
    len: u32,    // values to read
    offset: u32, // the first partial sum that `blocks` writes
    square: u32, // whether values are squared
    accumulate: u32, // whether the total is added to what the output holds
}

const BLOCK: u32 = 4096u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

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

@compute @workgroup_size(256)
fn blocks(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let block = linear_workgroup(workgroup, count);
    let start = block * BLOCK;
    let end = min(start + BLOCK, params.len);
    var sum = 0.0;
    for (var i = start + local; i < end; i += 256u) {
        let value = x[i];
        sum += select(value, value * value, params.square != 0u);
    }
    tree(local, sum);
    if (local == 0u && start < params.len) {
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
