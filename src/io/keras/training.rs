//! How a model of Keras was being trained: its optimiser with what that keeps, its loss, and the steps taken.

use super::archive::KerasArchive;
use super::config::{Object, class};
use super::variables::Variable;
use crate::error::{Error, Result};
use crate::optim::{
    Adadelta, Adagrad, Adam, Adamax, Clipping, Convention, Lion, Nadam, Optimizer, RmsProp, Rule, Schedule, Sgd,
    WeightDecay,
};
use crate::params::{ParameterSpec, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;

/// How a model of Keras was being trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// The optimiser with its settings. One that is not known here has no training.
    pub optimizer: Optimizer,
    /// What Keras calls the loss, such as `mse` or `CategoricalCrossentropy`, where there is one.
    pub loss: Option<String>,
    /// Steps taken.
    pub step: u32,
    /// What the optimiser keeps of each parameter, under the names that [`Optimizer::slots`] has for it; empty before
    /// the first step.
    pub state: BTreeMap<String, Tensor>,
}

/// The training of a model with these parameters, `variables` in Keras's order. What is not known here is an error: a
/// model is whole without it.
pub(super) fn training(
    archive: &KerasArchive,
    variables: &[Variable],
    specs: &[ParameterSpec],
) -> Result<Option<Training>> {
    let compiled =
        Object { value: archive.config.get("compile_config").unwrap_or(&Value::Null), place: "the training" };
    if !compiled.get("optimizer").is_object() {
        return Ok(None);
    }
    let (name, config) = class(compiled.get("optimizer"), "the optimizer")?;
    let optimizer = optimizer(name, config)?;
    optimizer.validate()?;
    let loss = match compiled.get("loss") {
        Value::String(name) => Some(name.as_str()),
        value => value.get("class_name").and_then(Value::as_str),
    };
    // A rate that does not follow from the step is a variable of its own.
    let first = if config.get("learning_rate").is_number() { 2 } else { 1 };
    let state = state(archive, &optimizer, variables, specs, first)?;
    let step = u32::try_from(archive.step.unwrap_or(0)).map_err(|_| Error::data("more steps than can be counted"))?;
    Ok(Some(Training { optimizer, loss: loss.map(str::to_string), step, state }))
}

fn unsupported<T>(what: impl std::fmt::Display) -> Result<T> {
    Err(Error::unsupported(format!("keras: {what} is not supported")))
}

fn number(config: Object<'_>, key: &str) -> Result<f64> {
    let found = config.get(key).as_f64();
    found.ok_or_else(|| Error::data(format!("keras: {}: expected a number for `{key}`", config.place)))
}

fn is(config: Object<'_>, key: &str) -> bool {
    config.get(key) == &Value::Bool(true)
}

fn optimizer(name: &str, config: Object<'_>) -> Result<Optimizer> {
    let (learning_rate, schedule) = rate(config)?;
    let number = |key: &str| number(config, key);
    let convention = Convention::Keras;
    let rule: Rule = match name {
        "Adam" | "AdamW" => Rule::Adam(Adam {
            learning_rate,
            beta_1: number("beta_1")?,
            beta_2: number("beta_2")?,
            epsilon: number("epsilon")?,
            amsgrad: is(config, "amsgrad"),
            convention,
        }),
        "SGD" => {
            let momentum = number("momentum")?;
            Rule::Sgd(Sgd { learning_rate, momentum, nesterov: momentum > 0.0 && is(config, "nesterov"), convention })
        }
        "RMSprop" => Rule::RmsProp(RmsProp {
            learning_rate,
            rho: number("rho")?,
            momentum: number("momentum")?,
            epsilon: number("epsilon")?,
            centered: is(config, "centered"),
            convention,
        }),
        "Adagrad" => Rule::Adagrad(Adagrad {
            learning_rate,
            learning_rate_decay: 0.0,
            initial: number("initial_accumulator_value")?,
            epsilon: number("epsilon")?,
            convention,
        }),
        "Adadelta" => Rule::Adadelta(Adadelta { learning_rate, rho: number("rho")?, epsilon: number("epsilon")? }),
        "Adamax" => Rule::Adamax(Adamax {
            learning_rate,
            beta_1: number("beta_1")?,
            beta_2: number("beta_2")?,
            epsilon: number("epsilon")?,
            convention,
        }),
        "Nadam" => Rule::Nadam(Nadam {
            learning_rate,
            beta_1: number("beta_1")?,
            beta_2: number("beta_2")?,
            epsilon: number("epsilon")?,
            ..Nadam::default()
        }),
        "Lion" => Rule::Lion(Lion { learning_rate, beta_1: number("beta_1")?, beta_2: number("beta_2")? }),
        other => return unsupported(format!("the optimizer {other}")),
    };
    for key in ["loss_scale_factor", "gradient_accumulation_steps"] {
        if !config.get(key).is_null() {
            return unsupported(format!("`{key}` of an optimizer"));
        }
    }
    if is(config, "use_ema") {
        return unsupported("`use_ema` of an optimizer");
    }
    let mut optimizer = Optimizer::from(rule).schedule(schedule);
    if !config.get("weight_decay").is_null() {
        optimizer = optimizer.weight_decay(WeightDecay::decoupled(number("weight_decay")?));
    }
    for key in ["clipvalue", "clipnorm", "global_clipnorm"] {
        if config.get(key).is_null() {
            continue;
        }
        let limit = number(key)? as f32;
        optimizer = optimizer.clip(match key {
            "clipvalue" => Clipping::Value(limit),
            "clipnorm" => Clipping::Norm(limit),
            _ => Clipping::GlobalNorm(limit),
        });
    }
    Ok(optimizer)
}

/// The first learning rate, and its schedule.
fn rate(config: Object<'_>) -> Result<(f64, Schedule)> {
    if let Some(constant) = config.get("learning_rate").as_f64() {
        return Ok((constant, Schedule::Constant));
    }
    let (name, config) = class(config.get("learning_rate"), "the learning rate")?;
    let every = config.get("decay_steps").as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
    let Some(every) = every else { return unsupported("a schedule without whole `decay_steps`") };
    let schedule = match name {
        "ExponentialDecay" => {
            let factor = number(config, "decay_rate")?;
            if is(config, "staircase") {
                Schedule::Step { every, factor }
            } else {
                Schedule::Exponential { every, factor }
            }
        }
        "CosineDecay" if config.get("warmup_target").is_null() => {
            Schedule::Cosine { steps: every, least: number(config, "alpha")? }
        }
        other => return unsupported(format!("the schedule {other}")),
    };
    Ok((number(config, "initial_learning_rate")?, schedule))
}

/// What is kept of each parameter in turn, by the numbers of the rule's slots here: Keras lists those of a group
/// parameter by parameter, and one group after the other.
fn groups(rule: &Rule) -> Vec<Vec<usize>> {
    match rule {
        Rule::Adam(rule) if rule.amsgrad => vec![vec![0, 1], vec![2]],
        Rule::Adam(_) | Rule::Nadam(_) | Rule::Adamax(_) | Rule::Adadelta(_) => vec![vec![0, 1]],
        Rule::Sgd(rule) if rule.momentum == 0.0 => Vec::new(),
        Rule::Sgd(_) | Rule::AveragedSgd(_) | Rule::Lion(_) | Rule::Adagrad(_) => vec![vec![0]],
        Rule::RmsProp(rule) => {
            let momentum = (rule.momentum > 0.0).then_some(vec![1 + usize::from(rule.centered)]);
            [vec![0]].into_iter().chain(momentum).chain(rule.centered.then_some(vec![1])).collect()
        }
    }
}

fn state(
    archive: &KerasArchive,
    optimizer: &Optimizer,
    variables: &[Variable],
    specs: &[ParameterSpec],
    first: usize,
) -> Result<BTreeMap<String, Tensor>> {
    let slots = optimizer.slots(specs);
    let mut state = BTreeMap::new();
    let mut number = first;
    if !archive.weights.contains_key(&format!("optimizer/vars/{first}")) {
        return Ok(state);
    }
    for group in groups(&optimizer.rule) {
        for variable in variables {
            let at = specs.iter().position(|spec| spec.name == variable.parameter);
            for kind in &group {
                let path = format!("optimizer/vars/{number}");
                let slot = at.and_then(|at| slots.get(kind * specs.len() + at));
                let (Some(kept), Some(slot)) = (archive.weights.get(&path), slot) else {
                    return Err(Error::data(format!("keras: expected `{path}` of `{}`", variable.parameter)));
                };
                let tensor = variable.form.read(kept)?;
                if tensor.shape() != slot.shape {
                    let (wanted, got) = (&slot.shape, tensor.shape());
                    return Err(Error::shape(format!("keras: `{path}`: expected {wanted:?}, got {got:?}")));
                }
                state.insert(slot.name.clone(), tensor);
                number += 1;
            }
        }
    }
    Ok(state)
}
