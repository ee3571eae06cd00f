//! The LSTM operations: positions of what they read and write, and their shape rules.

use super::op::{Inputs, OutputSpec, float};
use super::shape::{B, Dim, Shape, Symbol};
use super::{Layout, ValueInfo};
use crate::config::{Cell, Direction, GATES, PEEPHOLES};
use crate::error::{Error, Result};

/// What an LSTM layer is, besides its sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LstmOp {
    /// Which way it reads.
    pub direction: Direction,
    /// What a step computes.
    pub cell: Cell,
    /// The first of three numbers among the random operations of its model (recurrent dropout, zoneout of h, of c)
    /// while training; `None` at inference, where dropout does nothing and zoneout is its expectation.
    pub random: Option<u32>,
}

impl LstmOp {
    /// The plain layer, forward.
    pub fn plain() -> Self {
        Self { direction: Direction::Forward, cell: Cell::default(), random: None }
    }

    /// D
    pub fn directions(&self) -> usize {
        self.direction.count()
    }

    /// The number of its recurrent dropout among random operations, where it drops.
    pub fn dropout(&self) -> Option<u32> {
        self.random.filter(|_| self.cell.recurrent_dropout > 0.0)
    }
}

/// A parameter of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parameter {
    /// W_ih `[4H, I]`; absent where x is projected already.
    WeightIh = 0,
    /// W_hh `[4H, R]`
    WeightHh = 1,
    /// b_ih `[4H]`, optional
    BiasIh = 2,
    /// b_hh `[4H]`, optional
    BiasHh = 3,
    /// W_hr `[R, H]` of a projection, optional
    WeightHr = 4,
    /// p_i, p_f, p_o `[3H]`, where the cell has peepholes
    Peepholes = 5,
    /// the recurrent product's gain `[4H]`, where it is normalised
    NormHh = 6,
    /// the cell's gain `[H]`, where it is normalised
    NormGain = 7,
    /// the cell's bias `[H]`, where it is normalised
    NormBias = 8,
}

/// Parameters of one direction.
pub const PARAMETERS: usize = 9;

/// Positions of [`super::Op::Lstm`]'s inputs and outputs. Directions lie side by side in columns.
pub mod forward {
    use super::{PARAMETERS, Parameter};

    /// x `[N, I]`, or its products with W_ih `[N, D·4H]` where there is no W_ih
    pub const X: usize = 0;
    /// h_0 `[B, D·R]`, optional
    pub const H0: usize = 1;
    /// c_0 `[B, D·H]`, optional
    pub const C0: usize = 2;
    /// Where the parameters of the first direction begin.
    pub const FIRST: usize = 3;

    /// A parameter of direction `d`.
    pub fn parameter(d: usize, parameter: Parameter) -> usize {
        FIRST + d * PARAMETERS + parameter as usize
    }

    /// y `[N, D·R]`, h of every row
    pub const Y: usize = 0;
    /// h of each sequence's last step `[B, D·R]`
    pub const H_N: usize = 1;
    /// c of each sequence's last step `[B, D·H]`
    pub const C_N: usize = 2;
    /// activated gates, or pre-activations, `[N, D·4H]`, for the gradient
    pub const GATES: usize = 3;
    /// c of every row `[N, D·H]`, for the gradient
    pub const CELLS: usize = 4;
    /// what a projection projects `[N, D·H]`
    pub const HIDDEN: usize = 5;
    /// the recurrent product before its normalisation `[N, D·4H]`, for the gradient
    pub const PRODUCT: usize = 6;
}

/// Positions of [`super::Op::LstmBackward`]'s inputs and outputs.
pub mod backward {
    use super::{PARAMETERS, Parameter};

    /// gates `[N, D·4H]` as saved, overwritten by the output
    pub const GATES: usize = 0;
    /// c of every row `[N, D·H]`
    pub const CELLS: usize = 1;
    /// the recurrent product `[N, D·4H]` where it is normalised, overwritten by an output
    pub const PRODUCT: usize = 2;
    /// c_0 `[B, D·H]`, optional
    pub const C0: usize = 3;
    /// gradient of y `[N, D·R]`, optional
    pub const DY: usize = 4;
    /// gradient of the final h `[B, D·R]`, optional
    pub const DH_N: usize = 5;
    /// gradient of the final c `[B, D·H]`, optional
    pub const DC_N: usize = 6;
    /// Where the parameters of the first direction begin; W_ih and biases are not among them.
    pub const FIRST: usize = 7;

    /// A parameter of direction `d`.
    pub fn parameter(d: usize, parameter: Parameter) -> usize {
        FIRST + d * PARAMETERS + parameter as usize
    }

    /// gradient of the pre-activations `[N, D·4H]`, in the place of the gates
    pub const DGATES: usize = 0;
    /// gradient of h_0 `[B, D·R]`
    pub const DH0: usize = 1;
    /// gradient of c_0 `[B, D·H]`
    pub const DC0: usize = 2;
    /// gradient of the projected h of every row `[N, D·R]`, where there is a projection
    pub const DPROJECTED: usize = 3;
    /// gradient of the recurrent product before normalisation `[N, D·4H]`
    pub const DPRODUCT: usize = 4;
    /// dgates times the normalised product `[N, D·4H]`, whose sum over rows is the gain's gradient, in the product's place
    pub const DGAINS: usize = 5;
    /// gradient of the normalised cell with gain and bias `[N, D·H]`
    pub const DCELL: usize = 6;
    /// the normalised cell before its gain `[N, D·H]`
    pub const CELL_NORMED: usize = 7;
}

/// Which gradient of an LSTM's parameters; d is a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LstmPart {
    /// dW_ih `[4H, I]` = dgatesᵀ x, from dgates and x
    InputWeights,
    /// dW_hh `[4H, R]` = dgatesᵀ (m h_prev), from dgates (or the product's gradient), y and h_0 (optional)
    RecurrentWeights,
    /// db `[4H]`, the sum of dgates over rows, from dgates; both biases have the same. The same sum of what a gain's
    /// gradient is made of.
    Bias,
    /// dW_hr `[R, H]`, from the projected h's gradient and what was projected
    Projection,
    /// dp `[3H]`, from dgates, cells and c_0 (optional)
    Peepholes,
}

fn state(columns: usize) -> Shape {
    Shape::from([B, columns.into()])
}

fn gates(role: &'static str, rows: &Dim, columns: usize) -> OutputSpec {
    OutputSpec { layout: Layout::Gates, ..float(role, [rows.clone(), columns.into()]) }
}

/// H and R of a layer whose recurrent weights stand at `weight_hh`, with each direction's parameters checked.
fn sizes(i: &Inputs<'_>, op: &LstmOp, at: fn(usize, Parameter) -> usize) -> Result<(usize, usize)> {
    op.cell.validate()?;
    let (four_h, r) = i.matrix(at(0, Parameter::WeightHh), "weight_hh")?;
    let Dim::Fixed(four_h) = *four_h else { return Err(Error::shape("weight_hh: rows must be a number")) };
    let hidden = four_h / GATES;
    if hidden * GATES != four_h || hidden == 0 {
        return Err(Error::shape(format!("weight_hh: expected 4H rows, got {four_h}")));
    }
    for d in 0..op.directions() {
        i.exact(at(d, Parameter::WeightHh), "weight_hh", [four_h, r])?;
        i.exact_if(at(d, Parameter::WeightHr), "weight_hr", [r, hidden])?;
        if i.maybe(at(d, Parameter::WeightHr)).is_none() && r != hidden {
            return Err(Error::shape(format!("weight_hh: expected {hidden} columns without a projection, got {r}")));
        }
        for (wanted, parameter, name, shape) in [
            (op.cell.peepholes, Parameter::Peepholes, "peepholes", PEEPHOLES * hidden),
            (op.cell.layer_norm.is_some(), Parameter::NormHh, "norm_hh", four_h),
            (op.cell.layer_norm.is_some(), Parameter::NormGain, "norm_gain", hidden),
            (op.cell.layer_norm.is_some(), Parameter::NormBias, "norm_bias", hidden),
        ] {
            match (wanted, i.maybe(at(d, parameter)).is_some()) {
                (true, _) => i.exact(at(d, parameter), name, [shape])?,
                (false, true) => return Err(Error::argument(format!("{name} is given, but the cell has none"))),
                (false, false) => {}
            }
        }
    }
    Ok((hidden, r))
}

pub(super) fn infer_lstm(i: &Inputs<'_>, op: &LstmOp) -> Result<Vec<OutputSpec>> {
    let (rows, input) = i.matrix(forward::X, "x")?;
    if !matches!(rows, Dim::Symbol(Symbol::Rows(_))) {
        return Err(Error::shape(format!("x must have the rows of a time axis (N), got {rows}")));
    }
    let (hidden, r) = sizes(i, op, forward::parameter)?;
    let (d, four_h) = (op.directions(), GATES * hidden);
    let projected = i.maybe(forward::parameter(0, Parameter::WeightIh)).is_none();
    if projected && input != d * four_h {
        return Err(Error::shape(format!(
            "x: expected {} columns where there is no weight_ih, got {input}",
            d * four_h
        )));
    }
    for direction in 0..d {
        let at = |parameter| forward::parameter(direction, parameter);
        if !projected {
            i.exact(at(Parameter::WeightIh), "weight_ih", [four_h, input])?;
        }
        i.exact_if(at(Parameter::BiasIh), "bias_ih", [four_h])?;
        i.exact_if(at(Parameter::BiasHh), "bias_hh", [four_h])?;
    }
    i.exact_if(forward::H0, "h0", state(d * r))?;
    i.exact_if(forward::C0, "c0", state(d * hidden))?;
    Ok(vec![
        float("y", [rows.clone(), (d * r).into()]),
        float("h_n", state(d * r)),
        float("c_n", state(d * hidden)),
        gates("gates", rows, d * four_h),
        float("cells", [rows.clone(), (d * hidden).into()]),
        float("hidden", [rows.clone(), (d * hidden).into()]),
        gates("product", rows, d * four_h),
    ])
}

pub(super) fn infer_lstm_backward(i: &Inputs<'_>, op: &LstmOp) -> Result<Vec<OutputSpec>> {
    let (hidden, r) = sizes(i, op, backward::parameter)?;
    let (d, four_h) = (op.directions(), GATES * hidden);
    let (rows, columns) = i.gates(backward::GATES)?;
    if columns != d * four_h {
        return Err(Error::shape(format!("gates: expected {} columns, got {columns}", d * four_h)));
    }
    let sequence = |columns: usize| Shape::from([rows.clone(), columns.into()]);
    i.exact(backward::CELLS, "cells", sequence(d * hidden))?;
    if op.cell.layer_norm.is_some() {
        i.gates(backward::PRODUCT)?;
    }
    i.exact_if(backward::C0, "c0", state(d * hidden))?;
    i.exact_if(backward::DY, "dy", sequence(d * r))?;
    i.exact_if(backward::DH_N, "dh_n", state(d * r))?;
    i.exact_if(backward::DC_N, "dc_n", state(d * hidden))?;
    Ok(vec![
        gates("dgates", rows, d * four_h),
        float("dh0", state(d * r)),
        float("dc0", state(d * hidden)),
        float("dprojected", sequence(d * r)),
        gates("dproduct", rows, d * four_h),
        gates("dgains", rows, d * four_h),
        float("dcell", sequence(d * hidden)),
        float("cell_normed", sequence(d * hidden)),
    ])
}

/// dgates and, for each direction, W_ih; without any the products themselves are the input.
pub(super) fn infer_input_gradient(
    i: &Inputs<'_>,
    inputs: &[Option<&ValueInfo>],
    directions: usize,
) -> Result<Vec<OutputSpec>> {
    let (rows, columns) = i.gates(0)?;
    if inputs.len() == 1 {
        return Ok(vec![float("dx", [rows.clone(), columns.into()])]);
    }
    if inputs.len() != 1 + directions {
        return Err(Error::internal(format!("{} weights of {directions} directions", inputs.len() - 1)));
    }
    let (_, input) = i.matrix(1, "weight_ih")?;
    for d in 0..directions {
        i.exact(1 + d, "weight_ih", [columns / directions, input])?;
    }
    Ok(vec![float("dx", [rows.clone(), input.into()])])
}

pub(super) fn infer_weight_gradient(
    i: &Inputs<'_>,
    part: LstmPart,
    op: &LstmOp,
    direction: usize,
) -> Result<Vec<OutputSpec>> {
    let d = op.directions();
    if direction >= d {
        return Err(Error::internal(format!("direction {direction} of {d}")));
    }
    let (rows, columns) = if part == LstmPart::Projection { i.matrix(0, "dprojected")? } else { i.gates(0)? };
    let own = columns / d;
    let same_rows = |at: usize, role: &str| -> Result<usize> {
        let (other, columns) = i.matrix(at, role)?;
        if other != rows {
            return Err(Error::shape(format!("{role}: expected {rows} rows, got {other}")));
        }
        Ok(columns)
    };
    Ok(vec![match part {
        LstmPart::Bias => float("db", [own]),
        LstmPart::Projection => float("dw", [own, same_rows(1, "hidden")? / d]),
        LstmPart::InputWeights => float("dw", [own, same_rows(1, "x")?]),
        LstmPart::RecurrentWeights => {
            let r = same_rows(1, "y")? / d;
            i.exact_if(2, "h0", state(d * r))?;
            float("dw", [own, r])
        }
        LstmPart::Peepholes => {
            let hidden = same_rows(1, "cells")? / d;
            i.exact_if(2, "c0", state(d * hidden))?;
            float("dp", [PEEPHOLES * hidden])
        }
    }])
}
