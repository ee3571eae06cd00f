//! Whether a device's matrix units are right.

use super::Device;
use crate::error::Result;
use crate::graph::{Expr, Graph};
use crate::params::Tensor;
use crate::scheduler::{Batch, Capacity};

/// Rows, inner dimension and columns of the product that is checked: they fill no tile.
const SIZES: [usize; 3] = [150, 75, 83];

/// Whether products of whole numbers, which halves hold and floats add up exactly, are right to the last bit, forward and of
/// a weight's gradient.
pub(super) fn multiplies_exactly(device: &Device) -> Result<bool> {
    let (here, right) = (products(device)?, products(&Device::reference())?);
    Ok(here[0].f32s()? == right[0].f32s()? && here[1].f32s()? == right[1].f32s()?)
}

/// A linear layer's output, and the gradient of its weight.
fn products(device: &Device) -> Result<[Tensor; 2]> {
    let [rows, inner, columns] = SIZES;
    let mut session = device.clone().untuned().session()?;
    let mut g = Graph::new();
    let mut whole = |g: &mut Graph, name: &str, shape: [usize; 2], factor: usize| {
        let values = (0..shape[0] * shape[1]).map(|n| (n * factor % 17) as f32 - 8.0).collect();
        session.set(name, &Tensor::new(&shape, values)?)?;
        g.persistent(name, shape)
    };
    let x = whole(&mut g, "x", [rows, inner], 7)?;
    let weight = whole(&mut g, "weight", [columns, inner], 5)?;
    let up = whole(&mut g, "up", [rows, columns], 3)?;
    let y = g.linear(x, weight, None)?;
    let each = g.elementwise(Expr::Input(0) * Expr::Input(1), &[y, up])?;
    let sum = g.sum(&[each])?;
    let gradient = g.gradients(sum, &[weight])?[0];
    g.output("y", y)?;
    g.output("gradient", gradient)?;
    let batch = Batch::dense(1, 1)?;
    let mut executable = session.load(&g, &Capacity::exactly(&batch))?;
    session.run(&mut executable, &batch, &[])?;
    Ok([session.output(&executable, "y")?, session.output(&executable, "gradient")?])
}
