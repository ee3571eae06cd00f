// What a workgroup of a normalised cell computes: one sequence in one direction, at the step of the parameters.

struct Place {
    b: u32,
    d: u32,
    row: u32,   // among all packed rows
    held: bool, // whether the bound piece holds the row
    base: u32,  // the row's first unit in what is bound
}

fn place_of(group: u32) -> Place {
    let d = group % params.directions;
    // The same for the whole workgroup, so that barriers are reached by all.
    let b = min(group / params.directions, params.running - 1u);
    let row = row_of(b, d, params.step);
    let held = group / params.directions < params.running && row >= params.piece_start && row < params.piece_end;
    let base = (select(0u, row - params.piece_start, held) * params.directions + d) * params.hidden;
    return Place(b, d, row, held, base);
}
