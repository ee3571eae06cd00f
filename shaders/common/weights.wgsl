// Packed weights, four at a time, in 32 bits. `weights_half` has the same in 16.
alias Weights = vec4<f32>;

fn four(packed: Weights) -> vec4<f32> {
    return packed;
}
