//! What parameters are held to after each step.

use crate::error::{Error, Result};
use crate::graph::{Expr, Graph, Over, ReduceKind, Value};
use crate::params::Constraint;

/// What a norm is divided by besides itself, as Keras has it.
const NORM_EPSILON: f32 = 1e-7;

/// w where the constraint leaves it: norms are of rows, or of the whole of a vector.
pub(super) fn constrained(graph: &mut Graph, constraint: Constraint, w: Value) -> Result<Value> {
    let (value, norm, number) = (Expr::Input(0), Expr::Input(1).sqrt(), Expr::Const);
    if constraint == Constraint::NonNegative {
        return graph.elementwise(value.max(number(0.0)), &[w]);
    }
    let shape = graph.shape(w).clone();
    let (rows, squares) = match (shape.rank(), shape.rows(), shape.row_len()) {
        (0 | 1, ..) => (w, graph.sum_of_squares(&[w])?),
        (2, ..) => (w, graph.reduce(ReduceKind::SumOfSquares, Over::Columns, w)?),
        (_, Some(rows), Some(columns)) => {
            let rows = graph.view(w, [rows.clone(), columns.into()])?;
            (rows, graph.reduce(ReduceKind::SumOfSquares, Over::Columns, rows)?)
        }
        _ => return Err(Error::internal("a parameter of unknown size")),
    };
    let divided = |wanted: Expr| value.clone() * wanted / (norm.clone() + number(NORM_EPSILON));
    let within = |min: f32, max: f32| norm.clone().max(number(min)).min(number(max));
    let expr = match constraint {
        Constraint::MaxNorm(max) => divided(within(0.0, max)),
        Constraint::UnitNorm => divided(number(1.0)),
        Constraint::MinMaxNorm { min, max, rate } => {
            divided(number(rate) * within(min, max) + number(1.0 - rate) * norm.clone())
        }
        Constraint::NonNegative => value.clone(),
    };
    let kept = graph.elementwise(expr, &[rows, squares])?;
    if graph.shape(kept) == &shape { Ok(kept) } else { graph.view(kept, shape) }
}
