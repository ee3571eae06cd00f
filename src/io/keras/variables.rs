//! Where Keras keeps the parameters of a layer, and in which form.

use super::archive::KerasTensor;
use crate::config::Direction;
use crate::error::{Error, Result};
use crate::graph::Score;

use crate::nn::Layer;
use crate::params::{Tensor, lstm_parameters};

/// How Keras lays out a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As we do.
    Same,
    /// `[.., outputs]` instead of `[outputs, ..]`.
    Kernel,
    /// A number without an axis.
    Scalar,
}

/// A parameter of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variable {
    /// Its place in the group of the layer.
    pub path: String,
    /// Its name here.
    pub parameter: String,
    pub form: Form,
}

/// The parameters of a layer called `name`, in Keras's order. The two biases of an LSTM are one, their sum.
pub(super) fn variables(name: &str, layer: &Layer) -> Vec<Variable> {
    let mut all = Vec::new();
    let mut add = |path: &str, role: &str, form| {
        all.push(Variable { path: path.to_string(), parameter: format!("{name}.{role}"), form });
    };
    let bias = |bias: bool| bias.then_some(("vars/1", "bias"));
    let (kernel, rest) = match layer {
        Layer::Lstm(l) => {
            for p in lstm_parameters(&l.config(1), 0) {
                let cell = match (l.direction, p.direction) {
                    (Direction::Both, 0) => "forward_layer/cell",
                    (Direction::Both, _) => "backward_layer/cell",
                    _ => "cell",
                };
                let (number, form) = match p.role {
                    "weight_ih" => (0, Form::Kernel),
                    "weight_hh" => (1, Form::Kernel),
                    _ => (2, Form::Same),
                };
                add(&format!("{cell}/vars/{number}"), &p.name, form);
            }
            return all;
        }
        Layer::LayerNormalization(l) => {
            let roles = [(l.scale, "weight"), (l.center, "bias")];
            for (number, (_, role)) in roles.iter().filter(|r| r.0).enumerate() {
                add(&format!("vars/{number}"), role, Form::Same);
            }
            return all;
        }
        Layer::Embedding(_) => (Some(("weight", Form::Same)), None),
        Layer::Dense(l) => (Some(("weight", Form::Kernel)), bias(l.bias)),
        Layer::Conv1D(l) => (Some(("weight", Form::Kernel)), bias(l.bias)),
        Layer::Attention(l) if l.scale && l.score == Score::Dot => (Some(("scale", Form::Scalar)), None),
        Layer::Attention(l) if l.scale => (Some(("scale", Form::Same)), None),
        _ => (None, None),
    };
    if let Some((role, form)) = kernel {
        add("vars/0", role, form);
    }
    if let Some((path, role)) = rest {
        add(path, role, Form::Same);
    }
    all
}

impl Form {
    /// A parameter from what Keras keeps.
    pub fn read(self, tensor: &KerasTensor) -> Result<Tensor> {
        match self {
            Self::Same => Tensor::new(&tensor.shape, tensor.data.clone()),
            Self::Scalar => Tensor::new(&[tensor.data.len()], tensor.data.clone()),
            Self::Kernel => {
                let [inner @ .., columns] = &tensor.shape[..] else {
                    return Err(Error::data(format!("keras: expected a kernel, got {:?}", tensor.shape)));
                };
                if tensor.data.is_empty() {
                    return Err(Error::data(format!("keras: expected a kernel with values, got {:?}", tensor.shape)));
                }
                let rows = inner.iter().product::<usize>();
                let shape: Vec<usize> = std::iter::once(*columns).chain(inner.iter().copied()).collect();
                Tensor::new(&shape, transposed(&tensor.data, rows, *columns))
            }
        }
    }

    /// What Keras keeps of a parameter.
    pub fn write(self, tensor: &Tensor) -> Result<KerasTensor> {
        let (shape, data) = (tensor.shape(), tensor.f32s()?);
        Ok(match (self, shape) {
            (Self::Kernel, [outputs, inner @ ..]) => {
                let shape = inner.iter().copied().chain([*outputs]).collect();
                KerasTensor { shape, data: transposed(data, *outputs, inner.iter().product()) }
            }
            (Self::Scalar, [1]) => KerasTensor { shape: Vec::new(), data: data.to_vec() },
            _ => KerasTensor { shape: shape.to_vec(), data: data.to_vec() },
        })
    }
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| data[r * columns + c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_as_they_are_written() {
        let tensor = |shape: &[usize]| Tensor::new(shape, (0..shape.iter().product()).map(|i| i as f32).collect());
        for (form, shape, keras) in [
            (Form::Same, &[3, 2][..], &[3, 2][..]),
            (Form::Kernel, &[3, 2], &[2, 3]),
            (Form::Kernel, &[3, 5, 2], &[5, 2, 3]),
            (Form::Scalar, &[1], &[]),
        ] {
            let tensor = tensor(shape).unwrap();
            let written = form.write(&tensor).unwrap();
            assert_eq!(written.shape, keras);
            assert_eq!(form.read(&written).unwrap(), tensor);
        }
        assert_eq!(Form::Kernel.write(&tensor(&[2, 2]).unwrap()).unwrap().data, [0.0, 2.0, 1.0, 3.0]);
        assert!(Form::Kernel.read(&KerasTensor { shape: Vec::new(), data: vec![1.0] }).is_err());
    }
}
