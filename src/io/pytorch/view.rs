//! Tensors of a pickle as views of their storages.

use super::super::safetensors;
use super::pickle::{Global, Id, Object, Pickle};
use crate::error::{Error, ErrorKind, Result};
use crate::params::Tensor;
use ::safetensors::tensor::{Dtype, TensorView};
use std::borrow::Cow;

/// The most axes of a tensor, as PyTorch has it.
const AXIS_LIMIT: usize = 64;

/// A tensor as values of a storage.
pub(super) struct View<'a> {
    /// The storage's name.
    pub storage: &'a str,
    dtype: Dtype,
    /// How many values the storage has.
    count: usize,
    /// The place of the first value.
    offset: usize,
    shape: Vec<usize>,
    /// For each axis, how far the next value lies from one.
    strides: Vec<usize>,
    /// How many values the tensor has.
    pub len: usize,
}

fn broken(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::File, message)
}

impl<'a> View<'a> {
    /// The tensor or parameter of a pickle; refuses one that reaches out of its storage.
    pub fn of(pickle: &'a Pickle, id: Id) -> Result<Self> {
        let tensor = match pickle.get(id) {
            Object::Parameter(arguments) => pickle.tuple(*arguments).first().copied().unwrap_or(id),
            _ => id,
        };
        let unknown = || broken("expected a tensor of a storage, an offset, sizes and strides");
        let Object::Tensor(arguments) = pickle.get(tensor) else { return Err(unknown()) };
        let &[storage, offset, sizes, strides, ..] = pickle.tuple(*arguments) else { return Err(unknown()) };
        let Object::Storage(place) = pickle.get(storage) else { return Err(unknown()) };
        let &[kind, dtype, key, _, count, ..] = pickle.tuple(*place) else { return Err(unknown()) };
        let (Some("storage"), Object::Global(Global::Storage(dtype))) = (pickle.text(kind), pickle.get(dtype)) else {
            return Err(unknown());
        };
        let list = |id: Id| -> Option<Vec<usize>> {
            let items = pickle.tuple(id);
            (items.len() <= AXIS_LIMIT).then(|| items.iter().map(|&item| pickle.size(item)).collect())?
        };
        let storage = pickle.text(key).ok_or_else(unknown)?;
        let (count, offset) = pickle.size(count).zip(pickle.size(offset)).ok_or_else(unknown)?;
        let (shape, strides) = list(sizes).zip(list(strides)).ok_or_else(unknown)?;
        if shape.len() != strides.len() {
            return Err(unknown());
        }
        let len = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let mut last = Some(offset);
        for (&size, &stride) in shape.iter().zip(&strides) {
            last = size.saturating_sub(1).checked_mul(stride).zip(last).and_then(|(a, b)| a.checked_add(b));
        }
        match (len, last) {
            (Some(len), Some(last)) if len == 0 || last < count => {
                Ok(Self { storage, dtype: *dtype, count, offset, shape, strides, len })
            }
            _ => Err(broken(format!(
                "shape {shape:?} with strides {strides:?} from {offset} reaches out of a storage of {count} values"
            ))),
        }
    }

    /// Whether its values lie in the storage as in the tensor.
    fn is_row_major(&self) -> bool {
        let mut step = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == step;
            step *= size;
            fits
        })
    }

    /// The place in the storage of a value of the tensor, by number.
    fn place(&self, mut number: usize) -> usize {
        self.shape.iter().zip(&self.strides).rev().fold(self.offset, |at, (&size, &stride)| {
            let index = number % size;
            number /= size;
            at + index * stride
        })
    }

    /// The tensor, from the bytes of its storage.
    pub fn read(&self, storage: &[u8]) -> Result<Tensor> {
        let width = self.dtype.bitsize() / 8;
        if self.count.checked_mul(width) != Some(storage.len()) {
            let got = storage.len();
            return Err(broken(format!(
                "expected a storage of {} values of {width} bytes, got {got} bytes",
                self.count
            )));
        }
        let values = |at: usize, len: usize| storage.get(at * width..(at + len) * width).unwrap_or_default();
        let bytes: Cow<'_, [u8]> = match self.len {
            0 => Cow::default(),
            len if self.is_row_major() => values(self.offset, len).into(),
            len => (0..len).flat_map(|number| values(self.place(number), 1)).copied().collect(),
        };
        let view = TensorView::new(self.dtype, self.shape.clone(), &bytes)
            .map_err(|e| Error::internal(format!("cannot take {} bytes for a tensor: {e}", bytes.len())))?;
        safetensors::tensor(&view)
    }
}
