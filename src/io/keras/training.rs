//! How a model of Keras was being trained: its optimiser with what that keeps, its loss, and the steps taken.

use super::archive::{KerasArchive, KerasTensor};
use super::config::{Object, class};
use super::variables::Variable;
use crate::error::{Error, Result};
use crate::optim::{
    Adadelta, Adagrad, Adam, Adamax, Clipping, Convention, Lion, Nadam, Optimizer, RmsProp, Rule, Schedule, Sgd,
    WeightDecay,
};
use crate::params::{ParameterSpec, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

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
    let state = state(archive, &optimizer, variables, specs, first(config))?;
    let step = u32::try_from(archive.step.unwrap_or(0)).map_err(|_| Error::data("more steps than can be counted"))?;
    Ok(Some(Training { optimizer, loss: loss.map(str::to_string), step, state }))
}

/// The number of the first value that is kept of a parameter. A rate that does not follow from the step is a variable of
/// its own, after the step.
fn first(config: Object<'_>) -> usize {
    if config.get("learning_rate").is_number() { 2 } else { 1 }
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
    // Only optimisers of Keras 2 before 2.11 have it. The rate falls by it, but Nadam's momentum rises.
    let decay = config.get("decay").as_f64();
    if decay.is_some_and(|decay| decay != 0.0) && !["Adagrad", "Nadam"].contains(&name) {
        return unsupported(format!("`decay` of the optimizer {name}"));
    }
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
        "RMSprop" => {
            let momentum = number("momentum")?;
            // Those of then add ε to the root, unless there is momentum.
            let convention = if decay.is_some() && momentum == 0.0 { Convention::PyTorch } else { convention };
            let (rho, epsilon, centered) = (number("rho")?, number("epsilon")?, is(config, "centered"));
            Rule::RmsProp(RmsProp { learning_rate, rho, momentum, epsilon, centered, convention })
        }
        "Adagrad" => Rule::Adagrad(Adagrad {
            learning_rate,
            learning_rate_decay: decay.unwrap_or(0.0),
            initial: number("initial_accumulator_value")?,
            epsilon: number("epsilon")?,
            convention: if decay.is_some() { Convention::PyTorch } else { convention },
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
            momentum_decay: decay.unwrap_or(1.0),
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

/// What Keras 2 calls each value that is kept of a parameter, by the numbers of the rule's slots here: before 2.11, and
/// since.
fn older_names(rule: &Rule) -> Vec<[&'static str; 2]> {
    match rule {
        Rule::Adam(_) => vec![["m", "m"], ["v", "v"], ["vhat", "vhat"]],
        Rule::Nadam(_) => vec![["m", "m"], ["v", "v"]],
        Rule::Adamax(_) => vec![["m", "m"], ["v", "u"]],
        Rule::Adadelta(_) => vec![["accum_grad", "accumulated_grad"], ["accum_var", "accumulated_delta_var"]],
        Rule::Adagrad(_) => vec![["accumulator", "accumulator"]],
        Rule::Sgd(_) | Rule::AveragedSgd(_) => vec![["momentum", "m"]],
        Rule::Lion(_) => vec![["m", "m"]],
        Rule::RmsProp(rule) => {
            let mean = rule.centered.then_some(["mg", "average_gradient"]);
            [["rms", "velocity"]].into_iter().chain(mean).chain([["momentum", "momentum"]]).collect()
        }
    }
}

/// What an optimiser of Keras 2 keeps, by the paths that a file of Keras 3 has for it. `kept` has it by name, `weights`
/// are the names of the model's in the order of Keras 3, and `step` is how many steps were taken.
///
/// Keras 2 calls what is kept of a weight `Adam/dense/kernel/m:0`, since 2.11 `Adam/m/dense/kernel:0`, both with
/// more, less or nothing in front. All has to have such a name, in one way alone; what else there is, is not read.
pub(super) fn older_state(
    described: &Value,
    weights: &[&str],
    kept: &BTreeMap<&str, &KerasTensor>,
    step: Option<u64>,
) -> Result<BTreeMap<String, KerasTensor>> {
    let (name, config) = class(described, "the optimizer")?;
    let rule = optimizer(name, config)?.rule;
    let (names, groups) = (older_names(&rule), groups(&rule));
    let called = |older: bool, front: &str, weight: &str, kind: usize| {
        let [before, since] = names.get(kind).copied().unwrap_or_default();
        if older { format!("{front}{weight}/{before}:0") } else { format!("{front}{since}/{weight}:0") }
    };
    let one = weights.first().zip(groups.first().and_then(|group| group.first()));
    let Some((&weight, &kind)) = one else { return Ok(BTreeMap::new()) };
    let whole = |older: bool, front: &str| {
        let has = |weight: &str, kind: usize| kept.contains_key(called(older, front, weight, kind).as_str());
        groups.iter().flatten().all(|&kind| weights.iter().all(|weight| has(weight, kind)))
    };
    let mut ways = Vec::new();
    for older in [true, false] {
        let end = called(older, "", weight, kind);
        let fronts = kept.keys().filter_map(|name| name.strip_suffix(end.as_str()));
        let fronts = fronts.filter(|front| front.is_empty() || front.ends_with('/'));
        ways.extend(fronts.filter(|front| whole(older, front)).map(|front| (older, front)));
    }
    let different = weights.iter().collect::<BTreeSet<_>>().len() == weights.len();
    let (older, front) = match (&ways[..], step) {
        (&[way], Some(_)) if different => way,
        // Before its first step it may keep nothing yet.
        ([], None | Some(0)) if kept.values().all(|tensor| tensor.shape.is_empty()) => return Ok(BTreeMap::new()),
        _ => {
            return Err(Error::data(format!("keras: the optimizer {name}: what it keeps cannot be told by its names")));
        }
    };
    let mut state = BTreeMap::new();
    let mut number = first(config);
    for group in &groups {
        for (weight, &kind) in weights.iter().flat_map(|weight| group.iter().map(move |kind| (weight, kind))) {
            let name = called(older, front, weight, kind);
            let tensor = kept.get(name.as_str()).ok_or_else(|| Error::internal(format!("keras: no `{name}`")))?;
            state.insert(format!("optimizer/vars/{number}"), (*tensor).clone());
            number += 1;
        }
    }
    Ok(state)
}
