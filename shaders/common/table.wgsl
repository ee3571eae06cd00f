// The timestep of a packed row: the last t with offset(t) <= row, from a table that holds T+1 first rows at `base`.
fn step_of(row: u32, base: u32, steps: u32) -> u32 {
    var low = 0u;
    var high = steps;
    while (high - low > 1u) {
        let middle = (low + high) / 2u;
        if (table[base + middle] <= row) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
