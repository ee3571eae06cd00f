//! Expressions over broadcast values: generated bindings and a generated `apply`.

use super::{Runner, input, kernel, params, word};
use crate::error::{Error, Result};
use crate::gpu::pipeline::{Binding, Kernel};
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::{Binary, Broadcast, Expr, Shape, Unary, broadcast};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;
use std::fmt::Write as _;

params!(Params { len: u32, columns: u32 });

/// The prelude adds the run's scalars and the values to these bindings.
pub(super) static KERNEL: Kernel = kernel!("elementwise", "main", Params, [Params, Run]);

/// One or more expressions over the same values.
pub(super) struct Elementwise {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    output: usize,
    columns: usize,
}

/// What an expression reads or writes: a binding and how it spreads.
struct Operand {
    binding: usize,
    spread: Broadcast,
}

impl Elementwise {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, exprs: &[Expr]) -> Result<Self> {
        let values = preparer.values;
        let written: Vec<(usize, &Expr)> =
            step.outputs.iter().zip(exprs).filter_map(|(v, e)| Some(((*v)?, e))).collect();
        let first = written.first().ok_or_else(|| Error::internal("nothing is written"))?.0;
        let shape = values.shape(first).clone();
        // One binding a storage, those that are written first.
        let mut bound: Vec<usize> = Vec::new();
        let mut bind = |value: usize| {
            let root = values.program.root(value);
            bound.iter().position(|&v| values.program.root(v) == root).unwrap_or_else(|| {
                bound.push(value);
                bound.len() - 1
            })
        };
        let outputs: Vec<usize> = written.iter().map(|(v, _)| bind(*v)).collect();
        let count = outputs.iter().max().map_or(0, |m| m + 1);
        let mut operands: Vec<Option<Operand>> = Vec::new();
        for at in 0..step.inputs.len() {
            let value = input(step, at)?;
            let used = written.iter().any(|(_, e)| {
                let mut found = false;
                e.visit(&mut |e| found |= *e == Expr::Input(at));
                found
            });
            let spread = broadcast(&shape, values.shape(value)).ok_or_else(|| Error::internal("no broadcast"))?;
            operands.push(used.then(|| Operand { binding: bind(value), spread }));
        }
        let most = values.program.target.limits.storage_bindings;
        if bound.len() > most {
            return Err(Error::unsupported(format!(
                "{} values in one expression, the device binds {most}",
                bound.len()
            )));
        }
        let exprs: Vec<&Expr> = written.iter().map(|w| w.1).collect();
        let scalar = |e: &Expr| values.program.scalar_index(e);
        let prelude = prelude(bound.len(), count, &outputs, &operands, &exprs, &scalar)?;
        let storage = (0..bound.len()).map(|b| if b < count { Binding::Write } else { Binding::Read });
        let bindings: Vec<Binding> = KERNEL.bindings.iter().copied().chain(storage).collect();
        let axis = row_axis(&shape);
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = bound
                .iter()
                .map(|&v| Ok(Some(values.view(v, if row_axis(values.shape(v)).is_some() { p } else { 0 })?)))
                .collect::<Result<Vec<_>>>()?;
            pieces.push(preparer.launch_with(&KERNEL, &prelude, Some(bindings.clone()), &Vec::new(), &views)?);
        }
        Ok(Self { pieces, axis, output: first, columns: columns(&shape) })
    }
}

/// Values in one row, as `apply` counts: all but the outermost dimension.
fn columns(shape: &Shape) -> usize {
    shape.row_len().unwrap_or(1).max(1)
}

impl Runner for Elementwise {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        for (p, start, end) in run.pieces(self.axis, run.rows(self.output)?) {
            let len = (end - start) * self.columns;
            let params = Params { len: word(len), columns: word(self.columns) };
            out.dispatch(&self.pieces[p], &params, len.div_ceil(256));
        }
        Ok(())
    }
}

/// Declares the bindings and `apply`.
fn prelude(
    bound: usize,
    written: usize,
    outputs: &[usize],
    operands: &[Option<Operand>],
    exprs: &[&Expr],
    scalar: &dyn Fn(&Expr) -> Option<usize>,
) -> Result<String> {
    let mut text = String::from("@group(0) @binding(1) var<uniform> scalars: array<vec4<f32>, 16>;\n");
    for b in 0..bound {
        let access = if b < written { "read_write" } else { "read" };
        let _ = writeln!(text, "@group(0) @binding({}) var<storage, {access}> v{b}: array<f32>;", b + 2);
    }
    text.push_str("fn apply(i: u32, row: u32, column: u32) {\n");
    for (at, operand) in operands.iter().enumerate() {
        let Some(operand) = operand else { continue };
        let index = match operand.spread {
            Broadcast::Full => "i",
            Broadcast::Row => "column",
            Broadcast::Column => "row",
            Broadcast::Scalar => "0",
        };
        let _ = writeln!(text, "    let x{at} = v{}[{index}];", operand.binding);
    }
    for (at, expr) in exprs.iter().enumerate() {
        let _ = writeln!(text, "    let y{at} = {};", wgsl(expr, scalar)?);
    }
    for (at, binding) in outputs.iter().enumerate() {
        let _ = writeln!(text, "    v{binding}[i] = y{at};");
    }
    text.push_str("}\n");
    Ok(text)
}

/// `expr` in WGSL.
fn wgsl(expr: &Expr, scalar: &dyn Fn(&Expr) -> Option<usize>) -> Result<String> {
    let go = |e: &Expr| wgsl(e, scalar);
    Ok(match expr {
        Expr::Input(i) => format!("x{i}"),
        Expr::Const(c) if c.is_finite() => format!("f32({c:?})"),
        Expr::Const(c) => format!("float_of({}u)", c.to_bits()),
        Expr::Scalar(_) | Expr::Size(_) => {
            let at = scalar(expr).ok_or_else(|| Error::internal("a scalar is not among the program's"))?;
            format!("scalars[{}][{}]", at / 4, at % 4)
        }
        Expr::Unary(f, a) => {
            let a = go(a)?;
            match f {
                Unary::Neg => format!("(-{a})"),
                Unary::Exp => format!("exp_any_f32({a})"),
                Unary::Log => format!("log({a})"),
                Unary::Sqrt => format!("sqrt({a})"),
                Unary::Abs => format!("abs({a})"),
                Unary::Sign => format!("sign({a})"),
                Unary::Sigmoid => format!("sigmoid_f32({a})"),
                Unary::Tanh => format!("tanh_f32({a})"),
                Unary::IsFinite => format!("is_finite_f32({a})"),
            }
        }
        Expr::Binary(f, a, b) => {
            let (a, b) = (go(a)?, go(b)?);
            match f {
                Binary::Add => format!("({a} + {b})"),
                Binary::Sub => format!("({a} - {b})"),
                Binary::Mul => format!("({a} * {b})"),
                Binary::Div => format!("({a} / {b})"),
                Binary::Max => format!("max({a}, {b})"),
                Binary::Min => format!("min({a}, {b})"),
                Binary::Less => format!("select(0.0, 1.0, {a} < {b})"),
            }
        }
        Expr::Select(c, a, b) => format!("select({}, {}, {} != 0.0)", go(b)?, go(a)?, go(c)?),
    })
}

/// A prelude that uses every function and every way to spread, for tools.
pub(super) fn sample_prelude() -> Result<String> {
    let x = Expr::Input;
    let all = [x(0).exp(), x(1).ln(), x(2).sqrt(), x(3).abs(), x(0).sign(), x(1).sigmoid(), x(2).tanh(), -x(3)];
    let sum = all.into_iter().fold(Expr::scalar("s"), |a, b| (a + b.clone()).max(b));
    let chosen = x(0).is_finite().select(sum / x(1), x(0).less(x(1)).min(Expr::Const(f32::INFINITY)) * x(2));
    let spreads = [Broadcast::Full, Broadcast::Row, Broadcast::Column, Broadcast::Scalar];
    let operands: Vec<_> =
        spreads.into_iter().enumerate().map(|(b, spread)| Some(Operand { binding: b, spread })).collect();
    prelude(4, 1, &[0], &operands, &[&chosen], &|_| Some(5))
}
