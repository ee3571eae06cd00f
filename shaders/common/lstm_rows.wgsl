// Where the steps of a direction lie among the packed rows. Direction d runs back in time where bit d of `reverse` is set.

fn reversed(d: u32) -> bool {
    return ((params.reverse >> d) & 1u) == 1u;
}

// The time of step `step` of sequence `b` in direction `d`'s order.
fn time_of(b: u32, d: u32, step: u32) -> u32 {
    return select(step, table[params.lengths + b] - 1u - step, reversed(d));
}

fn row_of(b: u32, d: u32, step: u32) -> u32 {
    return table[params.offsets + time_of(b, d, step)] + b;
}
