// Packed weights, four at a time, in 16 bits; `weights` has the same in 32. No feature is needed to unpack them.
alias Weights = vec2<u32>;

fn four(packed: Weights) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(packed.x), unpack2x16float(packed.y));
}
