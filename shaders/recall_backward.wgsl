// A gradient of the sums over places that a step sees. The slope of a score is dall e^(score - all), and for a match dfound
// e^(score - found) more; dq of a step is the sum of slopes times h over places, dh of one of this run's own steps that of slopes
// times q over the later steps that see it. One workgroup for 256 columns of a row, grid = N · chunks. Partners come 64 at a time, a
// thread each for slopes.
// #import grid
// #import math
// #import table
// #import memory

@group(0) @binding(6) var<storage, read> targets: array<u32>;        // [N]
@group(0) @binding(7) var<storage, read> given: array<f32>;          // found, all, dfound, dall: [N, 4]
@group(0) @binding(8) var<storage, read_write> gradient: array<f32>; // [N, H]

// Whether it is that of h, else of q.
override OWN: bool = false;

var<workgroup> slopes: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let group = linear_workgroup(workgroup, count);
    // The same for the whole workgroup, so that barriers are reached by all.
    let row = min(group / params.chunks, params.rows - 1u);
    let chunk = group % params.chunks;
    let t = step_of(row, params.offsets, params.steps);
    let b = row - table[params.offsets + t];
    let base = ring_of(b);
    let before = before_of(b);
    // Steps counted from the sequence's beginning: places that are seen, or later steps that see.
    let here = before + t;
    var begin = max(here, params.window) - params.window;
    var end = here;
    if (OWN) {
        begin = here + 1u;
        end = min(before + table[params.lengths + b], here + 1u + params.window);
    }
    var sums = vec4<f32>();
    for (var first = begin; first < end; first += 64u) {
        let some = min(64u, end - first);
        if (local < some) {
            var query = row;
            var place = (first + local) % params.places;
            if (OWN) {
                query = table[params.offsets + first + local - before] + b;
                place = here % params.places;
            }
            let s = score(query, base, place);
            var slope = given[query * 4u + 3u] * exp_any_f32(s - given[query * 4u + 1u]);
            let matches = ring[tokens_of(base) + place] == f32(targets[query]);
            if (matches && given[query * 4u] > NOTHING) {
                slope += given[query * 4u + 2u] * exp_any_f32(s - given[query * 4u]);
            }
            slopes[local] = slope;
        }
        workgroupBarrier();
        for (var i = 0u; i < some; i++) {
            for (var c = 0u; c < 4u; c++) {
                let column = chunk * 256u + c * 64u + local;
                if (column >= params.features) {
                    continue;
                }
                if (OWN) {
                    let query = table[params.offsets + first + i - before] + b;
                    sums[c] += slopes[i] * q[query * params.features + column];
                } else {
                    sums[c] += slopes[i] * ring[base + (first + i) % params.places * params.features + column];
                }
            }
        }
        workgroupBarrier();
    }
    if (group / params.chunks >= params.rows) {
        return;
    }
    for (var c = 0u; c < 4u; c++) {
        let column = chunk * 256u + c * 64u + local;
        if (column < params.features) {
            gradient[row * params.features + column] = sums[c];
        }
    }
}
