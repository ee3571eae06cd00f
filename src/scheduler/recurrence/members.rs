//! Which members of each family of strategies are tried for a layer, and a table that chooses one.

use super::{Family, Layer, REGISTER_THREADS, Recurrence, STEP_ROWS, Threads, Weights, step_groups};
use super::{PATIENCE, SOFTWARE_PATIENCE};
use crate::error::{Error, Result};
use crate::scheduler::strategy::{Broadcast, CORES, Target, broadcast};

/// Fewest units of a workgroup of *grid*: fewer make a meeting of more workgroups than it is worth. An estimate.
const GRID_UNITS: usize = 8;

/// Most threads of a workgroup of *step*, and most slices.
const STEP_THREADS: usize = 256;
const STEP_SLICES: usize = 64;

/// Cycles until a load has come from the cache that all cores share, and those of a step's beginning and end.
const LOAD_CYCLES: usize = 750;
const STEP_CYCLES: usize = 3000;

impl Layer {
    /// The member of [`Family::Grid`] that gives a workgroup the least work.
    fn grid(&self, target: &Target) -> Option<Recurrence> {
        let slices = self.depth().div_ceil(self.register_rows());
        let patience = if target.software { SOFTWARE_PATIENCE } else { PATIENCE };
        let of = |rows: usize| {
            let tiles = self.directions * self.sequences.div_ceil(rows);
            let blocks = (target.limits.resident / tiles).min(self.hidden.div_ceil(GRID_UNITS));
            let units = self.hidden.div_ceil(blocks.max(1));
            let threads = Threads { units, slices };
            // Few sequences at a time leave room for the sums of many slices.
            let passes = std::iter::successors(Some(rows), |p| (*p > 1).then_some(p / 2));
            let fits = |r: &Recurrence| threads.count() <= REGISTER_THREADS && self.admits(*r, target);
            passes.map(|pass| Recurrence::Grid { rows, pass, threads, patience }).find(fits)
        };
        let work = |r: &Recurrence| match r {
            Recurrence::Grid { rows, threads, .. } => rows * threads.units,
            _ => usize::MAX,
        };
        // A single workgroup a tile has nobody to meet.
        let shared = |r: &Recurrence| matches!(r, Recurrence::Grid { threads, .. } if threads.units < self.hidden);
        [1, 2, 4, 8].into_iter().filter_map(of).filter(shared).min_by_key(work)
    }

    /// The members of [`Family::Step`] that `target` can run, the one expected to be fastest first: by what a step takes on a
    /// large GPU, in cycles, where each core runs a workgroup of a few hundred threads. Operands come ahead of their use before they
    /// come as they are used; a software GPU has nothing to wait for, and compiles for long.
    fn steps(&self, target: &Target) -> Vec<Recurrence> {
        let times = if target.software { &[false][..] } else { &[true, false] };
        let most = self.sequences.clamp(1, STEP_ROWS).next_power_of_two();
        let across = self.lanes().next_power_of_two().max(4);
        let mut all = Vec::new();
        // Of two alike the first: small tiles of many units, whose weights lie side by side.
        for rows in std::iter::successors(Some(most.min(8)), |r| (*r < most).then_some(r * 2)) {
            for units in [32, 16, 8, 4].into_iter().filter(|units| *units <= across) {
                // As many slices as fill a workgroup, of a few vectors each.
                let slices = std::iter::successors(Some(STEP_SLICES), |s| (*s > 1).then_some(s / 2)).find(|&slices| {
                    let threads = Threads { units, slices };
                    let fits = threads.count() * step_groups(rows)[1] <= STEP_THREADS;
                    let enough = slices * 2 <= self.depth() || slices == 1;
                    enough && fits && self.admits(Recurrence::Step { rows, threads, ahead: false }, target)
                });
                let Some(slices) = slices else { continue };
                let cycles = self.step_cycles(rows, units, slices);
                let of = |&ahead: &bool| Recurrence::Step { rows, threads: Threads { units, slices }, ahead };
                all.extend(times.iter().map(of).map(|recurrence| (recurrence, cycles)));
            }
        }
        all.sort_by_key(|(_, cycles)| *cycles);
        all.into_iter().map(|(recurrence, _)| recurrence).collect()
    }

    /// Cycles of one step of *step*: cores take workgroups in turns, and in each a thread takes its turns over its slice. From
    /// what an H200 took for 22 tiles of each of three layers (`docs/performance.md`): what counts is how often a thread waits for
    /// its operands, not how much all read.
    fn step_cycles(&self, rows: usize, units: usize, slices: usize) -> usize {
        let [own, groups] = step_groups(rows);
        let workgroups = self.directions * self.sequences.div_ceil(rows) * self.lanes().div_ceil(units);
        let at_once = CORES * (STEP_THREADS / (units * slices * groups)).max(1);
        // Eight warps of a core multiply in the time that two operands are on their way.
        let turn = (32 * own).max(LOAD_CYCLES / 2);
        workgroups.div_ceil(at_once) * (self.depth().div_ceil(slices) * turn + STEP_CYCLES + 8 * slices)
    }

    /// The best guess at a member of `family`, if the device can run one.
    pub fn member(&self, family: Family, target: &Target) -> Option<Recurrence> {
        let rows = match self.sequences {
            0..=128 => 1,
            129..=256 => 2,
            257..=512 => 4,
            _ => 8,
        };
        let most = target.limits.invocations;
        let spread = |rows: usize| {
            let units = self.hidden.next_multiple_of(32).min(most.min(256));
            // A slice has at least four rows to sum.
            let slices = (most.min(512) / units).min(self.depth().div_ceil(4)).clamp(1, 8);
            let threads = Threads { units, slices };
            Recurrence::Sequence { rows, threads, weights: Weights::Streamed }
        };
        let fitting = |rows: usize| {
            std::iter::successors(Some(rows), |r| (*r > 1).then_some(r / 2))
                .map(spread)
                .find(|r| self.admits(*r, target))
        };
        match family {
            Family::Step => self.steps(target).into_iter().next(),
            Family::Matrix => Some(Recurrence::Matrix { side: target.matrix() }).filter(|r| self.admits(*r, target)),
            Family::Streamed => fitting(rows),
            Family::Held => {
                let streamed = fitting(rows)?;
                let Recurrence::Sequence { rows, threads, .. } = streamed else { return None };
                let left = target.limits.workgroup.checked_sub(self.workgroup_bytes(streamed))?;
                let held = (left / (16 * self.row())).min(self.depth());
                let held = Recurrence::Sequence { rows, threads, weights: Weights::Held(held) };
                (left >= 16 * self.row() && self.admits(held, target)).then_some(held)
            }
            Family::Registers => {
                let units = self.hidden.next_multiple_of(32);
                let threads = Threads { units, slices: self.depth().div_ceil(self.register_rows()) };
                let of = |rows| Recurrence::Sequence { rows, threads, weights: Weights::Registers };
                std::iter::successors(Some(rows), |r| (*r > 1).then_some(r / 2))
                    .map(of)
                    .find(|r| self.admits(*r, target))
            }
            Family::Grid => self.grid(target),
        }
    }

    /// What a tuner compares of `family`: the best guess, and of *step* the same with operands that come at another time.
    pub fn members(&self, family: Family, target: &Target) -> Vec<Recurrence> {
        match family {
            Family::Step => self.steps(target).into_iter().take(2).collect(),
            _ => self.member(family, target).into_iter().collect(),
        }
    }

    /// The fixed table. Measured on an H200: weights stay in registers wherever a workgroup can keep them. Estimated: up to 192
    /// units a workgroup reads weights from its cache sooner than a dispatch begins.
    /// Measured on lavapipe: a dispatch a timestep costs more than the step itself up to 64 units of 8 sequences.
    pub fn by_table(&self, target: &Target) -> Result<Recurrence> {
        const STREAMED_UNITS: usize = 192;
        const SOFTWARE_UNITS: usize = 64;
        const SOFTWARE_SEQUENCES: usize = 8;
        // Half of a tile of matrix units, which computes the other half for nothing.
        let matrix = || self.member(Family::Matrix, target).filter(|_| self.sequences >= target.matrix());
        if broadcast(target) == Broadcast::Subgroup && target.matrix() == 0 {
            let few = self.hidden <= SOFTWARE_UNITS && self.sequences <= SOFTWARE_SEQUENCES;
            let inside = self.member(Family::Registers, target).filter(|_| few);
            return Ok(inside.unwrap_or(Recurrence::Broadcast));
        }
        let registers = self.member(Family::Registers, target);
        let streamed = || self.member(Family::Streamed, target).filter(|_| self.hidden <= STREAMED_UNITS);
        let step = || self.member(Family::Step, target);
        let inside = if target.software { None } else { registers.or_else(|| matrix().or_else(streamed)) };
        inside.or_else(matrix).or_else(step).ok_or_else(|| {
            Error::unsupported(format!("lstm: no kernel for H {} fits the device's workgroups", self.hidden))
        })
    }
}
