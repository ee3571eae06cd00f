//! A layer as Keras's configuration of it, the inverse of [`super::config`], or an error that names the layer and what
//! of it Keras cannot say.

use super::rules::{regularizer_of, written as rules};
use crate::config::{Activation, Bias, Cell, Direction, Mask};
use crate::error::{Error, Result};
use crate::graph::{Padding, Score};
use crate::nn::{Dropout, Layer, Lstm, MergeKind, MergeMode, PoolingKind, Signal, Window};
use crate::params::{Initializer, ParameterSpec};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What is known of a layer in its place.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub name: &'a str,
    /// Its first input.
    pub input: Option<Signal>,
    /// Whether a mask reaches it.
    pub masked: bool,
    /// All parameters of the network.
    pub specs: &'a BTreeMap<String, ParameterSpec>,
}

/// An object of Keras's own as it is serialised.
pub(super) fn object(module: &str, class: &str, config: impl Into<Value>) -> Value {
    json!({ "module": module, "class_name": class, "config": config.into(), "registered_name": null })
}

/// The shortest decimal that is read as the same f32.
pub(super) fn number(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

impl Place<'_> {
    fn refuse<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        Err(Error::unsupported(format!("keras: {}: {what}", self.name)))
    }

    /// How the parameter of `role` begins.
    fn begins(&self, role: &str) -> Initializer {
        let spec = self.specs.get(&format!("{}.{role}", self.name));
        spec.map_or(Initializer::Zeros, |spec| spec.initializer)
    }

    /// A function of the elements, by its name or as a layer of its own.
    fn activation(&self, activation: Activation) -> Result<Value> {
        use Activation as A;
        let name = match activation {
            A::Linear => "linear",
            A::Tanh => "tanh",
            A::Sigmoid => "sigmoid",
            A::Relu => "relu",
            A::HardSigmoid { alpha, beta } if (alpha, beta) == (1.0 / 6.0, 0.5) => "hard_sigmoid",
            A::Elu { alpha: 1.0 } => "elu",
            A::Selu => "selu",
            A::LeakyRelu { alpha: 0.2 } => "leaky_relu",
            A::Softplus => "softplus",
            A::Softsign => "softsign",
            A::Swish => "silu",
            A::Exponential => "exponential",
            A::Softmax => "softmax",
            A::LeakyRelu { .. } | A::Elu { .. } => {
                let (class, config) = self.function(activation)?;
                return Ok(object("keras.layers", class, config));
            }
            other => return self.refuse(format!("Keras has no activation {other:?}")),
        };
        Ok(name.into())
    }

    /// A function of the elements as a layer.
    fn function(&self, activation: Activation) -> Result<(&'static str, Map<String, Value>)> {
        let (class, key, value) = match activation {
            Activation::LeakyRelu { alpha } if alpha != 0.2 => ("LeakyReLU", "negative_slope", number(alpha)),
            Activation::Elu { alpha } if alpha != 1.0 => ("ELU", "alpha", number(alpha)),
            other => ("Activation", "activation", self.activation(other)?),
        };
        Ok((class, Map::from_iter([(key.to_string(), value)])))
    }

    /// A layer's class and its configuration.
    pub fn layer(&self, layer: &Layer) -> Result<(&'static str, Value)> {
        let (class, more) = self.own(layer)?;
        let mut config =
            Map::from_iter([("name".to_string(), self.name.into()), ("dtype".to_string(), "float32".into())]);
        // The one layer of Keras that does not take what all others do.
        if class != "SpatialDropout1D" {
            config.insert("trainable".to_string(), true.into());
        }
        config.extend(more);
        Ok((class, config.into()))
    }

    /// What a class has besides what all have.
    fn own(&self, layer: &Layer) -> Result<(&'static str, Map<String, Value>)> {
        let (class, config) = match layer {
            Layer::Lstm(l) if l.direction == Direction::Both => ("Bidirectional", self.bidirectional(l)?),
            Layer::Lstm(l) => ("LSTM", self.lstm(l)?),
            Layer::Embedding(l) if l.dropout > 0.0 => {
                return self.refuse("Keras has no dropout of an embedding's rows");
            }
            Layer::Embedding(l) => {
                let mut config = json!({
                    "input_dim": l.vocabulary,
                    "output_dim": l.size,
                    "mask_zero": l.mask_zero,
                    "activity_regularizer": regularizer_of(l.activity),
                });
                rules(&mut config, "embeddings", self.begins("weight"), &l.kernel, &json!(1));
                ("Embedding", config)
            }
            Layer::Dense(l) if l.tied.is_some() => {
                return self.refuse("Keras has no layer whose weights are those of an embedding");
            }
            Layer::Dense(l) => {
                let mut config = json!({
                    "units": l.units,
                    "activation": self.activation(l.activation)?,
                    "use_bias": l.bias,
                    "activity_regularizer": regularizer_of(l.activity),
                });
                rules(&mut config, "kernel", self.begins("weight"), &l.kernel, &json!(0));
                rules(&mut config, "bias", self.begins("bias"), &l.bias_rules, &json!(0));
                ("Dense", config)
            }
            Layer::Conv1D(l) => {
                let mut config = json!({
                    "filters": l.filters,
                    "groups": 1,
                    "dilation_rate": [l.window.dilation],
                    "activation": self.activation(l.activation)?,
                    "use_bias": l.bias,
                    "activity_regularizer": regularizer_of(l.activity),
                });
                self.windows(&mut config, "kernel_size", l.window)?;
                rules(&mut config, "kernel", self.begins("weight"), &l.kernel, &json!([0, 1]));
                rules(&mut config, "bias", self.begins("bias"), &l.bias_rules, &json!(0));
                ("Conv1D", config)
            }
            Layer::Cropping1D(l) => match (l.before, l.after, l.stride) {
                (before @ 0.., after @ 0.., 1) => ("Cropping1D", json!({ "cropping": [before, after] })),
                (..0, ..=0, 1) | (0, ..0, 1) => {
                    let padding = [l.before.unsigned_abs(), l.after.unsigned_abs()];
                    ("ZeroPadding1D", json!({ "padding": padding, "data_format": "channels_last" }))
                }
                _ => return self.refuse("Keras has no such part of a sequence"),
            },
            Layer::Pooling1D(l) if l.window.padding == Padding::Causal || l.window.dilation != 1 => {
                return self.refuse("Keras pools windows neither causally nor with a dilation");
            }
            Layer::Pooling1D(l) => {
                let mut config = json!({});
                self.windows(&mut config, "pool_size", l.window)?;
                (if l.kind == PoolingKind::Max { "MaxPooling1D" } else { "AveragePooling1D" }, config)
            }
            Layer::Pooling(l) if l.kind == PoolingKind::Sum => return self.refuse("Keras has no sum over steps"),
            Layer::Pooling(l) => (
                if l.kind == PoolingKind::Max { "GlobalMaxPooling1D" } else { "GlobalAveragePooling1D" },
                json!({ "data_format": "channels_last", "keepdims": false }),
            ),
            Layer::Dropout(l) => self.dropout(l),
            Layer::Activation(l) => return self.function(l.activation),
            Layer::LayerNormalization(l) => (
                "LayerNormalization",
                json!({ "axis": -1, "epsilon": number(l.epsilon), "center": l.center, "scale": l.scale }),
            ),
            Layer::Masking(l) => ("Masking", json!({ "mask_value": number(l.value) })),
            Layer::Attention(l) => match l.score {
                Score::Dot => ("Attention", json!({ "use_scale": l.scale, "score_mode": "dot", "dropout": 0.0 })),
                Score::Additive => ("AdditiveAttention", json!({ "use_scale": l.scale, "dropout": 0.0 })),
            },
            Layer::RepeatVector(l) => ("RepeatVector", json!({ "n": l.count })),
            Layer::Flatten(_) => ("Flatten", json!({ "data_format": "channels_last" })),
            Layer::Reshape(l) => {
                let sizes: Vec<Value> = l.shape.iter().map(|s| s.map_or(Value::from(-1), Value::from)).collect();
                ("Reshape", json!({ "target_shape": sizes }))
            }
            Layer::Permute(_) => ("Permute", json!({ "dims": [2, 1] })),
            Layer::Merge(l) => match l.kind {
                MergeKind::Concatenate => ("Concatenate", json!({ "axis": -1 })),
                MergeKind::Add => ("Add", json!({})),
                MergeKind::Subtract => ("Subtract", json!({})),
                MergeKind::Multiply => ("Multiply", json!({})),
                MergeKind::Average => ("Average", json!({})),
                MergeKind::Maximum => ("Maximum", json!({})),
                MergeKind::Minimum => ("Minimum", json!({})),
            },
            Layer::WorkingMemory(_) => return self.refuse("Keras has no working memory"),
            Layer::LogSoftmax(_) => ("Activation", json!({ "activation": "log_softmax" })),
            Layer::Along(_)
            | Layer::Columns(_)
            | Layer::Step(_)
            | Layer::FeatureSum(_)
            | Layer::TimeSoftmax(_)
            | Layer::Flip(_)
            | Layer::Formula(_) => return self.refuse(format!("Keras has no layer like {}", layer.class())),
        };
        match config {
            Value::Object(config) => Ok((class, config)),
            other => Err(Error::internal(format!("keras: expected an object, got {other}"))),
        }
    }

    fn dropout(&self, l: &Dropout) -> (&'static str, Value) {
        // A row has no steps that could share a mask.
        let steps = l.mask == Mask::Sequence && matches!(self.input, Some(Signal::Sequence { .. }));
        (if steps { "SpatialDropout1D" } else { "Dropout" }, json!({ "rate": number(l.rate) }))
    }

    /// Refuses what an LSTM of Keras does not compute.
    fn plain(&self, l: &Lstm) -> Result<()> {
        let c = &l.cell;
        let step = Cell {
            gate: c.gate,
            candidate: c.candidate,
            output: c.output,
            recurrent_dropout: c.recurrent_dropout,
            recurrent_mask: c.recurrent_mask,
            ..Cell::default()
        };
        let drops_steps = c.recurrent_dropout > 0.0 && c.recurrent_mask == Mask::Step;
        let two_rules = l.bias_rules.regularizer.is_some() || l.bias_rules.constraint.is_some();
        let zeros = l.direction != Direction::Both || l.zero_output_for_mask;
        for (given, what) in [
            (c.peepholes, "peepholes"),
            (c.layer_norm.is_some(), "layer normalisation of a cell"),
            (c.clip.is_some() || c.cell_clip.is_some() || c.gradient_clip.is_some(), "clipping in a cell"),
            (c.coupled, "coupled gates"),
            (c.zoneout_h > 0.0 || c.zoneout_c > 0.0, "zoneout"),
            (drops_steps, "recurrent dropout with a mask a step"),
            (*c != step, "such cell"),
            (l.output_activation.is_some_and(|o| o != l.activation), "activation of its own for the output"),
            (l.projection.is_some(), "projection"),
            (l.weight_drop > 0.0, "dropout of recurrent weights"),
            (l.activation_penalty > 0.0 || l.temporal_penalty > 0.0, "penalties of the state"),
            (l.bias == Bias::Two && two_rules, "rules of each of two biases"),
        ] {
            if given {
                return self.refuse(format!("Keras's LSTM has no {what}"));
            }
        }
        if l.stateful {
            return self.refuse("Keras's stateful layers need a number of sequences, which the network does not say");
        }
        if l.direction == Direction::Reverse && l.return_sequences {
            return self
                .refuse("an LSTM of Keras that reads backwards gives its outputs in that order, not in that of time");
        }
        if self.masked && l.return_sequences && !zeros {
            return self.refuse("Keras's Bidirectional gives zeros at masked steps (`zero_output_for_mask`)");
        }
        Ok(())
    }

    fn lstm(&self, l: &Lstm) -> Result<Value> {
        self.plain(l)?;
        let bias = self.begins("bias_ih_l0");
        let unit_forget = bias == Initializer::ForgetBias(1.0);
        let mut config = json!({
            "units": l.units,
            "activation": self.activation(l.activation)?,
            "recurrent_activation": self.activation(l.recurrent_activation)?,
            "use_bias": l.bias != Bias::None,
            "unit_forget_bias": unit_forget,
            "return_sequences": l.return_sequences,
            "return_state": l.return_state,
            "go_backwards": l.go_backwards || l.direction == Direction::Reverse,
            "stateful": false,
            "unroll": false,
            "zero_output_for_mask": l.zero_output_for_mask,
            "dropout": number(l.dropout),
            "recurrent_dropout": number(l.cell.recurrent_dropout),
            "activity_regularizer": regularizer_of(l.activity),
        });
        let bias = if unit_forget { Initializer::Zeros } else { bias };
        rules(&mut config, "kernel", self.begins("weight_ih_l0"), &l.kernel, &json!(0));
        rules(&mut config, "recurrent", self.begins("weight_hh_l0"), &l.recurrent, &json!(0));
        rules(&mut config, "bias", bias, &l.bias_rules, &json!(0));
        Ok(config)
    }

    fn bidirectional(&self, l: &Lstm) -> Result<Value> {
        let merge = match l.merge {
            MergeMode::Concat => Some("concat"),
            MergeMode::Sum => Some("sum"),
            MergeMode::Product => Some("mul"),
            MergeMode::Average => Some("ave"),
            MergeMode::Apart => None,
        };
        let beside = matches!(l.merge, MergeMode::Concat | MergeMode::Apart);
        if l.activity.is_some() && !beside {
            return self.refuse("Keras regularises the outputs of two directions before they are merged");
        }
        let one = |name: &str, back: bool| -> Result<Value> {
            let mut config = self.lstm(l)?;
            config["name"] = format!("{name}_{}", self.name).into();
            config["go_backwards"] = back.into();
            config["dtype"] = "float32".into();
            Ok(object("keras.layers", "LSTM", config))
        };
        Ok(json!({
            "merge_mode": merge,
            "layer": one("forward", false)?,
            "backward_layer": one("backward", true)?,
        }))
    }

    fn windows(&self, config: &mut Value, size: &str, window: Window) -> Result<()> {
        let padding = match window.padding {
            Padding::Valid => "valid",
            Padding::Same => "same",
            Padding::Causal => "causal",
            Padding::Explicit { .. } => return self.refuse("Keras does not pad windows by numbers of steps"),
        };
        config[size] = json!([window.taps]);
        config["strides"] = json!([window.stride]);
        config["padding"] = padding.into();
        config["data_format"] = "channels_last".into();
        Ok(())
    }
}
