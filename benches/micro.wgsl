// What a device's cost model is made of; each entry point repeats one thing.

struct Params {
    repeats: u32,
    values: u32, // vectors of `data`
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> data: array<vec4<f32>>;

var<workgroup> shared_values: array<f32, 256>;

// As little as a dispatch can do that depends on the one before it.
@compute @workgroup_size(64)
fn touch(@builtin(global_invocation_id) id: vec3<u32>) {
    data[id.x].x += 1.0;
}

// Eight independent multiply-adds of four values a thread at each turn: 64 flops. Of two registers each: some GPUs read three
// in two cycles.
@compute @workgroup_size(256)
fn multiply_add(@builtin(global_invocation_id) id: vec3<u32>) {
    let x = data[id.x % params.values];
    let y = x * 0.5;
    var s0 = x;
    var s1 = x + 1.0;
    var s2 = x + 2.0;
    var s3 = x + 3.0;
    var s4 = x + 4.0;
    var s5 = x + 5.0;
    var s6 = x + 6.0;
    var s7 = x + 7.0;
    for (var i = 0u; i < params.repeats; i++) {
        s0 = fma(s0, y, s0);
        s1 = fma(s1, y, s1);
        s2 = fma(s2, y, s2);
        s3 = fma(s3, y, s3);
        s4 = fma(s4, y, s4);
        s5 = fma(s5, y, s5);
        s6 = fma(s6, y, s6);
        s7 = fma(s7, y, s7);
    }
    data[id.x % params.values] = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7;
}

// Every workgroup reads all of `data` again and again: from a cache, if it fits one.
@compute @workgroup_size(256)
fn stream(@builtin(local_invocation_index) local: u32, @builtin(workgroup_id) group: vec3<u32>) {
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < params.repeats; i++) {
        for (var at = local; at < params.values; at += 256u) {
            sum += data[at];
        }
        sum = sum * 0.5 + f32(i);
    }
    // Never true; keeps the reads.
    if (sum.x == 0.12345) {
        data[group.x] = sum;
    }
}

// Two barriers of a workgroup a turn, with a value passed on between them.
@compute @workgroup_size(256)
fn barriers(@builtin(local_invocation_index) local: u32) {
    shared_values[local] = f32(local);
    for (var i = 0u; i < params.repeats; i++) {
        workgroupBarrier();
        let next = shared_values[(local + 1u) % 256u];
        workgroupBarrier();
        shared_values[local] = next;
    }
    data[local].x = shared_values[local];
}
