//! A program as text for people: what it holds, what is done for that, what runs, and where values live and for how long.

use super::footprint::amount;
use super::program::{Program, ProgramValue, Step, Storage};
use super::stage::{Action, Move, Side, Stage};
use super::strategy::{Executor, KERNEL_TABLE};
use crate::graph::Op;
use std::fmt::Write as _;

/// Columns and rows of the chart.
const CHART: (usize, usize) = (72, 8);
/// Heights within a character, in eighths.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl Program {
    /// The whole text.
    pub fn describe(&self) -> String {
        [self.summary(), self.chart(), self.stage_list(), self.value_list()].join("\n")
    }

    /// What it is compiled for, what it holds and what is done for that.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let axes: Vec<String> = self.capacity.axes.iter().map(|(t, n)| format!("T {t}, N {n}")).collect();
        let executor = format!("{:?}", self.target.executor).to_lowercase();
        let _ = writeln!(
            text,
            "program   {executor}, kernels {KERNEL_TABLE}, for up to B {}, {}",
            self.capacity.sequences,
            axes.join("; ")
        );
        let memory = self.memory();
        let parts: Vec<String> = [
            (memory.arenas, "values of a run"),
            (memory.persistent, "parameters and states"),
            (memory.packs, "packed weights"),
            (memory.tables, "tables and parameters of dispatches"),
            (memory.staging, "on the way"),
        ]
        .into_iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, what)| format!("{} {what}", amount(bytes)))
        .collect();
        let _ = writeln!(text, "memory    {}: {}", amount(memory.bytes()), parts.join(", "));
        if memory.offloaded > 0 {
            let kept = |v: &&ProgramValue| v.storage == Storage::Persistent;
            let away = self.values.iter().filter(kept).filter(|v| v.offloaded).count();
            let here = self.values.iter().filter(kept).count() - away;
            let _ = writeln!(
                text,
                "host      {} away from the device, {away} weights among them; {here} are resident",
                amount(memory.offloaded)
            );
            let [brought, sent] = self.traffic().map(amount);
            let _ = match self.target.executor {
                Executor::Gpu => writeln!(text, "moves     {brought} brought to the device a run, {sent} sent back"),
                _ => writeln!(text, "moves     none: what waits is read where it is"),
            };
        }
        let again = self.stages.iter().filter(|stage| stage.cut.is_some()).count() > 1;
        let sums = self.stage_steps().any(|step| step.accumulates);
        let bits = if self.measures.keeps_bits() || !sums { "" } else { " (the bits of gradients change)" };
        let _ = writeln!(text, "measures  {}{bits}", self.measures.text(again, sums));
        text
    }

    /// Bytes of the values that live at each action, of the stages one after the other.
    pub fn resident(&self) -> Vec<u64> {
        let actions: usize = self.stages.iter().map(|s| s.actions().count()).sum();
        let mut resident = vec![0; actions.max(1)];
        for &value in self.placement.places.keys() {
            let value = &self.values[value];
            let last = value.last.min(resident.len() - 1);
            let bytes = self.bytes(value);
            resident[value.first.min(last)..=last].iter_mut().for_each(|r| *r += bytes);
        }
        resident
    }

    /// The bytes that live over the program's actions, as bars.
    pub fn chart(&self) -> String {
        let resident = self.resident();
        let most = resident.iter().copied().max().unwrap_or(0).max(1);
        let columns = resident.len().min(CHART.0);
        let levels: Vec<usize> = (0..columns)
            .map(|c| {
                let range = c * resident.len() / columns..((c + 1) * resident.len() / columns).max(c + 1);
                let highest = resident[range].iter().copied().max().unwrap_or(0);
                (highest as f64 / most as f64 * (8 * CHART.1) as f64).ceil() as usize
            })
            .collect();
        let mut text = format!("live bytes over {} actions, at most {}\n", resident.len(), amount(most));
        for row in (0..CHART.1).rev() {
            let line: String = levels.iter().map(|level| BARS[level.saturating_sub(8 * row).min(8)]).collect();
            let _ = writeln!(text, "  {}", line.trim_end());
        }
        text
    }

    /// Every stage with its actions.
    pub fn stage_list(&self) -> String {
        let (mut text, mut at) = (String::new(), 0);
        for (number, stage) in self.stages.iter().enumerate() {
            let _ = writeln!(text, "stage {number}: {}", self.parts(stage));
            let moves = |all: &[Move]| all.iter().map(|m| Action::Move(*m)).collect::<Vec<_>>();
            for (when, actions) in
                [("before", moves(&stage.before)), ("", stage.body.clone()), ("after", moves(&stage.after))]
            {
                for action in actions {
                    let _ = writeln!(text, "{at:>5} {when:<6} {}", self.action(&action));
                    at += 1;
                }
            }
        }
        text
    }

    fn parts(&self, stage: &Stage) -> String {
        let Some(cut) = stage.cut else { return "once, all rows".to_string() };
        let steps = if cut.cuts_time() { format!("{} steps", cut.steps) } else { "all steps".to_string() };
        let sequences = match cut.sequences {
            usize::MAX => "all sequences".to_string(),
            n => format!("{n} sequences"),
        };
        let way = if stage.backward { "last part first" } else { "first part first" };
        format!("parts of {steps} of {sequences}, {way}, up to {} parts", cut.slots(&self.capacity))
    }

    fn action(&self, action: &Action) -> String {
        let name = |v: usize| self.values[v].label();
        match action {
            Action::Move(m) => {
                let side = |side: Side| match side {
                    Side::Zero => "zeros".to_string(),
                    Side::Input(at) => format!("the part's rows of input {}", self.inputs[at].0),
                    Side::Whole(v) => name(v).to_string(),
                    Side::Part(v) => format!("the part's rows of {}", name(v)),
                    Side::Slot(v) => format!("the part's slot of {}", name(v)),
                    Side::Home(v) => format!("{}, which waits away from the device", name(v)),
                };
                format!("copy {} to {}", side(m.from), side(m.to))
            }
            Action::Pack(step, workspace) => {
                format!("pack {} for {}", name(step.workspace[*workspace]), step.op.name())
            }
            Action::Bring(step, workspace) => {
                let from: Vec<String> = step.sources(*workspace).map(name).collect();
                let from = from.join(", ");
                format!("pack {} on its way from {from}, away from the device", name(step.workspace[*workspace]))
            }
            Action::Step(step) => {
                let list = |all: &[Option<usize>]| {
                    let names: Vec<String> = all.iter().flatten().map(|&v| name(v)).collect();
                    names.join(", ")
                };
                let sums = if step.accumulates { " (sums go on from part to part)" } else { "" };
                let strategy = self.strategy(step);
                format!("{}{strategy}: {} -> {}{sums}", step.op.name(), list(&step.inputs), list(&step.outputs))
            }
        }
    }

    /// How a step with a choice runs.
    fn strategy(&self, step: &Step) -> String {
        let recurrent = matches!(step.op, Op::Lstm(_) | Op::LstmBackward(_));
        match (self.target.executor, step.recurrence, step.product) {
            (_, Some(recurrence), Some(product)) => format!(" [{product}; {recurrence}]"),
            (_, Some(recurrence), None) => format!(" [{recurrence}]"),
            (_, None, Some(product)) if step.epilogue.is_some() => format!(" [{product}, with what becomes of it]"),
            (_, None, Some(product)) => format!(" [{product}]"),
            (Executor::Cpu, ..) if recurrent => " [sequences over threads]".to_string(),
            _ => String::new(),
        }
    }

    /// Every value that has memory: its size, where it lives and during which actions.
    pub fn value_list(&self) -> String {
        let mut text = String::from("values\n");
        for (at, value) in self.values.iter().enumerate() {
            let place = match (value.storage, self.placement.places.get(&at)) {
                (Storage::Persistent, _) if value.offloaded => "waits in the host's memory or its file".to_string(),
                (Storage::Persistent, _) => "kept by the session".to_string(),
                _ if value.offloaded => "in the host's memory".to_string(),
                _ if self.given.contains(&at) => "read where the caller has it".to_string(),
                (Storage::Of(other), _) if self.has_place(other) => {
                    format!("in the place of {}", self.values[other].name)
                }
                (Storage::Own, Some(p)) => {
                    let pieces: Vec<String> =
                        p.pieces.iter().map(|(a, offset)| format!("arena {a} at {offset}")).collect();
                    format!("{}, actions {} to {}", pieces.join(" and "), value.first, value.last)
                }
                _ => continue,
            };
            let kind = format!("{:?}", value.dtype).to_lowercase();
            let bytes = amount(self.bytes(value));
            let _ = writeln!(text, "  {bytes:>10}  {} {kind} {}: {place}", value.label(), value.shape);
        }
        for (at, bytes) in self.placement.arenas.iter().enumerate() {
            let _ = writeln!(text, "  {:>10}  arena {at}", amount(*bytes));
        }
        text
    }

    fn has_place(&self, value: usize) -> bool {
        let root = self.root(value);
        self.values[root].storage == Storage::Persistent || self.placement.places.contains_key(&root)
    }
}
