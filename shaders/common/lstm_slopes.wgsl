// What is saved of the gates of a unit, on the way back.
struct Gates {
    a: vec4<f32>,
    slope: vec4<f32>,
}

// Values and slopes of what is saved.
fn gates_of(z: vec4<f32>) -> Gates {
    var a = z;
    var slope = vec4<f32>(z.x * (1.0 - z.x), z.y * (1.0 - z.y), 1.0 - z.z * z.z, z.w * (1.0 - z.w));
    if (!SAVES_ACTIVATED) {
        a = vec4<f32>(gate_value(z.x), gate_value(z.y), candidate_value(z.z), gate_value(z.w));
        slope = vec4<f32>(
            activation_slope(GATE, GATE_ALPHA, GATE_BETA, within(z.x, CLIP)),
            activation_slope(GATE, GATE_ALPHA, GATE_BETA, within(z.y, CLIP)),
            activation_slope(CANDIDATE, CANDIDATE_ALPHA, CANDIDATE_BETA, within(z.z, CLIP)),
            activation_slope(GATE, GATE_ALPHA, GATE_BETA, within(z.w, CLIP)),
        );
        if (CLIP > 0.0) {
            slope = select(vec4<f32>(0.0), slope, abs(z) < vec4<f32>(CLIP));
        }
    }
    if (COUPLED) {
        a.y = 1.0 - a.x;
    }
    return Gates(a, slope);
}
