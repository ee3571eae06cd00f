//! The LSTM layer as plain data with builders.

use super::{Activation, Init};
use crate::config::{Bias, Cell, Direction, LstmConfig, Mask};
use crate::error::{Error, Result};
use crate::params::{Initializer, ParameterSpec, Regularizer, Rules, lstm_parameters};
use serde::{Deserialize, Serialize};

/// What becomes of the outputs of two directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeMode {
    /// Side by side, forward first.
    #[default]
    Concat,
    /// Their sum.
    Sum,
    /// Their product.
    Product,
    /// Their mean.
    Average,
    /// Both, apart.
    Apart,
}

/// One LSTM layer: `[B, T, I]` gives the last h `[B, R]`, or all of them `[B, T, R]`; with both directions see
/// [`MergeMode`]. R is the projection's size, or the number of units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lstm {
    /// H.
    pub units: usize,
    /// The function of the candidate and of the cell's output.
    pub activation: Activation,
    /// The function of the gates.
    #[serde(default = "sigmoid")]
    pub recurrent_activation: Activation,
    /// The function of the cell's output, where it is another than the candidate's.
    #[serde(default)]
    pub output_activation: Option<Activation>,
    /// Whether it gives h of every step.
    pub return_sequences: bool,
    /// Whether it also gives its final states, h and c of each direction.
    #[serde(default)]
    pub return_state: bool,
    /// Whether its state is carried from batch to batch.
    pub stateful: bool,
    /// What it gives at steps that a mask leaves out: zeros, or its last output again.
    #[serde(default)]
    pub zero_output_for_mask: bool,
    /// Which way it reads.
    #[serde(default)]
    pub direction: Direction,
    /// Whether it reads from the last step to the first and gives its outputs in that order, as Keras has it.
    #[serde(default)]
    pub go_backwards: bool,
    /// What becomes of the outputs of two directions.
    #[serde(default)]
    pub merge: MergeMode,
    /// P, where h is projected.
    #[serde(default)]
    pub projection: Option<usize>,
    /// Bias vectors.
    pub bias: Bias,
    /// The probability with which an input feature is dropped while training, for all steps of a sequence alike.
    #[serde(default)]
    pub dropout: f32,
    /// The probability with which a recurrent weight is dropped while training (Merity et al. 2018).
    #[serde(default)]
    pub weight_drop: f32,
    /// While training, this times the mean of h² is added to what is made small (AR, Merity et al. 2017, who take h after dropout;
    /// this is h before).
    #[serde(default)]
    pub activation_penalty: f32,
    /// The same of the squares of what h changes by from step to step (TAR).
    #[serde(default)]
    pub temporal_penalty: f32,
    /// Everything else about a step; its activations are those above.
    #[serde(default)]
    pub cell: Cell,
    /// How its parameters begin.
    #[serde(default)]
    pub init: Init,
    /// What the user chooses for the input weights W.
    #[serde(default)]
    pub kernel: Rules,
    /// What the user chooses for the recurrent weights U.
    #[serde(default)]
    pub recurrent: Rules,
    /// What the user chooses for the biases.
    #[serde(default)]
    pub bias_rules: Rules,
    /// What the outputs add to the loss, over the number of sequences.
    #[serde(default)]
    pub activity: Option<Regularizer>,
    /// The user's name.
    #[serde(default)]
    pub name: Option<String>,
}

fn sigmoid() -> Activation {
    Activation::Sigmoid
}

macro_rules! setters {
    ($($(#[$doc:meta])* $field:ident: $type:ty),* $(,)?) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $field(mut self, $field: $type) -> Self {
            self.$field = $field;
            self
        })*
    };
}

impl Lstm {
    /// A layer of `units` units that gives the last h.
    pub fn new(units: usize) -> Self {
        Self {
            units,
            activation: Activation::Tanh,
            recurrent_activation: Activation::Sigmoid,
            output_activation: None,
            return_sequences: false,
            return_state: false,
            stateful: false,
            zero_output_for_mask: false,
            direction: Direction::Forward,
            go_backwards: false,
            merge: MergeMode::Concat,
            projection: None,
            bias: Bias::One,
            dropout: 0.0,
            weight_drop: 0.0,
            activation_penalty: 0.0,
            temporal_penalty: 0.0,
            cell: Cell::default(),
            init: Init::Keras,
            kernel: Rules::default(),
            recurrent: Rules::default(),
            bias_rules: Rules::default(),
            activity: None,
            name: None,
        }
    }

    setters! {
        /// Sets the function of the candidate and of the cell's output.
        activation: Activation,
        /// Sets the function of the gates.
        recurrent_activation: Activation,
        /// Sets the function of the cell's output, where it is another than the candidate's.
        output_activation: Option<Activation>,
        /// Sets whether it gives h of every step.
        return_sequences: bool,
        /// Sets whether it also gives its final states.
        return_state: bool,
        /// Sets whether its state is carried from batch to batch.
        stateful: bool,
        /// Sets what it gives at steps that a mask leaves out: zeros, or its last output again.
        zero_output_for_mask: bool,
        /// Sets which way it reads.
        direction: Direction,
        /// Sets whether it reads from the last step to the first and gives its outputs in that order.
        go_backwards: bool,
        /// Sets what becomes of the outputs of two directions.
        merge: MergeMode,
        /// Sets P, or no projection.
        projection: Option<usize>,
        /// Sets its bias vectors.
        bias: Bias,
        /// Sets the probability with which an input feature is dropped.
        dropout: f32,
        /// Sets the probability with which a recurrent weight is dropped.
        weight_drop: f32,
        /// Sets what the mean of h² adds to the loss of training, times this.
        activation_penalty: f32,
        /// Sets what the mean square of the changes of h from step to step adds to the loss of training, times this.
        temporal_penalty: f32,
        /// Sets everything else about a step; its three activations are replaced by the layer's.
        cell: Cell,
        /// Sets what the user chooses for the input weights.
        kernel: Rules,
        /// Sets what the user chooses for the recurrent weights.
        recurrent: Rules,
        /// Sets what the user chooses for the biases; where there are two, an initialiser sets the first, and the second
        /// begins at zero.
        bias_rules: Rules,
    }

    /// Sets what the outputs add to the loss, over the number of sequences.
    #[must_use]
    pub fn activity(mut self, regularizer: Regularizer) -> Self {
        self.activity = Some(regularizer);
        self
    }

    /// Sets the probability with which an element of h is dropped before it meets the recurrent weights, one mask for a
    /// sequence.
    #[must_use]
    pub fn recurrent_dropout(mut self, rate: f32) -> Self {
        (self.cell.recurrent_dropout, self.cell.recurrent_mask) = (rate, Mask::Sequence);
        self
    }

    /// Sets the probabilities with which h and c keep their last value.
    #[must_use]
    pub fn zoneout(mut self, h: f32, c: f32) -> Self {
        (self.cell.zoneout_h, self.cell.zoneout_c) = (h, c);
        self
    }

    /// Names the layer; otherwise it is called after its class.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_string());
        self
    }

    /// Sets whose rules its parameters begin by.
    #[must_use]
    pub fn initializers(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// What a step computes, with the layer's activations.
    pub fn step(&self) -> Cell {
        let (gate, candidate) = (self.recurrent_activation, self.activation);
        Cell { gate, candidate, output: self.output_activation.unwrap_or(candidate), ..self.cell }
    }

    /// The layer over `input` features.
    pub fn config(&self, input: usize) -> LstmConfig {
        LstmConfig::new(input, self.units)
            .bias(self.bias)
            .direction(self.direction)
            .projection(self.projection)
            .cell(self.step())
    }

    /// Features of its output.
    pub fn output_size(&self) -> usize {
        let r = self.projection.unwrap_or(self.units);
        let both = self.direction == Direction::Both && self.merge == MergeMode::Concat;
        if both { 2 * r } else { r }
    }

    /// Refuses what means nothing.
    pub(super) fn validate(&self) -> Result<()> {
        for (name, rate) in [("dropout", self.dropout), ("weight_drop", self.weight_drop)] {
            if !(0.0..1.0).contains(&rate) {
                return Err(Error::argument(format!("{name} must be in [0, 1), got {rate}")));
            }
        }
        for (name, penalty) in
            [("activation_penalty", self.activation_penalty), ("temporal_penalty", self.temporal_penalty)]
        {
            if !(penalty >= 0.0 && penalty.is_finite()) || penalty > 0.0 && !self.return_sequences {
                return Err(Error::argument(format!(
                    "{name} must be at least 0, and 0 where only the last h is given, got {penalty}"
                )));
            }
        }
        if self.merge == MergeMode::Apart && self.direction != Direction::Both {
            return Err(Error::argument("only two directions can be kept apart"));
        }
        if self.go_backwards && self.direction != Direction::Forward {
            return Err(Error::argument("go_backwards turns the forward direction round, and there is another"));
        }
        self.kernel.validate().and(self.recurrent.validate()).and(self.bias_rules.validate())?;
        self.config(1).validate()
    }

    /// Its parameters over `input` features, named under `name`.
    pub(super) fn parameters(&self, name: &str, input: usize) -> Vec<ParameterSpec> {
        let uniform = Initializer::Uniform((1.0 / (self.units as f64).sqrt()) as f32);
        let all = lstm_parameters(&self.config(input), 0).into_iter();
        all.map(|p| {
            let initializer = match (self.init, p.role) {
                (_, "norm_ih" | "norm_hh" | "norm_gain") => Initializer::Constant(1.0),
                (_, "norm_bias") => Initializer::Zeros,
                (Init::PyTorch, _) => uniform,
                (_, "weight_ih" | "weight_hr") => Initializer::GlorotUniform,
                (_, "weight_hh") => Initializer::Orthogonal,
                (_, "bias_ih") => Initializer::ForgetBias(1.0),
                _ => Initializer::Zeros,
            };
            let rules = match p.role {
                "weight_ih" => self.kernel,
                "weight_hh" => self.recurrent,
                "bias_ih" => self.bias_rules,
                // The two add: what one begins with, or is pulled to, is not to count twice.
                "bias_hh" => {
                    Rules { initializer: self.bias_rules.initializer.and(Some(Initializer::Zeros)), ..self.bias_rules }
                }
                _ => Rules::default(),
            };
            rules.spec(format!("{name}.{}", p.name), p.shape, initializer)
        })
        .collect()
    }
}
