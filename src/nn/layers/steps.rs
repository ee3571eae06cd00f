//! Layers over the steps of a sequence: windows over them, one row of all of them, steps made of a row.

use super::super::axes::{Axes, Steps};
use super::super::{Activation, Init, Signal};
use super::{named, rules};
use crate::error::{Error, Result};
use crate::graph::{Padding, Window};
use crate::params::{ParameterSpec, Regularizer, Rules};
use serde::{Deserialize, Serialize};

/// A product with the steps of each window, and a function of it: `[B, T, F]` gives `[B, T', filters]`, with as many steps
/// as there are windows over a sequence's own. The kernel is `[filters, taps, F]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conv1D {
    /// Outputs a step.
    pub filters: usize,
    /// The windows.
    pub window: Window,
    /// The function of the outputs.
    pub activation: Activation,
    /// Whether there is a bias.
    pub bias: bool,
    /// How its parameters begin.
    #[serde(default)]
    pub init: Init,
    /// What the user chooses for the kernel.
    #[serde(default)]
    pub kernel: Rules,
    /// What the user chooses for the bias.
    #[serde(default)]
    pub bias_rules: Rules,
    /// What the outputs add to the loss, over the number of sequences.
    #[serde(default)]
    pub activity: Option<Regularizer>,
    /// The user's name.
    #[serde(default)]
    pub name: Option<String>,
}

/// What a pooling takes of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolingKind {
    /// Their mean.
    Average,
    /// The largest of each feature.
    Max,
    /// Their sum; of all steps, not of those of windows.
    Sum,
}

/// One row of all steps of a sequence: `[B, T, F]` gives `[B, F]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pooling {
    /// What is taken.
    pub kind: PoolingKind,
}

/// One step of the steps of each window: `[B, T, F]` gives `[B, T', F]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pooling1D {
    /// What is taken.
    pub kind: PoolingKind,
    /// The windows.
    pub window: Window,
}

/// Some of the steps: `[B, T, F]` gives `[B, T', F]`, without the first `before` and the last `after`, of the rest each
/// `stride`-th. Less than 0 adds as many steps of zeros.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cropping1D {
    /// Steps that are left out at the beginning.
    pub before: i32,
    /// Steps that are left out at the end.
    pub after: i32,
    /// Steps from one that is taken to the next.
    pub stride: usize,
}

/// A sequence of `count` steps, each the same row: `[B, F]` gives `[B, count, F]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepeatVector {
    /// The number of steps.
    pub count: usize,
}

/// All steps side by side: `[B, T, F]` gives `[B, T·F]`, zero past a sequence's end. T must be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flatten {}

/// The same values, row by row, in another shape: one size `[B, F]`, or two `[B, T, F]`. One of them may be left open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reshape {
    /// The sizes without the batch's.
    pub shape: Vec<Option<usize>>,
}

/// Steps and features change places: `[B, T, F]` gives `[B, F, T]`. T must be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Permute {}

macro_rules! windowed {
    ($($layer:ident),*) => {
        $(impl $layer {
            /// Sets where a window may reach beyond its sequence.
            #[must_use]
            pub fn padding(mut self, padding: Padding) -> Self {
                self.window.padding = padding;
                self
            }

            /// Sets the steps from a window to the next.
            #[must_use]
            pub fn stride(mut self, stride: usize) -> Self {
                self.window.stride = stride;
                self
            }
        })*
    };
}
windowed!(Conv1D, Pooling1D);

named!(Conv1D, init);
rules!(Conv1D, kernel, bias_rules);

impl Conv1D {
    /// `filters` outputs of windows of `taps` steps, with a bias.
    pub fn new(filters: usize, taps: usize) -> Self {
        Self {
            filters,
            window: Window::new(taps),
            activation: Activation::Linear,
            bias: true,
            init: Init::Keras,
            kernel: Rules::default(),
            bias_rules: Rules::default(),
            activity: None,
            name: None,
        }
    }

    /// Sets the steps from a step of a window to the next.
    #[must_use]
    pub fn dilation(mut self, dilation: usize) -> Self {
        self.window.dilation = dilation;
        self
    }

    /// Sets the function of the outputs.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Sets whether there is a bias.
    #[must_use]
    pub fn bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    pub(super) fn parameters(&self, name: &str, input: usize) -> Vec<ParameterSpec> {
        let (weight, bias) = self.init.kernel_and_bias(self.window.taps.saturating_mul(input));
        let shape = vec![self.filters, self.window.taps, input];
        let mut all = vec![self.kernel.spec(format!("{name}.weight"), shape, weight)];
        if self.bias {
            all.push(self.bias_rules.spec(format!("{name}.bias"), vec![self.filters], bias));
        }
        all
    }
}

impl Pooling {
    /// The mean of the steps.
    pub fn average() -> Self {
        Self { kind: PoolingKind::Average }
    }

    /// The largest of the steps.
    pub fn max() -> Self {
        Self { kind: PoolingKind::Max }
    }

    /// The sum of the steps.
    pub fn sum() -> Self {
        Self { kind: PoolingKind::Sum }
    }
}

impl Pooling1D {
    /// The mean of each `size` steps.
    pub fn average(size: usize) -> Self {
        Self { kind: PoolingKind::Average, window: Window { stride: size, ..Window::new(size) } }
    }

    /// The largest of each `size` steps.
    pub fn max(size: usize) -> Self {
        Self { kind: PoolingKind::Max, ..Self::average(size) }
    }
}

impl Cropping1D {
    /// All steps but the first `before` and the last `after`.
    pub fn new(before: i32, after: i32) -> Self {
        Self { before, after, stride: 1 }
    }

    /// The steps as windows of one.
    pub fn window(&self) -> Window {
        let padding = Padding::Explicit { before: self.before.saturating_neg(), after: self.after.saturating_neg() };
        Window { stride: self.stride, padding, ..Window::new(1) }
    }
}

impl RepeatVector {
    /// A sequence of `count` steps.
    pub fn new(count: usize) -> Self {
        Self { count }
    }
}

impl Reshape {
    /// Another shape; `None` where a size follows from the others.
    pub fn new(shape: &[Option<usize>]) -> Self {
        Self { shape: shape.to_vec() }
    }

    /// The sizes over `len` values.
    fn sizes(&self, len: usize) -> Result<Vec<usize>> {
        if !matches!(self.shape.len(), 1 | 2) {
            return Err(Error::unsupported(format!("a shape of {} sizes; expected one or two", self.shape.len())));
        }
        let known: usize = self.shape.iter().flatten().product();
        let open = self.shape.iter().filter(|s| s.is_none()).count();
        let rest = len.checked_div(known).unwrap_or(0);
        if open > 1 || known == 0 || (if open == 1 { rest * known } else { known }) != len || len == 0 {
            return Err(Error::shape(format!("{len} values do not make the shape {:?}", self.shape)));
        }
        Ok(self.shape.iter().map(|s| s.unwrap_or(rest)).collect())
    }

    pub(super) fn output(&self, input: Signal, axes: &mut Axes) -> Result<Signal> {
        let len = match input {
            Signal::Rows { features } => features,
            sequence => {
                let (steps, features, _) = known_steps(sequence, axes)?;
                steps * features
            }
        };
        Ok(match self.sizes(len)?[..] {
            [features] => Signal::Rows { features },
            [steps, features] => {
                let axis = axes.find(Steps::Fixed(steps));
                Signal::Sequence { features, axis, mirrored: false }
            }
            _ => return Err(Error::internal("a shape of other sizes")),
        })
    }
}

/// The number of steps of a sequence in its own order, its features and its axis.
pub(super) fn known_steps(signal: Signal, axes: &Axes) -> Result<(usize, usize, u8)> {
    let (features, axis) = forward_sequence(signal)?;
    let steps = axes.count(axis).ok_or_else(|| {
        Error::shape("how many steps the sequence has must be known; give the input a number of steps (`fix_steps`)")
    })?;
    match steps {
        0 => Err(Error::shape("the sequence has no step")),
        steps => Ok((steps, features, axis)),
    }
}

/// Features and axis of a sequence that no layer has reversed.
pub(super) fn forward_sequence(signal: Signal) -> Result<(usize, u8)> {
    match signal {
        Signal::Sequence { mirrored: true, .. } => {
            Err(Error::unsupported("a sequence that a layer reversed, over whose steps another layer goes"))
        }
        Signal::Sequence { features, axis, .. } => Ok((features, axis)),
        other => Err(Error::shape(format!("expected a sequence, got {other}"))),
    }
}

/// What windows over a sequence give.
pub(super) fn windowed(signal: Signal, window: Window, features: Option<usize>, axes: &mut Axes) -> Result<Signal> {
    let (own, axis) = forward_sequence(signal)?;
    window.validate()?;
    if axes.count(axis).is_some_and(|steps| window.steps(steps) == 0) {
        return Err(Error::shape("no window fits into the sequence"));
    }
    // Windows at each step that keep the number of steps leave the axis as it is.
    let alike = window.alike();
    let unchanged = (alike.stride, alike.taps) == (1, 1) && !matches!(alike.padding, Padding::Explicit { .. });
    let axis = if unchanged { axis } else { axes.find(Steps::Windows { of: axis, window: alike }) };
    Ok(Signal::Sequence { features: features.unwrap_or(own), axis, mirrored: false })
}
