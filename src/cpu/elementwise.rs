//! Runs compiled expressions over all elements, block by block.

use super::call::{Call, Operand};
use super::math;
use super::rows::rows_a_task;
use super::simd::dispatch;
use super::tape::{Action, Instruction, Source, Tape};
use super::threads;
use crate::error::{Error, Result};
use crate::graph::{Binary, Broadcast, Unary};

/// Elements of a register; a few of them stay in the first cache.
const BLOCK: usize = 512;

/// A range of the elements: where it begins, and its part of each output.
struct Task<'a> {
    first: usize,
    outputs: Vec<Option<&'a mut [f32]>>,
}

/// What all tasks share.
struct Job<'a> {
    tape: &'a Tape,
    /// The output of each result of the tape.
    wanted: Vec<usize>,
    inputs: &'a [Option<Operand<'a>>],
    scalars: &'a [f32],
    /// Values in a row of the output.
    columns: usize,
}

/// Evaluates the step's expressions. Inputs that live in the place of an output are read block by block, before the
/// block is written.
pub(super) fn elementwise(call: &mut Call<'_>, tape: &Tape, columns: usize) -> Result<()> {
    let mut outputs = std::mem::take(&mut call.outputs);
    let wanted: Vec<usize> = (0..outputs.len()).filter(|&o| outputs[o].is_some()).collect();
    let Some(len) = wanted.first().and_then(|&o| outputs[o].as_ref()).map(|o| o.len()) else { return Ok(()) };
    for input in call.inputs.iter().flatten() {
        if input.data.is_none() && input.in_place_of.is_none_or(|o| !wanted.contains(&o)) {
            return Err(Error::internal("an input has no values"));
        }
    }
    let cost = (tape.instructions.len() + 1) * 2;
    let each = rows_a_task(len, cost).next_multiple_of(BLOCK);
    let mut tasks: Vec<Task<'_>> =
        (0..len.div_ceil(each)).map(|i| Task { first: i * each, outputs: Vec::new() }).collect();
    for output in &mut outputs {
        let mut parts = output.as_mut().map(|o| o.chunks_mut(each));
        tasks.iter_mut().for_each(|task| task.outputs.push(parts.as_mut().and_then(Iterator::next)));
    }
    let job = Job { tape, wanted, inputs: &call.inputs, scalars: call.scalars, columns: columns.max(1) };
    threads::each(tasks.iter_mut(), |task| job.run(task));
    Ok(())
}

impl Job<'_> {
    fn run(&self, task: &mut Task<'_>) {
        dispatch(
            #[inline(always)]
            || self.run_blocks(task),
        );
    }

    #[inline(always)]
    fn run_blocks(&self, task: &mut Task<'_>) {
        let mut registers = vec![vec![0.0; BLOCK]; self.tape.registers];
        for instruction in &self.tape.uniform {
            self.step(instruction, &mut registers, task, 0, BLOCK);
        }
        let len = task.outputs.iter().flatten().map(|o| o.len()).next().unwrap_or(0);
        for begin in (0..len).step_by(BLOCK) {
            let size = BLOCK.min(len - begin);
            for instruction in &self.tape.instructions {
                self.step(instruction, &mut registers, task, begin, size);
            }
            // An input in the place of one output may be the result for another: read all, then write.
            let results = self.tape.results.iter().zip(&self.wanted);
            let inputs = results.filter(|(result, _)| matches!(result, Source::Input(_)));
            let copies: Vec<(usize, Vec<f32>)> =
                inputs.map(|(r, &o)| (o, self.block(*r, &registers, task, begin, size).to_vec())).collect();
            copies.iter().for_each(|(output, values)| self.write(task, *output, begin, values));
            for (result, &output) in self.tape.results.iter().zip(&self.wanted) {
                if let Source::Register(r) = *result {
                    self.write(task, output, begin, &registers[r][..size]);
                }
            }
        }
    }

    fn write(&self, task: &mut Task<'_>, output: usize, begin: usize, values: &[f32]) {
        if let Some(to) = &mut task.outputs[output] {
            to[begin..begin + values.len()].copy_from_slice(values);
        }
    }

    fn input(&self, at: usize) -> &Operand<'_> {
        static NONE: Operand<'static> =
            Operand { data: None, shape: &[], axis: None, version: None, in_place_of: None };
        self.inputs[at].as_ref().unwrap_or(&NONE)
    }

    /// The block of an operand that begins at element `begin` of the task.
    #[inline(always)]
    fn block<'b>(
        &'b self,
        source: Source,
        registers: &'b [Vec<f32>],
        task: &'b Task<'_>,
        begin: usize,
        size: usize,
    ) -> &'b [f32] {
        match source {
            Source::Register(r) => &registers[r][..size],
            Source::Input(i) => {
                let input = self.input(i);
                match (input.data, input.in_place_of.and_then(|o| task.outputs[o].as_ref())) {
                    (Some(data), _) => &data[task.first + begin..][..size],
                    (None, Some(output)) => &output[begin..begin + size],
                    (None, None) => &[],
                }
            }
        }
    }

    /// Runs one instruction over one block.
    #[inline(always)]
    fn step(&self, at: &Instruction, registers: &mut [Vec<f32>], task: &Task<'_>, begin: usize, size: usize) {
        let mut register = std::mem::take(&mut registers[at.to]);
        let to = &mut register[..size];
        let operand = |n: usize| self.block(at.operands[n], registers, task, begin, size);
        match at.action {
            Action::Const(bits) => to.fill(f32::from_bits(bits)),
            Action::Scalar(s) => to.fill(self.scalars[s]),
            Action::Spread(spread, i) => {
                spread_block(spread, self.input(i).data.unwrap_or(&[]), task.first + begin, self.columns, to);
            }
            Action::Unary(f) => unary(f, to, operand(0)),
            Action::Binary(f) => binary(f, to, operand(0), operand(1)),
            Action::Select => {
                let (a, b) = (operand(1), operand(2));
                for (((to, c), a), b) in to.iter_mut().zip(operand(0)).zip(a).zip(b) {
                    *to = if *c != 0.0 { *a } else { *b };
                }
            }
        }
        registers[at.to] = register;
    }
}

/// The elements `first..` of an input that spreads over rows of `columns`.
#[inline(always)]
fn spread_block(spread: Broadcast, data: &[f32], first: usize, columns: usize, to: &mut [f32]) {
    if spread == Broadcast::Scalar {
        return to.fill(data.first().copied().unwrap_or(0.0));
    }
    let (mut row, mut column, mut at) = (first / columns, first % columns, 0);
    while at < to.len() {
        let size = (columns - column).min(to.len() - at);
        let part = &mut to[at..at + size];
        match spread {
            Broadcast::Row => part.copy_from_slice(&data[column..column + size]),
            _ => part.fill(data[row]),
        }
        (row, column, at) = (row + 1, 0, at + size);
    }
}

#[inline(always)]
fn map(to: &mut [f32], a: &[f32], f: impl Fn(f32) -> f32) {
    to.iter_mut().zip(a).for_each(|(to, &a)| *to = f(a));
}

#[inline(always)]
fn unary(f: Unary, to: &mut [f32], a: &[f32]) {
    let flag = |b: bool| if b { 1.0 } else { 0.0 };
    match f {
        Unary::Neg => map(to, a, |a| -a),
        Unary::Exp => map(to, a, math::exp),
        Unary::Log => map(to, a, f32::ln),
        Unary::Sqrt => map(to, a, f32::sqrt),
        Unary::Abs => map(to, a, f32::abs),
        Unary::Sign => map(to, a, |a| flag(a > 0.0) - flag(a < 0.0)),
        Unary::Sigmoid => map(to, a, math::sigmoid),
        Unary::Tanh => map(to, a, math::tanh),
        Unary::IsFinite => map(to, a, |a| flag(a.abs() < f32::INFINITY)),
    }
}

#[inline(always)]
fn zip(to: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) {
    to.iter_mut().zip(a.iter().zip(b)).for_each(|(to, (&a, &b))| *to = f(a, b));
}

#[inline(always)]
fn binary(f: Binary, to: &mut [f32], a: &[f32], b: &[f32]) {
    match f {
        Binary::Add => zip(to, a, b, |a, b| a + b),
        Binary::Sub => zip(to, a, b, |a, b| a - b),
        Binary::Mul => zip(to, a, b, |a, b| a * b),
        Binary::Div => zip(to, a, b, |a, b| a / b),
        // As the derivative decides: a unless b is larger (or smaller), so a NaN in a stays.
        Binary::Max => zip(to, a, b, |a, b| if a < b { b } else { a }),
        Binary::Min => zip(to, a, b, |a, b| if b < a { b } else { a }),
        Binary::Less => zip(to, a, b, |a, b| if a < b { 1.0 } else { 0.0 }),
    }
}
