var<workgroup> parts: array<f32, 64>;
var<workgroup> totals: array<f32, 8>;

// The sum of what 64 threads give, in a fixed order; reached by all of them. Eights are summed first, so that two barriers
// do: a next call overwrites `parts` and `totals` only after the barrier that follows the last read of each.
fn workgroup_sum(local: u32, value: f32) -> f32 {
    parts[local] = value;
    workgroupBarrier();
    if (local < 8u) {
        var eight = 0.0;
        for (var i = 0u; i < 8u; i++) {
            eight += parts[local * 8u + i];
        }
        totals[local] = eight;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) {
        sum += totals[i];
    }
    return sum;
}
