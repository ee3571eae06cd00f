//! Options that say how parameters change, as PyTorch has them.

use clap::{Args, ValueEnum};
use mnemon::optim::{
    Adadelta, Adagrad, Adam, AdamW, Adamax, Average, AveragedSgd, Clipping, Lion, Nadam, Optimizer, Plateau, RmsProp,
    Schedule, Sgd, WeightDecay,
};

/// Rules, with PyTorch's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rule {
    Adam,
    /// Adam with decoupled weight decay
    Adamw,
    Amsgrad,
    Nadam,
    Adamax,
    Rmsprop,
    Adagrad,
    Adadelta,
    Lion,
    Sgd,
    /// SGD with momentum 0.9
    Momentum,
    /// SGD with Nesterov's momentum 0.9
    Nesterov,
    /// Averaged SGD
    Asgd,
    /// SGD that is averaged from when validation gets no better over five epochs
    NtAsgd,
}

/// How the learning rate goes over the whole training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Course {
    Constant,
    /// A line to zero
    Linear,
    /// Half a cosine to zero
    Cosine,
    /// Up to the learning rate in a third of the steps, and down to nothing
    OneCycle,
    /// A fourth where validation is no better for an epoch
    Plateau,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Optimiser")]
pub struct OptimizerOptions {
    /// What is done with gradients, with PyTorch's settings
    #[arg(long, value_enum, default_value = "adam", conflicts_with = "resume")]
    optimizer: Rule,

    /// Learning rate
    #[arg(long, value_name = "RATE", default_value_t = 2e-3, conflicts_with = "resume")]
    learning_rate: f64,

    /// How the learning rate goes over all steps
    #[arg(long, value_enum, default_value = "constant", conflicts_with = "resume")]
    schedule: Course,

    /// Steps in which the learning rate rises from nothing
    #[arg(long, value_name = "STEPS", default_value_t = 0, conflicts_with = "resume")]
    warmup: u32,

    /// Factor of the learning rate after each epoch
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, conflicts_with = "resume")]
    decay: f64,

    /// Largest norm of the gradient; 0 for no limit
    #[arg(long, value_name = "NORM", default_value_t = 5.0, conflicts_with = "resume")]
    clip: f32,

    /// Pull of parameters to zero [default: 0, with adamw 0.01]
    #[arg(long, value_name = "RATE", conflicts_with = "resume")]
    weight_decay: Option<f64>,

    /// Keep an exponential average of the parameters with this momentum, and use it, in place of what the optimiser averages
    #[arg(long, value_name = "MOMENTUM", conflicts_with = "resume")]
    average: Option<f64>,

    /// Batches whose mean gradient makes one step
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "resume")]
    accumulate: u32,
}

impl OptimizerOptions {
    /// The optimiser of a training of so many batches.
    pub fn optimizer(&self, batches: u32) -> Optimizer {
        let learning_rate = self.learning_rate;
        let sgd = |momentum: f64, nesterov: bool| Sgd { learning_rate, momentum, nesterov, ..Sgd::default() };
        let adam = Adam::pytorch().learning_rate(learning_rate);
        let mut optimizer: Optimizer = match self.optimizer {
            Rule::Adam => adam.into(),
            Rule::Adamw => AdamW { adam, ..AdamW::default() }.into(),
            Rule::Amsgrad => Adam { amsgrad: true, ..adam }.into(),
            Rule::Nadam => Nadam { learning_rate, ..Nadam::pytorch() }.into(),
            Rule::Adamax => Adamax { learning_rate, ..Adamax::pytorch() }.into(),
            Rule::Rmsprop => RmsProp { learning_rate, ..RmsProp::pytorch() }.into(),
            Rule::Adagrad => Adagrad { learning_rate, ..Adagrad::pytorch() }.into(),
            Rule::Adadelta => Adadelta { learning_rate, ..Adadelta::pytorch() }.into(),
            Rule::Lion => Lion { learning_rate, ..Lion::default() }.into(),
            Rule::Sgd => sgd(0.0, false).into(),
            Rule::Momentum => sgd(0.9, false).into(),
            Rule::Nesterov => sgd(0.9, true).into(),
            Rule::Asgd => AveragedSgd { learning_rate, ..AveragedSgd::default() }.into(),
            Rule::NtAsgd => Optimizer::from(sgd(0.0, false)).average(Average::Triggered { interval: 5 }),
        };
        if let Some(rate) = self.weight_decay {
            let decoupled = matches!(self.optimizer, Rule::Adamw | Rule::Lion);
            optimizer.weight_decay = WeightDecay { rate, decoupled, exclude: Vec::new() };
        }
        if let Some(momentum) = self.average {
            optimizer.average = Some(Average::Exponential { momentum });
        }
        optimizer.clipping = (self.clip != 0.0).then_some(Clipping::GlobalNorm(self.clip));
        let steps = (batches / self.accumulate.max(1)).max(2);
        let mut parts = Vec::new();
        match self.schedule {
            Course::Constant => {}
            Course::Linear => parts.push(Schedule::Linear { steps, least: 0.0 }),
            Course::Cosine => parts.push(Schedule::Cosine { steps, least: 0.0 }),
            Course::OneCycle => {
                parts.push(Schedule::OneCycle { steps: steps.max(7), rise: 0.3, first: 0.04, last: 4e-6 })
            }
            Course::Plateau => {
                optimizer.plateau = Some(Plateau { factor: 0.25, patience: 0, ..Plateau::default() });
            }
        }
        if self.warmup > 0 {
            parts.push(Schedule::Warmup { steps: self.warmup, from: 0.0 });
        }
        if self.decay != 1.0 {
            parts.push(Schedule::PerEpoch(Box::new(Schedule::Step { every: 1, factor: self.decay })));
        }
        optimizer.schedule = match parts.len() {
            0 => Schedule::Constant,
            1 => parts.remove(0),
            _ => Schedule::Product(parts),
        };
        optimizer.accumulate(self.accumulate)
    }
}
