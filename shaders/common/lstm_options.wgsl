// What a cell is, as constants; see the host's `Cell`. The defaults are the plain cell.

override GATE: u32 = 8u;
override GATE_ALPHA: f32 = 0.0;
override GATE_BETA: f32 = 0.0;
override CANDIDATE: u32 = 3u;
override CANDIDATE_ALPHA: f32 = 1.0;
override CANDIDATE_BETA: f32 = 1.0;
override OUTPUT: u32 = 3u;
override OUTPUT_ALPHA: f32 = 1.0;
override OUTPUT_BETA: f32 = 1.0;
// Limits; 0 for none.
override CLIP: f32 = 0.0;
override CELL_CLIP: f32 = 0.0;
override GRADIENT_CLIP: f32 = 0.0;
override COUPLED: bool = false;
override PEEPHOLES: bool = false;
// Whether activated gates are saved, or pre-activations.
override SAVES_ACTIVATED: bool = true;
// Whether masks are drawn; otherwise zoneout is its expectation.
override TRAINING: bool = false;
override DROPOUT: f32 = 0.0;
override DROPOUT_STEP: bool = false;
override ZONEOUT_H: f32 = 0.0;
override ZONEOUT_C: f32 = 0.0;

fn within(x: f32, limit: f32) -> f32 {
    return select(x, clamp(x, -limit, limit), limit > 0.0);
}

fn gate_value(a: f32) -> f32 {
    return activate(GATE, GATE_ALPHA, GATE_BETA, within(a, CLIP));
}

fn candidate_value(a: f32) -> f32 {
    return activate(CANDIDATE, CANDIDATE_ALPHA, CANDIDATE_BETA, within(a, CLIP));
}

// Whether the word of a unit, of one of the layer's random operations, is below what drops at this rate.
fn drops(key: vec2<u32>, sample: u32, time: u32, unit: u32, rate: f32) -> bool {
    let words = threefry(threefry(key, vec2<u32>(sample, time)), vec2<u32>(unit / 2u, 0u));
    let word = select(words.x, words.y, (unit & 1u) == 1u);
    // Rates are multiples of 2^-24 here, which f32 holds.
    return (word >> 8u) < u32(rate * 16777216.0);
}

// The factor of an element of h before it meets U at time `time`.
fn recurrent_mask(key: vec2<u32>, sample: u32, time: u32, unit: u32) -> f32 {
    if (!TRAINING || DROPOUT == 0.0) {
        return 1.0;
    }
    let at = select(0xffffffffu, time, DROPOUT_STEP);
    return select(1.0 / (1.0 - DROPOUT), 0.0, drops(key, sample, at, unit, DROPOUT));
}

// How much of the last state stays.
fn stays(key: vec2<u32>, sample: u32, time: u32, unit: u32, rate: f32) -> f32 {
    if (!TRAINING || rate == 0.0) {
        return rate;
    }
    return select(0.0, 1.0, drops(key, sample, time, unit, rate));
}
