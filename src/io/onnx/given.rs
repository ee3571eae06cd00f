//! The inputs of a graph: what the file says of them, and the ways to read their dimensions.

use super::edges::Role;
use super::host::{Budget, Data, Host};
use super::schema::{self, dtype};
use crate::error::{Error, Result};
use crate::nn::Input;
use crate::params::{DType, Tensor};
use std::collections::{BTreeMap, HashMap};

/// A size of an input.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Size {
    Known(usize),
    /// Of one size wherever it has this name.
    Named(String),
    Any,
}

impl Size {
    pub fn known(&self) -> Option<usize> {
        if let Self::Known(n) = self { Some(*n) } else { None }
    }
}

/// An input of the graph.
pub(super) struct Given {
    pub name: String,
    pub float: bool,
    /// Whether it says how long sequences are.
    pub lengths: bool,
    pub sizes: Vec<Size>,
}

/// An input of the file; `lengths` if it says how long sequences are.
pub(super) fn input(info: &schema::ValueInfo, lengths: bool) -> Result<Given> {
    let kind = info.kind.as_ref().and_then(|k| k.tensor.as_ref());
    let kind = kind.ok_or_else(|| Error::unsupported("an input that is no tensor"))?;
    let float = match kind.elem_type {
        dtype::FLOAT | dtype::DOUBLE | dtype::FLOAT16 | dtype::BFLOAT16 => true,
        dtype::INT32
        | dtype::INT64
        | dtype::UINT32
        | dtype::UINT64
        | dtype::INT16
        | dtype::INT8
        | dtype::UINT8
        | dtype::UINT16 => false,
        other => return Err(Error::unsupported(format!("an input of type {other}"))),
    };
    let shape = kind.shape.as_ref().ok_or_else(|| Error::unsupported("an input of any number of dimensions"))?;
    let sizes = shape.dim.iter().map(|dim| match (dim.value, dim.param.as_deref()) {
        (Some(n), _) if n > 0 => Size::Known(usize::try_from(n).unwrap_or(usize::MAX)),
        (_, Some(name)) if !name.is_empty() => Size::Named(name.to_string()),
        _ => Size::Any,
    });
    let sizes: Vec<Size> = sizes.collect();
    if lengths && (float || sizes.len() != 1) {
        return Err(Error::shape("lengths of sequences that are not one dimension of integers"));
    }
    Ok(Given { name: info.name.clone(), float, lengths, sizes })
}

/// The values of a weight that a run gives.
pub(super) fn weight(input: &Given, given: Option<&BTreeMap<String, Tensor>>, budget: &Budget) -> Result<Host> {
    let shape = input.sizes.iter().map(Size::known).collect::<Option<Vec<usize>>>();
    match (given.and_then(|g| g.get(&input.name)), shape) {
        (Some(tensor), shape) => {
            if let Some(shape) = shape.filter(|s| s != tensor.shape()) {
                return Err(Error::shape(format!("expected {shape:?}, got {:?}", tensor.shape())));
            }
            Host::new(tensor.shape().to_vec(), Data::Float(tensor.f32s()?.to_vec()))
        }
        (None, _) if given.is_some() => Err(Error::argument("expected its values among the inputs, there are none")),
        (None, Some(shape)) => {
            let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n)).unwrap_or(usize::MAX);
            budget.spend(len)?;
            Host::new(shape, Data::Float(vec![0.0; len]))
        }
        (None, None) => Err(Error::unsupported("a weight whose sizes only a run tells")),
    }
}

/// An input with the sizes of a run.
pub(super) fn bind(input: &Given, given: &BTreeMap<String, Tensor>) -> Option<Given> {
    let tensor = given.get(&input.name)?;
    let fits = tensor.shape().len() == input.sizes.len()
        && input.sizes.iter().zip(tensor.shape()).all(|(s, &n)| !matches!(s, Size::Known(m) if *m != n));
    let sizes = tensor.shape().iter().map(|&n| Size::Known(n)).collect();
    (fits && (tensor.dtype() == DType::F32) == input.float).then(|| Given { name: input.name.clone(), sizes, ..*input })
}

/// The ways to read the dimensions of an input.
pub(super) fn ways(input: &Given) -> Vec<Vec<Role>> {
    use Role::{Batch as B, Features as F, Steps as T};
    let all: Vec<Vec<Role>> = match (input.float, input.sizes.len()) {
        _ if input.lengths => vec![vec![B]],
        (false, 1) => vec![vec![T], vec![B]],
        (false, 2) => vec![vec![B, T], vec![T, B]],
        (true, 1) => vec![vec![F], vec![B], vec![T]],
        (true, 2) => vec![vec![B, F], vec![B, T], vec![T, B], vec![T, F], vec![F, B], vec![F, T]],
        (true, 3) => {
            let all = [[B, T, F], [T, B, F], [F, B, F], [B, F, F], [B, F, T], [T, F, F]];
            all.into_iter().map(|way| way.to_vec()).collect()
        }
        (true, 4) => {
            let all = [[B, T, F, F], [T, B, F, F], [F, F, B, F], [B, F, F, F]];
            all.into_iter().map(|way| way.to_vec()).collect()
        }
        _ => Vec::new(),
    };
    let known =
        |way: &Vec<Role>| way.iter().zip(&input.sizes).all(|(role, size)| *role != F || matches!(size, Size::Known(_)));
    all.into_iter().filter(known).collect()
}

/// How many steps an input has, where that is known; tokens without steps are one.
pub(super) fn steps(given: &Given, roles: &[Role], input: Input) -> Option<usize> {
    match (roles.iter().position(|r| *r == Role::Steps), input) {
        (Some(dim), _) => given.sizes[dim].known(),
        (None, Input::Tokens) => Some(1),
        (None, _) => None,
    }
}

/// How many inputs, from the first, go together: dimensions of one size, or name, are the same wherever they are
/// sequences.
pub(super) fn agreeing(inputs: &[Given], roles: &[&Vec<Role>]) -> usize {
    let (mut names, mut batch): (HashMap<&str, Role>, Option<usize>) = (HashMap::new(), None);
    for (at, (given, roles)) in inputs.iter().zip(roles).enumerate() {
        if !roles.contains(&Role::Batch) && batch.replace(1).is_some_and(|n| n != 1) {
            return at;
        }
        for (size, &role) in given.sizes.iter().zip(*roles) {
            match size {
                Size::Named(name) if names.insert(name, role).is_some_and(|other| other != role) => return at,
                Size::Known(n) if role == Role::Batch && batch.replace(*n).is_some_and(|m| m != *n) => return at,
                Size::Known(0) => return at,
                _ => {}
            }
        }
    }
    inputs.len()
}
