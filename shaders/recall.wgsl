// ln Σ e^(q·h) over the places that a step sees, of those whose token is its target and of all: one banded product fused with its
// sums. One workgroup for 32 steps of a sequence, grid = sequences · chunks. Places come 64 at a time, from a multiple of 64 on:
// 16 x 16 threads compute the scores, of two steps and four places each, then eight threads a step add up their exponentials, each
// those of eight places of every 64.
// #import grid
// #import math
// #import memory

@group(0) @binding(6) var<storage, read> targets: array<u32>;    // [N]
@group(0) @binding(7) var<storage, read_write> sums: array<f32>; // [N, 2]

const DEPTH: u32 = 16u;

var<workgroup> queries: array<f32, 512>;  // [DEPTH, 32]
var<workgroup> keys: array<f32, 1024>;    // [DEPTH, 64]
var<workgroup> scores: array<f32, 2048>;  // [32, 64]

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, groups);
    // The same for the whole workgroup, so that barriers are reached by all.
    let b = group / params.chunks;
    if (b >= params.sequences) {
        return;
    }
    let first = group % params.chunks * 32u;
    let length = table[params.lengths + b];
    if (first >= length) {
        return;
    }
    let count = min(32u, length - first);
    let base = ring_of(b);
    // The first of these steps, counted from the sequence's beginning.
    let now = before_of(b) + first;
    let begin = max(now, params.window) - params.window;
    let end = now + count - 1u;

    // What this thread adds up: places eight by eight, of one step.
    let r = local / 8u;
    let lane = local % 8u;
    let row = table[params.offsets + first + min(r, count - 1u)] + b;
    let wanted = f32(targets[row]);
    let here = now + r;
    var largest = NOTHING;
    var all = 0.0;
    var found = 0.0;

    for (var block = begin / 64u * 64u; block < end; block += 64u) {
        let place = block % params.places;
        var s0 = vec4<f32>();
        var s1 = vec4<f32>();
        for (var k = 0u; k < params.features; k += DEPTH) {
            workgroupBarrier();
            for (var i = local; i < 512u; i += 256u) {
                let t = i / DEPTH;
                let d = k + i % DEPTH;
                var value = 0.0;
                if (t < count && d < params.features) {
                    value = q[(table[params.offsets + first + t] + b) * params.features + d];
                }
                queries[i % DEPTH * 32u + t] = value;
            }
            for (var i = local; i < 1024u; i += 256u) {
                let at = i / DEPTH;
                let d = k + i % DEPTH;
                var value = 0.0;
                if (block + at < end && d < params.features) {
                    value = ring[base + (place + at) * params.features + d];
                }
                keys[i % DEPTH * 64u + at] = value;
            }
            workgroupBarrier();
            let a = local / 16u * 2u;
            let c = local % 16u * 4u;
            for (var d = 0u; d < DEPTH; d++) {
                let at = d * 64u + c;
                let h = vec4<f32>(keys[at], keys[at + 1u], keys[at + 2u], keys[at + 3u]);
                s0 += queries[d * 32u + a] * h;
                s1 += queries[d * 32u + a + 1u] * h;
            }
        }
        let to = local / 16u * 128u + local % 16u * 4u;
        for (var c = 0u; c < 4u; c++) {
            scores[to + c] = s0[c];
            scores[to + 64u + c] = s1[c];
        }
        workgroupBarrier();
        var top = largest;
        for (var i = 0u; i < 8u; i++) {
            let step = block + lane * 8u + i;
            if (step < here && step + params.window >= here) {
                top = max(top, scores[r * 64u + lane * 8u + i]);
            }
        }
        let shrink = exp_any_f32(largest - top);
        all *= shrink;
        found *= shrink;
        largest = top;
        for (var i = 0u; i < 8u; i++) {
            let step = block + lane * 8u + i;
            if (step < here && step + params.window >= here) {
                let e = exp_any_f32(scores[r * 64u + lane * 8u + i] - top);
                all += e;
                if (ring[tokens_of(base) + place + lane * 8u + i] == wanted) {
                    found += e;
                }
            }
        }
    }
    workgroupBarrier();
    scores[local * 3u] = largest;
    scores[local * 3u + 1u] = all;
    scores[local * 3u + 2u] = found;
    workgroupBarrier();
    if (lane != 0u || r >= count) {
        return;
    }
    var top = NOTHING;
    for (var i = 0u; i < 8u; i++) {
        top = max(top, scores[(local + i) * 3u]);
    }
    all = 0.0;
    found = 0.0;
    for (var i = 0u; i < 8u; i++) {
        let scale = exp_any_f32(scores[(local + i) * 3u] - top);
        all += scores[(local + i) * 3u + 1u] * scale;
        found += scores[(local + i) * 3u + 2u] * scale;
    }
    sums[row * 2u] = NOTHING;
    if (is_sum(found)) {
        sums[row * 2u] = top + log(found);
    }
    sums[row * 2u + 1u] = NOTHING;
    if (is_sum(all)) {
        sums[row * 2u + 1u] = top + log(all);
    }
}
