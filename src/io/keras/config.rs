//! The layers of a Keras model as this crate's: what its configuration says, or an error that names what is not known.

use super::rules::{regularizer, rules};
use crate::config::{Activation, Bias, Direction, Mask};
use crate::error::{Error, Result};
use crate::nn::{
    Activate, Attention, Conv1D, Cropping1D, Dense, Dropout, Embedding, Flatten, Layer, LayerNormalization, LogSoftmax,
    Lstm, Masking, Merge, MergeKind, MergeMode, Padding, Permute, Pooling, Pooling1D, PoolingKind, RepeatVector,
    Reshape, Window,
};
use serde_json::Value;

/// One JSON object with the place it is at, for messages.
#[derive(Clone, Copy)]
pub(super) struct Object<'a> {
    pub value: &'a Value,
    pub place: &'a str,
}

/// What a setting that this crate leaves out must be.
fn unsupported<T>(place: &str, what: impl std::fmt::Display) -> Result<T> {
    Err(Error::unsupported(format!("keras: {place}: {what}")))
}

impl<'a> Object<'a> {
    pub fn get(&self, key: &str) -> &'a Value {
        self.value.get(key).unwrap_or(&Value::Null)
    }

    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        let mut got = self.get(key).to_string();
        if got.len() > 80 {
            got = got.chars().take(80).collect::<String>() + "..";
        }
        Err(Error::data(format!("keras: {}: expected {expected} for `{key}`, got {got}", self.place)))
    }

    pub fn text(&self, key: &str) -> Result<&'a str> {
        self.get(key).as_str().map_or_else(|| self.wrong(key, "a text"), Ok)
    }

    pub fn list(&self, key: &str) -> Result<&'a [Value]> {
        self.get(key).as_array().map_or_else(|| self.wrong(key, "a list"), |l| Ok(l.as_slice()))
    }

    fn size(&self, key: &str) -> Result<usize> {
        let number = self.get(key).as_u64().and_then(|n| usize::try_from(n).ok());
        number.map_or_else(|| self.wrong(key, "a number of at least 0"), Ok)
    }

    pub fn float(&self, key: &str, default: f32) -> Result<f32> {
        match self.get(key) {
            Value::Null => Ok(default),
            value => value.as_f64().map_or_else(|| self.wrong(key, "a number"), |x| Ok(x as f32)),
        }
    }

    /// A flag, `default` where it is not given, as in files of an older version.
    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            Value::Null => Ok(default),
            value => value.as_bool().map_or_else(|| self.wrong(key, "true or false"), Ok),
        }
    }

    /// Refuses a setting that is given and is not `only`.
    fn only(&self, key: &str, only: &Value) -> Result<()> {
        match self.get(key) {
            Value::Null => Ok(()),
            value if value == only => Ok(()),
            _ => unsupported(self.place, format!("`{key}` other than {only} is not supported")),
        }
    }
}

/// The operations that are what the layer of their class is, and those of masks.
const OPERATIONS: [&str; 8] =
    ["Add", "Subtract", "Multiply", "Maximum", "Minimum", "NotEqual", "Any", "ConvertToTensor"];

/// The class and configuration of a serialised object.
pub(super) fn class<'a>(value: &'a Value, place: &'a str) -> Result<(&'a str, Object<'a>)> {
    let outer = Object { value, place };
    let name = outer.text("class_name")?;
    let config = outer.get("config");
    if !config.is_object() {
        return outer.wrong("config", "an object");
    }
    let module = outer.get("module").as_str().unwrap_or("keras");
    if !module.starts_with("keras") || outer.get("registered_name").as_str().is_some_and(|n| n.contains('>')) {
        return unsupported(place, format!("the class {name} is not Keras's own (module {module})"));
    }
    // Operations have the classes of layers, and mean other things: an `Average` over an axis.
    if module.starts_with("keras.src.ops") && !OPERATIONS.contains(&name) {
        return unsupported(place, format!("the operation {name} ({module}) is not supported"));
    }
    Ok((name, Object { value: config, place }))
}

/// A function of the elements by Keras's name.
fn activation(object: Object<'_>, key: &str, default: Activation) -> Result<Activation> {
    use Activation as A;
    let name = match object.get(key) {
        Value::Null => return Ok(default),
        Value::String(name) => name.as_str(),
        value => {
            let (class, config) = class(value, object.place)?;
            match activation_layer(class, config)? {
                Some(activation) => return Ok(activation),
                None => class,
            }
        }
    };
    Ok(match name {
        "linear" => A::Linear,
        "tanh" => A::Tanh,
        "sigmoid" => A::Sigmoid,
        "relu" => A::Relu,
        "hard_sigmoid" => A::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 },
        "elu" => A::Elu { alpha: 1.0 },
        "selu" => A::Selu,
        "leaky_relu" => A::LeakyRelu { alpha: 0.2 },
        "softplus" => A::Softplus,
        "softsign" => A::Softsign,
        "silu" | "swish" => A::Swish,
        "exponential" => A::Exponential,
        "softmax" => A::Softmax,
        other => return unsupported(object.place, format!("the activation `{other}` is not supported")),
    })
}

/// The function that a layer of its own is, if it is one.
fn activation_layer(class: &str, config: Object<'_>) -> Result<Option<Activation>> {
    Ok(Some(match class {
        "ReLU" => {
            config.only("max_value", &Value::Null)?;
            config.only("threshold", &Value::from(0.0))?;
            match config.float("negative_slope", 0.0)? {
                0.0 => Activation::Relu,
                alpha => Activation::LeakyRelu { alpha },
            }
        }
        "LeakyReLU" => Activation::LeakyRelu { alpha: config.float("negative_slope", 0.3)? },
        "ELU" => Activation::Elu { alpha: config.float("alpha", 1.0)? },
        "Softmax" => {
            config.only("axis", &Value::from(-1))?;
            Activation::Softmax
        }
        _ => return Ok(None),
    }))
}

/// What every layer has: float32 and nothing quantised.
fn common(config: Object<'_>) -> Result<()> {
    let dtype = match config.get("dtype") {
        Value::String(name) => name.as_str(),
        Value::Object(policy) => policy.get("config").and_then(|c| c.get("name")).and_then(Value::as_str).unwrap_or(""),
        Value::Null => "float32",
        _ => "",
    };
    if dtype != "float32" {
        return unsupported(config.place, format!("only the dtype policy float32 is supported, got `{dtype}`"));
    }
    config.only("quantization_config", &Value::Null)?;
    config.only("lora_rank", &Value::Null)?;
    Ok(())
}

fn lstm(config: Object<'_>) -> Result<Lstm> {
    common(config)?;
    config.only("time_major", &Value::Bool(false))?;
    // What the recurrence computes does not depend on `unroll`, `implementation`, `use_cudnn`.
    let layer = Lstm::new(config.size("units")?)
        .activation(activation(config, "activation", Activation::Tanh)?)
        .recurrent_activation(activation(config, "recurrent_activation", Activation::Sigmoid)?)
        .return_sequences(config.flag("return_sequences", false)?)
        .return_state(config.flag("return_state", false)?)
        .go_backwards(config.flag("go_backwards", false)?)
        .stateful(config.flag("stateful", false)?)
        .zero_output_for_mask(config.flag("zero_output_for_mask", false)?)
        .bias(if config.flag("use_bias", true)? { Bias::One } else { Bias::None })
        .dropout(config.float("dropout", 0.0)?)
        .recurrent_dropout(config.float("recurrent_dropout", 0.0)?)
        .kernel(rules(config, "kernel")?)
        .recurrent(rules(config, "recurrent")?)
        .bias_rules(rules(config, "bias")?);
    Ok(Lstm { activity: regularizer(config, "activity_regularizer")?, ..layer })
}

fn bidirectional(config: Object<'_>) -> Result<Lstm> {
    common(config)?;
    let one = |key: &str| -> Result<Lstm> {
        match class(config.get(key), config.place)? {
            ("LSTM", inner) => lstm(inner),
            (other, _) => unsupported(config.place, format!("Bidirectional of {other} is not supported")),
        }
    };
    let mut layer = one("layer")?;
    if layer.go_backwards {
        return unsupported(config.place, "a Bidirectional whose forward layer goes backwards is not supported");
    }
    if !config.get("backward_layer").is_null() {
        let mut other = one("backward_layer")?;
        let backward = std::mem::take(&mut other.go_backwards);
        if !backward || other != layer {
            return unsupported(
                config.place,
                "two directions that differ in more than their direction are not supported",
            );
        }
    }
    layer.direction = Direction::Both;
    // Whatever the inner layers say: Keras sets it for both.
    layer.zero_output_for_mask = true;
    layer.merge = match config.get("merge_mode") {
        Value::Null => MergeMode::Apart,
        Value::String(mode) => match mode.as_str() {
            "concat" => MergeMode::Concat,
            "sum" => MergeMode::Sum,
            "mul" => MergeMode::Product,
            "ave" => MergeMode::Average,
            other => return unsupported(config.place, format!("the merge mode `{other}` is not known")),
        },
        _ => return config.wrong("merge_mode", "a text or null"),
    };
    Ok(layer)
}

fn layer_normalization(config: Object<'_>) -> Result<LayerNormalization> {
    // The last axis; a list where the layer was built.
    let axis = match config.get("axis") {
        Value::Array(list) if list.len() == 1 => list[0].as_i64(),
        value => value.as_i64(),
    };
    if axis != Some(-1) {
        return unsupported(config.place, "a LayerNormalization over another axis than the last is not supported");
    }
    config.only("rms_scaling", &Value::Bool(false))?;
    Ok(LayerNormalization {
        epsilon: config.float("epsilon", 1e-3)?,
        scale: config.flag("scale", true)?,
        center: config.flag("center", true)?,
        name: None,
    })
}

/// A size that Keras writes as a list of one.
fn one_size(config: Object<'_>, key: &str) -> Result<usize> {
    let value = config.get(key);
    let number = value.as_u64().or_else(|| value.as_array().filter(|l| l.len() == 1)?.first()?.as_u64());
    number.map_or_else(|| config.wrong(key, "one size"), |n| Ok(n as usize))
}

/// Steps at the beginning and at the end.
fn sides(config: Object<'_>, key: &str) -> Result<(i32, i32)> {
    let value = config.get(key);
    let number = |value: &Value| value.as_u64().and_then(|n| i32::try_from(n).ok());
    let both = match value.as_array().map(Vec::as_slice) {
        Some([before, after]) => number(before).zip(number(after)),
        _ => number(value).map(|n| (n, n)),
    };
    both.map_or_else(|| config.wrong(key, "steps at the beginning and at the end"), Ok)
}

fn padding(config: Object<'_>) -> Result<Padding> {
    Ok(match config.text("padding")? {
        "valid" => Padding::Valid,
        "same" => Padding::Same,
        "causal" => Padding::Causal,
        other => return unsupported(config.place, format!("the padding `{other}` is not known")),
    })
}

fn conv1d(config: Object<'_>) -> Result<Conv1D> {
    config.only("data_format", &Value::from("channels_last"))?;
    config.only("groups", &Value::from(1))?;
    let layer = Conv1D::new(config.size("filters")?, one_size(config, "kernel_size")?)
        .stride(one_size(config, "strides")?)
        .dilation(one_size(config, "dilation_rate")?)
        .padding(padding(config)?)
        .activation(activation(config, "activation", Activation::Linear)?)
        .bias(config.flag("use_bias", true)?)
        .kernel(rules(config, "kernel")?)
        .bias_rules(rules(config, "bias")?);
    Ok(Conv1D { activity: regularizer(config, "activity_regularizer")?, ..layer })
}

fn pooling1d(config: Object<'_>, kind: PoolingKind) -> Result<Pooling1D> {
    config.only("data_format", &Value::from("channels_last"))?;
    let window = Window {
        stride: one_size(config, "strides")?,
        padding: padding(config)?,
        ..Window::new(one_size(config, "pool_size")?)
    };
    Ok(Pooling1D { kind, window })
}

fn attention(config: Object<'_>, layer: Attention, scale: bool) -> Result<Attention> {
    if config.float("dropout", 0.0)? != 0.0 {
        log::warn!("keras: {}: dropout of attention matters only to training, and is left out", config.place);
    }
    Ok(layer.scale(config.flag("use_scale", scale)?))
}

/// The layer that a class and its configuration say. Layers that pass on what they get are none.
pub(super) fn layer(class_name: &str, config: Object<'_>) -> Result<Option<Layer>> {
    common(config)?;
    let pooling = |kind| -> Result<Option<Layer>> {
        config.only("keepdims", &Value::Bool(false))?;
        config.only("data_format", &Value::from("channels_last"))?;
        Ok(Some(Pooling { kind }.into()))
    };
    let merge = |kind| Ok(Some(Merge { kind }.into()));
    if let Some(activation) = activation_layer(class_name, config)? {
        return Ok(Some(Activate { activation }.into()));
    }
    Ok(Some(match class_name {
        "LSTM" => lstm(config)?.into(),
        "Bidirectional" => bidirectional(config)?.into(),
        "Embedding" => Embedding {
            activity: regularizer(config, "activity_regularizer")?,
            ..Embedding::new(config.size("input_dim")?, config.size("output_dim")?)
                .mask_zero(config.flag("mask_zero", false)?)
                .kernel(rules(config, "embeddings")?)
        }
        .into(),
        "Dense" => Dense {
            activity: regularizer(config, "activity_regularizer")?,
            ..Dense::new(config.size("units")?)
                .activation(activation(config, "activation", Activation::Linear)?)
                .bias(config.flag("use_bias", true)?)
                .kernel(rules(config, "kernel")?)
                .bias_rules(rules(config, "bias")?)
        }
        .into(),
        "Conv1D" => conv1d(config)?.into(),
        "MaxPooling1D" => pooling1d(config, PoolingKind::Max)?.into(),
        "AveragePooling1D" => pooling1d(config, PoolingKind::Average)?.into(),
        "Dropout" => {
            config.only("noise_shape", &Value::Null)?;
            Dropout::new(config.float("rate", 0.0)?).into()
        }
        "SpatialDropout1D" => Dropout::new(config.float("rate", 0.0)?).mask(Mask::Sequence).into(),
        "Activation" if config.get("activation") == &Value::from("log_softmax") => LogSoftmax {}.into(),
        "Activation" => Activate { activation: activation(config, "activation", Activation::Linear)? }.into(),
        "LayerNormalization" => layer_normalization(config)?.into(),
        "Masking" => Masking { value: config.float("mask_value", 0.0)? }.into(),
        "GlobalAveragePooling1D" => return pooling(PoolingKind::Average),
        "GlobalMaxPooling1D" => return pooling(PoolingKind::Max),
        "Attention" => {
            config.only("score_mode", &Value::from("dot"))?;
            attention(config, Attention::dot(), false)?.into()
        }
        "AdditiveAttention" => attention(config, Attention::additive(), true)?.into(),
        "Cropping1D" => {
            let (before, after) = sides(config, "cropping")?;
            Cropping1D::new(before, after).into()
        }
        "ZeroPadding1D" => {
            config.only("data_format", &Value::from("channels_last"))?;
            let (before, after) = sides(config, "padding")?;
            Cropping1D::new(-before, -after).into()
        }
        "RepeatVector" => RepeatVector { count: config.size("n")? }.into(),
        "Flatten" => {
            config.only("data_format", &Value::from("channels_last"))?;
            Flatten {}.into()
        }
        "Reshape" => {
            let sizes = config.list("target_shape")?.iter().map(|size| match (size.as_i64(), size.as_u64()) {
                (Some(-1), _) => Ok(None),
                (_, Some(size)) => Ok(Some(size as usize)),
                _ => config.wrong("target_shape", "sizes"),
            });
            Reshape { shape: sizes.collect::<Result<_>>()? }.into()
        }
        "Permute" => match config.list("dims")?.iter().map(Value::as_u64).collect::<Vec<_>>()[..] {
            [Some(1), Some(2)] => return Ok(None),
            [Some(2), Some(1)] => Permute {}.into(),
            _ => return unsupported(config.place, "a Permute of other than two dimensions is not supported"),
        },
        "Concatenate" => {
            config.only("axis", &Value::from(-1))?;
            return merge(MergeKind::Concatenate);
        }
        "Add" => return merge(MergeKind::Add),
        "Subtract" => return merge(MergeKind::Subtract),
        "Multiply" => return merge(MergeKind::Multiply),
        "Average" => return merge(MergeKind::Average),
        "Maximum" => return merge(MergeKind::Maximum),
        "Minimum" => return merge(MergeKind::Minimum),
        "TimeDistributed" => {
            let (inner, config) = class(config.get("layer"), config.place)?;
            let each = ["Dense", "Activation", "Dropout", "LayerNormalization", "ReLU", "LeakyReLU", "ELU", "Softmax"];
            if !each.contains(&inner) {
                return unsupported(config.place, format!("TimeDistributed of {inner} is not supported"));
            }
            return layer(inner, config);
        }
        // Outputs of a layer pass; what they add to a loss matters only to training.
        "ActivityRegularization" | "Identity" | "GaussianNoise" | "GaussianDropout" | "AlphaDropout" => {
            if class_name != "Identity" {
                log::warn!("keras: {}: {class_name} matters only to training, and is left out", config.place);
            }
            return Ok(None);
        }
        other => return unsupported(config.place, format!("the layer {other} is not supported")),
    }))
}
