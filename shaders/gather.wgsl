// Units of values from other places, by an index. One thread a value, grid = units · width / 256.
// #import grid

struct Params {
    len: u32,       // values of this piece of y
    width: u32,     // values of a unit
    first: u32,     // units first .. end of x are in this piece of it
    end: u32,
    begins: u32,    // whether this is the first piece of x
    fill: f32,      // what comes from nowhere
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> sources: array<u32>; // for each unit of this piece of y its unit of x, or none
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = linear_workgroup(workgroup, count) * 256u + local;
    if (i >= params.len) {
        return;
    }
    let source = sources[i / params.width];
    if (source == 0xffffffffu) {
        if (params.begins != 0u) {
            y[i] = params.fill;
        }
    } else if (source >= params.first && source < params.end) {
        y[i] = x[(source - params.first) * params.width + i % params.width];
    }
}
