//! Named parameters: host tensors, how they are laid out, how they begin, and the random numbers they begin with.

pub mod initializer;
pub mod random;
pub mod tensor;

pub use initializer::Initializer;
pub use tensor::{DType, Tensor};

use crate::config::{Bias, GATES};
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
}

/// The number of values in `shape`, or an error that names it where the host cannot hold so many of four bytes. It only
/// asks: what would abort the process later is refused here, where it can be reported.
pub fn admit(name: &str, shape: &[usize]) -> Result<usize> {
    let values = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    let held = values.filter(|&n| Vec::<f32>::new().try_reserve_exact(n).is_ok());
    held.ok_or_else(|| {
        Error::device(format!("memory: `{name}` of {shape:?} values of 4 bytes does not fit the host's"))
    })
}

/// The parameters of one LSTM layer in PyTorch's names and order:
/// `weight_ih [4H, I]`, `weight_hh [4H, H]`, `bias_ih [4H]`, `bias_hh [4H]`, gate blocks i f g o.
pub fn lstm_parameters(input: usize, hidden: usize, bias: Bias) -> Vec<(&'static str, Vec<usize>)> {
    let mut all = vec![("weight_ih", vec![GATES * hidden, input]), ("weight_hh", vec![GATES * hidden, hidden])];
    if bias != Bias::None {
        all.push(("bias_ih", vec![GATES * hidden]));
    }
    if bias == Bias::Two {
        all.push(("bias_hh", vec![GATES * hidden]));
    }
    all
}
