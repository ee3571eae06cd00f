var<workgroup> parts: array<f32, 64>;

// The sum of what 64 threads give, in a fixed order; reached by all of them.
fn workgroup_sum(local: u32, value: f32) -> f32 {
    parts[local] = value;
    workgroupBarrier();
    for (var span = 32u; span > 0u; span /= 2u) {
        if (local < span) {
            parts[local] += parts[local + span];
        }
        workgroupBarrier();
    }
    let sum = parts[0];
    workgroupBarrier();
    return sum;
}
