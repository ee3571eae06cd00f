//! Expressions evaluated element by element over inputs that spread over the output.

use super::array::{Array, Call, Rows, columns};
use super::{Real, real, sigmoid};
use crate::error::{Error, Result};
use crate::graph::{Binary, Broadcast, Expr, Unary, broadcast};
use crate::scheduler::Program;
use ndarray::Array2;

/// What one element's expression reads.
struct Element<'a, R> {
    program: &'a Program,
    scalars: &'a [R],
    inputs: &'a [R],
}

/// Each output's expression over broadcast inputs.
pub(super) fn elementwise<R: Real>(call: &Call<'_, R>, exprs: &[Expr]) -> Result<Vec<Array<R>>> {
    let output = call.step.outputs.iter().flatten().next().ok_or_else(|| Error::internal("nobody reads an output"))?;
    let shape = &call.program.values[*output].shape;
    let (rows, columns) = (Rows::of(shape, call.batch)?, columns(shape, call.batch)?);
    let mut operands = Vec::new();
    for at in 0..call.step.inputs.len() {
        let class = broadcast(shape, call.shape(at)?)
            .ok_or_else(|| Error::internal(format!("input {at} does not spread over {shape}")))?;
        operands.push((class, call.float(at)?));
    }
    let scalars: Vec<R> = call.program.scalar_values(call.batch)?.into_iter().map(real).collect();
    let mut results = vec![Array2::zeros((rows.count, columns)); exprs.len()];
    for row in &rows.live {
        for c in 0..columns {
            let inputs: Vec<R> = operands.iter().map(|(class, x)| spread(*class, x, row.at, c)).collect();
            let element = Element { program: call.program, scalars: &scalars, inputs: &inputs };
            for (expr, result) in exprs.iter().zip(&mut results) {
                result[[row.at, c]] = element.evaluate(expr)?;
            }
        }
    }
    Ok(results.into_iter().map(Array::Float).collect())
}

/// The element of `x` for row `r` and column `c` of the output.
fn spread<R: Real>(class: Broadcast, x: &Array2<R>, r: usize, c: usize) -> R {
    match class {
        Broadcast::Full => x[[r, c]],
        // [F] is held as one column, and a row of more sizes as their first by the others.
        Broadcast::Row => x[[c / x.ncols(), c % x.ncols()]],
        Broadcast::Column => x[[r, 0]],
        Broadcast::Scalar => x[[0, 0]],
    }
}

impl<R: Real> Element<'_, R> {
    fn evaluate(&self, expr: &Expr) -> Result<R> {
        Ok(match expr {
            Expr::Input(at) => {
                *self.inputs.get(*at).ok_or_else(|| Error::internal(format!("an expression reads input {at}")))?
            }
            Expr::Const(x) => real(*x),
            Expr::Scalar(_) | Expr::Size(_) => {
                let at = self.program.scalar_index(expr).and_then(|at| self.scalars.get(at));
                *at.ok_or_else(|| Error::internal(format!("the program does not list {expr:?}")))?
            }
            Expr::Unary(f, a) => unary(*f, self.evaluate(a)?),
            Expr::Binary(f, a, b) => binary(*f, self.evaluate(a)?, self.evaluate(b)?),
            Expr::Select(condition, a, b) => {
                if self.evaluate(condition)? != R::zero() {
                    self.evaluate(a)?
                } else {
                    self.evaluate(b)?
                }
            }
        })
    }
}

fn truth<R: Real>(holds: bool) -> R {
    if holds { R::one() } else { R::zero() }
}

fn unary<R: Real>(f: Unary, x: R) -> R {
    match f {
        Unary::Neg => -x,
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Abs => x.abs(),
        Unary::Sign => truth::<R>(x > R::zero()) - truth(x < R::zero()),
        Unary::Sigmoid => sigmoid(x),
        Unary::Tanh => x.tanh(),
        Unary::IsFinite => truth(x.is_finite()),
    }
}

/// The larger and the smaller of a number and none is none: what is not finite must be seen.
fn binary<R: Real>(f: Binary, a: R, b: R) -> R {
    match f {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max if a < b || b.is_nan() => b,
        Binary::Min if b < a || b.is_nan() => b,
        Binary::Max | Binary::Min => a,
        Binary::Less => truth(a < b),
    }
}
