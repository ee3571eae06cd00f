// What the kernels of attention share: parameters, bindings, the score of a query and a key, a row's partners.

struct Params {
    features: u32,      // D of queries and keys
    columns: u32,       // V of values
    rows: u32,          // of the axis whose rows own the output
    chunks: u32,        // workgroups a row, each for 256 of its columns
    own_offsets: u32,   // of that axis: where the first rows of steps begin in `table`
    own_steps: u32,
    own_order: u32,     // the batch's row of each of its sequences
    other_offsets: u32, // of the axis that it meets
    other_lengths: u32,
    other_places: u32,  // the place of each of the batch's rows
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;     // [Nq, features]
@group(0) @binding(2) var<storage, read> k: array<f32>;     // [Nk, features]
@group(0) @binding(3) var<storage, read> v: array<f32>;     // [Nk, columns]
@group(0) @binding(4) var<storage, read> s: array<f32>;     // [features], of additive scores
@group(0) @binding(5) var<storage, read> table: array<u32>; // the regions of all axes

// Scores are Σ s tanh(q + k), else q · k.
override ADDITIVE: bool = false;
// Whether there is an s.
override SCALED: bool = false;
// Whether a query sees only keys of steps up to its own.
override CAUSAL: bool = false;

fn scale_of(d: u32) -> f32 {
    if (!SCALED) {
        return 1.0;
    }
    return s[d];
}

fn score(query: u32, key: u32) -> f32 {
    let a = query * params.features;
    let b = key * params.features;
    var sum = 0.0;
    for (var d = 0u; d < params.features; d++) {
        if (ADDITIVE) {
            sum += scale_of(d) * tanh_f32(q[a + d] + k[b + d]);
        } else {
            sum += q[a + d] * k[b + d];
        }
    }
    return sum;
}

// The steps first .. end of the other axis that a row meets, and where that sequence lies on it.
struct Partners {
    first: u32,
    end: u32,
    place: u32,
}

fn partners(row: u32, of_queries: bool) -> Partners {
    let t = step_of(row, params.own_offsets, params.own_steps);
    let b = row - table[params.own_offsets + t];
    let place = table[params.other_places + table[params.own_order + b]];
    let length = table[params.other_lengths + place];
    if (!CAUSAL) {
        return Partners(0u, length, place);
    }
    if (of_queries) {
        return Partners(0u, min(length, t + 1u), place);
    }
    return Partners(min(t, length), length, place);
}

fn partner(met: Partners, t: u32) -> u32 {
    return table[params.other_offsets + t] + met.place;
}
