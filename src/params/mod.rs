//! Named parameters: host tensors, how they are laid out, how they begin, and the random numbers they begin with.

pub mod initializer;
pub(crate) mod mapping;
pub mod random;
pub mod rules;
pub mod tensor;

pub use initializer::Initializer;
pub use rules::{Constraint, Regularizer, Rules};
pub use tensor::{DType, Tensor};

use crate::config::{Bias, GATES, LstmConfig, PEEPHOLES};
use crate::error::{Error, Result};

/// A parameter that a model declares: what it is called, its shape, and how it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec {
    /// `<layer>.<PyTorch name>`, for example `lstm.weight_ih_l0`.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// How it begins.
    pub initializer: Initializer,
    /// What it adds to the loss.
    pub regularizer: Option<Regularizer>,
    /// Where an update must leave it.
    pub constraint: Option<Constraint>,
}

/// The number of values in `shape`, or an error that names it where the host cannot hold so many of four bytes. It only
/// asks: what would abort the process later is refused here, where it can be reported.
pub fn admit(name: &str, shape: &[usize]) -> Result<usize> {
    let values = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let held = values.filter(|&n| Vec::<f32>::new().try_reserve_exact(n).is_ok());
    held.ok_or_else(|| {
        Error::memory(format!("memory: `{name}` of {shape:?} values of 4 bytes does not fit the host's"))
    })
}

/// A number that tells sequences of words apart (Fowler, Noll and Vo's FNV-1a).
pub fn fingerprint(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3))
}

/// A parameter of one direction of one LSTM layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LstmParameter {
    /// PyTorch's name where PyTorch has it: `weight_ih_l0`, `bias_hh_l1_reverse`.
    pub name: String,
    /// The name without layer and direction.
    pub role: &'static str,
    /// The direction, 0 or 1.
    pub direction: usize,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

/// The parameters of layer `layer`, direction by direction, in PyTorch's order: `weight_ih [4H, I]`, `weight_hh [4H, R]`,
/// `bias_ih [4H]`, `bias_hh [4H]`, `weight_hr [R, H]`; then what PyTorch has not: `peepholes [3H]`, and for layer
/// normalisation `norm_ih [4H]`, `norm_hh [4H]`, `norm_gain [H]`, `norm_bias [H]`. Gate blocks are in the order i f g o.
pub fn lstm_parameters(config: &LstmConfig, layer: usize) -> Vec<LstmParameter> {
    let (hidden, r) = (config.hidden_size, config.output_size());
    let four_h = GATES * hidden;
    let mut roles = vec![("weight_ih", vec![four_h, config.layer_input(layer)]), ("weight_hh", vec![four_h, r])];
    if config.bias != Bias::None {
        roles.push(("bias_ih", vec![four_h]));
    }
    if config.bias == Bias::Two {
        roles.push(("bias_hh", vec![four_h]));
    }
    if config.projection.is_some() {
        roles.push(("weight_hr", vec![r, hidden]));
    }
    if config.cell.peepholes {
        roles.push(("peepholes", vec![PEEPHOLES * hidden]));
    }
    if config.cell.layer_norm.is_some() {
        roles.extend([("norm_ih", vec![four_h]), ("norm_hh", vec![four_h])]);
        roles.extend([("norm_gain", vec![hidden]), ("norm_bias", vec![hidden])]);
    }
    let suffix = |direction: usize| if direction == 1 { "_reverse" } else { "" };
    (0..config.direction.count())
        .flat_map(|direction| {
            roles.clone().into_iter().map(move |(role, shape)| {
                let name = format!("{role}_l{layer}{}", suffix(direction));
                LstmParameter { name, role, direction, shape }
            })
        })
        .collect()
}
