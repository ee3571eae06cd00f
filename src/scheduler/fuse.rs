//! Elementwise steps that only feed another one of the same shape become part of it: one pass over the values less.

use super::program::{ProgramValue, Step};
use super::strategy::{Executor, Target};
use crate::graph::{Expr, Op};

/// Most operations of an expression that is read more than once, since it is then computed more than once.
const REPEATED: usize = 8;

/// Most operations of a fused expression, and values of a fused step: compilers refuse what is nested too deeply, and what
/// reads much is as fast in two passes.
const MOST_OPERATIONS: usize = 64;
const MOST_VALUES: usize = 16;

/// Fuses what can be, on a GPU what products alone feed with them. Values that `kept` names stay, for they are read from outside.
pub(super) fn fuse(steps: &mut Vec<Step>, values: &[ProgramValue], kept: &[usize], target: &Target) {
    let mut at = 0;
    while at < steps.len() {
        match producer(steps, values, kept, target, at) {
            Some((from, fused)) => {
                steps[at] = fused;
                steps.remove(from);
                // What is at `at - 1` now may read what another step makes.
                at -= 1;
            }
            None => at += 1,
        }
    }
    if target.executor == Executor::Gpu {
        epilogues(steps, values, kept);
    }
    for (number, step) in steps.iter_mut().enumerate() {
        step.number = number;
    }
}

/// Elementwise steps that read nothing but a product become its epilogue.
fn epilogues(steps: &mut Vec<Step>, values: &[ProgramValue], kept: &[usize]) {
    let mut at = 0;
    while at < steps.len() {
        let Some((from, expr)) = product(steps, values, kept, at) else {
            at += 1;
            continue;
        };
        steps[from].outputs = steps.remove(at).outputs;
        steps[from].epilogue = Some(expr);
    }
}

/// The product that step `at` makes something of, and what.
fn product(steps: &[Step], values: &[ProgramValue], kept: &[usize], at: usize) -> Option<(usize, Expr)> {
    let Op::Elementwise { exprs } = &steps[at].op else { return None };
    let ([expr], [Some(value)], [Some(output)]) =
        (exprs.as_slice(), steps[at].inputs.as_slice(), steps[at].outputs.as_slice())
    else {
        return None;
    };
    let mut alone = true;
    expr.visit(&mut |e| alone &= !matches!(e, Expr::Scalar(_) | Expr::Size(_)));
    let read: usize = steps.iter().map(|s| s.inputs.iter().filter(|v| **v == Some(*value)).count()).sum();
    if !alone || read != 1 || kept.contains(value) || values[*value].shape != values[*output].shape {
        return None;
    }
    let is_product = |s: &Step| matches!(s.op, Op::Linear | Op::MatMul) && s.outputs == [Some(*value)];
    let from = steps[..at].iter().position(|s| is_product(s) && s.epilogue.is_none())?;
    Some((from, expr.clone()))
}

/// A step whose only output only step `at` reads, and what both are together.
fn producer(
    steps: &[Step],
    values: &[ProgramValue],
    kept: &[usize],
    target: &Target,
    at: usize,
) -> Option<(usize, Step)> {
    let step = &steps[at];
    let Op::Elementwise { exprs } = &step.op else { return None };
    let shape = &values[step.outputs.iter().copied().flatten().next()?].shape;
    (0..step.inputs.len()).find_map(|input| {
        let value = step.inputs[input].filter(|v| !kept.contains(v) && values[*v].shape == *shape)?;
        let from = steps[..at].iter().position(|s| s.outputs.contains(&Some(value)))?;
        let Op::Elementwise { exprs: made } = &steps[from].op else { return None };
        let [made] = made.as_slice() else { return None };
        let reads = |s: &Step| s.inputs.iter().filter(|v| **v == Some(value)).count();
        if steps.iter().map(reads).sum::<usize>() != 1 {
            return None;
        }
        let mut uses = 0;
        exprs.iter().for_each(|e| e.visit(&mut |e| uses += usize::from(*e == Expr::Input(input))));
        let mut size = 0;
        made.visit(&mut |e| size += usize::from(!matches!(e, Expr::Input(_) | Expr::Const(_))));
        if uses > 1 && size > REPEATED {
            return None;
        }
        // What it reads in place of the value is held for longer: no more than that.
        let full = |v: &&Option<usize>| v.is_some_and(|v| values[v].shape == *shape) && !step.inputs.contains(v);
        if from + 1 < at && steps[from].inputs.iter().filter(full).count() > 1 {
            return None;
        }
        let fused = together(step, exprs, input, &steps[from], made);
        let fits = bindings(&fused) <= target.limits.storage_bindings.min(MOST_VALUES);
        (fits && operations(&fused) <= MOST_OPERATIONS).then_some((from, fused))
    })
}

fn operations(step: &Step) -> usize {
    let Op::Elementwise { exprs } = &step.op else { return 0 };
    let mut count = 0;
    exprs.iter().for_each(|e| e.visit(&mut |_| count += 1));
    count
}

fn bindings(step: &Step) -> usize {
    let mut all: Vec<usize> = step.inputs.iter().chain(&step.outputs).copied().flatten().collect();
    all.sort_unstable();
    all.dedup();
    all.len()
}

/// `step` with what `from` computes in place of its input number `input`.
fn together(step: &Step, exprs: &[Expr], input: usize, from: &Step, made: &Expr) -> Step {
    let mut inputs = step.inputs.clone();
    inputs.remove(input);
    // Inputs of `from` that `step` has already are read once.
    let places: Vec<usize> = from
        .inputs
        .iter()
        .map(|value| {
            inputs.iter().position(|v| v == value).unwrap_or_else(|| {
                inputs.push(*value);
                inputs.len() - 1
            })
        })
        .collect();
    let made = made.with_inputs(&|i| Expr::Input(places[i]));
    let exprs = exprs.iter().map(|e| {
        e.with_inputs(&|i| match i.cmp(&input) {
            std::cmp::Ordering::Less => Expr::Input(i),
            std::cmp::Ordering::Equal => made.clone(),
            std::cmp::Ordering::Greater => Expr::Input(i - 1),
        })
    });
    Step { op: Op::Elementwise { exprs: exprs.collect() }, inputs, ..step.clone() }
}
