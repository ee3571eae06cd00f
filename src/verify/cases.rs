//! Conformance cases: `cases.json`, and the tensors of each case in a safetensors file.

use super::Tensors;
use crate::config::{Bias, Direction, LstmConfig};
use crate::error::{Error, Result};
use crate::params::lstm_parameters;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::path::Path;

/// One LSTM with its sizes and tolerances. Keys that are not known are passed over.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The file of its tensors, in the folder of `cases.json`.
    #[serde(default)]
    pub file: String,
    /// I
    pub input_size: usize,
    /// H
    pub hidden_size: usize,
    /// L
    pub num_layers: usize,
    /// Whether layers have two biases, or none.
    pub bias: bool,
    /// Whether sequence tensors are `[B, T, *]` instead of `[T, B, *]`.
    pub batch_first: bool,
    /// Whether each layer has a second direction.
    pub bidirectional: bool,
    /// R, the size of a projection; 0 for none.
    pub proj_size: usize,
    /// B
    pub batch: usize,
    /// T
    pub time: usize,
    /// Whether `in.h0` and `in.c0` are given; else states start at zero.
    pub has_initial_state: bool,
    /// The true length of each sequence, each at most T.
    pub lengths: Option<Vec<usize>>,
    /// The largest error allowed for `out.*`.
    pub tol_forward: f64,
    /// The largest error allowed for `grad.*`.
    pub tol_grad: f64,
}

/// The cases of a folder with their names; a case that cannot be read is an error of its own.
pub fn list(folder: &Path) -> Result<Vec<(String, Result<Case>)>> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<serde_json::Value>,
    }
    let path = folder.join("cases.json");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
    let file: File = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
    if file.cases.is_empty() {
        return Err(Error::file(&path, "expected at least one case, got none"));
    }
    let read = |(at, value): (usize, serde_json::Value)| {
        let name = value["name"].as_str().map_or_else(|| format!("case {at}"), str::to_string);
        let case = serde_json::from_value(value).map_err(|e| Error::file(&path, format!("{name}: {e}")));
        (name, case)
    };
    Ok(file.cases.into_iter().enumerate().map(read).collect())
}

type Shapes = Vec<(String, Vec<usize>)>;

impl Case {
    /// Refuses sizes that mean nothing.
    pub fn supported(&self) -> Result<()> {
        self.config().validate()?;
        if self.batch == 0 || self.time == 0 {
            return Err(Error::shape(format!(
                "case: batch and time must be at least 1, got {} and {}",
                self.batch, self.time
            )));
        }
        match &self.lengths {
            Some(lengths) if lengths.len() != self.batch || lengths.iter().any(|&n| n > self.time) => {
                Err(Error::shape(format!(
                    "case: expected {} lengths of at most {}, got {lengths:?}",
                    self.batch, self.time
                )))
            }
            _ => Ok(()),
        }
    }

    /// The stack of layers.
    pub fn config(&self) -> LstmConfig {
        let bias = if self.bias { Bias::Two } else { Bias::None };
        let direction = if self.bidirectional { Direction::Both } else { Direction::Forward };
        let projection = (self.proj_size != 0).then_some(self.proj_size);
        let config = LstmConfig::new(self.input_size, self.hidden_size).layers(self.num_layers).bias(bias);
        config.direction(direction).projection(projection)
    }

    fn sequence(&self, width: usize) -> Vec<usize> {
        if self.batch_first { vec![self.batch, self.time, width] } else { vec![self.time, self.batch, width] }
    }

    /// `[L·D, B, width]`
    fn state(&self, width: usize) -> Vec<usize> {
        vec![self.num_layers * self.config().direction.count(), self.batch, width]
    }

    fn parameters(&self) -> Shapes {
        let config = self.config();
        let layer = |l: usize| lstm_parameters(&config, l).into_iter().map(|p| (p.name, p.shape));
        (0..self.num_layers).flat_map(layer).collect()
    }

    fn prefixed(prefix: &str, shapes: Shapes) -> Shapes {
        shapes.into_iter().map(|(name, shape)| (format!("{prefix}.{name}"), shape)).collect()
    }

    fn inputs(&self) -> Shapes {
        let mut all = vec![("x".to_string(), self.sequence(self.input_size))];
        if self.has_initial_state {
            let (h, c) = (self.state(self.config().output_size()), self.state(self.hidden_size));
            all.extend([("h0".to_string(), h), ("c0".to_string(), c)]);
        }
        all
    }

    fn outputs(&self) -> Shapes {
        let config = self.config();
        vec![
            ("y".to_string(), self.sequence(config.direction.count() * config.output_size())),
            ("h_n".to_string(), self.state(config.output_size())),
            ("c_n".to_string(), self.state(self.hidden_size)),
        ]
    }

    /// Names and shapes of what a case gives: `in.*`, `param.*`, `up.*`.
    pub fn given(&self) -> Shapes {
        let mut all = Self::prefixed("in", self.inputs());
        all.extend(Self::prefixed("param", self.parameters()));
        all.extend(Self::prefixed("up", self.outputs()));
        all
    }

    /// Names and shapes of what a case expects: `out.*`, `grad.*`.
    pub fn wanted(&self) -> Shapes {
        let mut all = Self::prefixed("out", self.outputs());
        all.extend(Self::prefixed("grad", self.inputs()));
        all.extend(Self::prefixed("grad", self.parameters()));
        all
    }

    /// The tensors given and expected, from the case's file in `folder`, with their shapes checked.
    pub fn load(&self, folder: &Path) -> Result<Tensors<f32>> {
        let path = folder.join(&self.file);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::file(&path, e))?;
        let within = |e: Error| Error::file(&path, e);
        if let Some(lengths) = &self.lengths {
            check_lengths(&file, lengths).map_err(within)?;
        }
        let shapes = self.given().into_iter().chain(self.wanted());
        shapes.map(|(name, shape)| Ok((name.clone(), floats(&file, &name, &shape).map_err(within)?))).collect()
    }
}

fn bytes<'a>(file: &SafeTensors<'a>, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'a [u8]> {
    let tensor = file.tensor(name).map_err(|_| Error::data(format!("tensor `{name}` is missing")))?;
    if tensor.dtype() != dtype || tensor.shape() != shape {
        let (got, sizes) = (tensor.dtype(), tensor.shape());
        return Err(Error::shape(format!("tensor `{name}`: expected {dtype:?} {shape:?}, got {got:?} {sizes:?}")));
    }
    Ok(tensor.data())
}

fn floats(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let (values, _) = bytes(file, name, Dtype::F32, shape)?.as_chunks::<4>();
    Ok(values.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

fn check_lengths(file: &SafeTensors<'_>, lengths: &[usize]) -> Result<()> {
    let (values, _) = bytes(file, "in.lengths", Dtype::I64, &[lengths.len()])?.as_chunks::<8>();
    let stored: Vec<i64> = values.iter().map(|&b| i64::from_le_bytes(b)).collect();
    if stored.iter().zip(lengths).any(|(&a, &b)| usize::try_from(a) != Ok(b)) {
        return Err(Error::data(format!("tensor `in.lengths`: expected {lengths:?} as in cases.json, got {stored:?}")));
    }
    Ok(())
}
