//! Dense host tensors, the currency at the edge of every executor.

use super::mapping::Mapping;
use crate::error::{Error, Result};
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use std::sync::Arc;

/// Element types of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 32-bit unsigned: tokens, classes, row numbers.
    U32,
}

/// A dense row-major tensor on the host: in memory, or in a file that is mapped there, which is read where it is used.
#[derive(Debug, Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

#[derive(Debug, Clone)]
enum Data {
    F32(Vec<f32>),
    U32(Vec<u32>),
    /// Floats from this byte of a file on.
    Mapped(Arc<Mapping>, usize),
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.data, &other.data) {
            (Data::U32(a), Data::U32(b)) => a == b,
            (Data::U32(_), _) | (_, Data::U32(_)) => false,
            // What cannot be read equals nothing.
            _ => matches!((self.f32s(), other.f32s()), (Ok(a), Ok(b)) if a == b),
        };
        self.shape == other.shape && same
    }
}

fn check(shape: &[usize], len: usize) -> Result<()> {
    let wanted = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if wanted != Some(len) {
        return Err(Error::shape(format!("tensor: shape {shape:?} does not hold {len} values")));
    }
    Ok(())
}

impl Tensor {
    /// A float tensor; `data` is row-major.
    pub fn new(shape: &[usize], data: Vec<f32>) -> Result<Self> {
        check(shape, data.len())?;
        Ok(Self { shape: shape.to_vec(), data: Data::F32(data) })
    }

    /// An unsigned tensor; `data` is row-major.
    pub fn from_u32(shape: &[usize], data: Vec<u32>) -> Result<Self> {
        check(shape, data.len())?;
        Ok(Self { shape: shape.to_vec(), data: Data::U32(data) })
    }

    /// The floats of `file` from byte `first` on, which stay there.
    pub(crate) fn mapped(shape: &[usize], file: Arc<Mapping>, first: usize) -> Result<Self> {
        file.floats(first, shape.iter().product())?;
        Ok(Self { shape: shape.to_vec(), data: Data::Mapped(file, first) })
    }

    /// The file that holds its floats, and from which byte on, where it is not in memory.
    pub(crate) fn file(&self) -> Option<(&Arc<Mapping>, usize)> {
        match &self.data {
            Data::Mapped(file, first) => Some((file, *first)),
            Data::F32(_) | Data::U32(_) => None,
        }
    }

    /// A float tensor of zeros.
    pub fn zeros(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), data: Data::F32(vec![0.0; shape.iter().product()]) }
    }

    /// One float, of shape `[1]`.
    pub fn scalar(value: f32) -> Self {
        Self { shape: vec![1], data: Data::F32(vec![value]) }
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) | Data::Mapped(..) => DType::F32,
            Data::U32(_) => DType::U32,
        }
    }

    /// The floats, or an error for an unsigned tensor, or where the file that holds them is not what it was.
    pub fn f32s(&self) -> Result<&[f32]> {
        match &self.data {
            Data::F32(v) => Ok(v),
            Data::Mapped(file, first) => file.floats(*first, self.len()),
            Data::U32(_) => Err(Error::shape("tensor: expected 32-bit floats, got unsigned integers")),
        }
    }

    /// The floats, to change: those in memory.
    #[cfg(feature = "gpu")]
    pub(crate) fn f32s_mut(&mut self) -> Result<&mut [f32]> {
        match &mut self.data {
            Data::F32(v) => Ok(v),
            Data::Mapped(..) => Err(Error::internal("tensor: floats in a file do not change")),
            Data::U32(_) => Err(Error::shape("tensor: expected 32-bit floats, got unsigned integers")),
        }
    }

    /// The unsigned integers, or an error for a float tensor.
    pub fn u32s(&self) -> Result<&[u32]> {
        match &self.data {
            Data::U32(v) => Ok(v),
            Data::F32(_) | Data::Mapped(..) => {
                Err(Error::shape("tensor: expected unsigned integers, got 32-bit floats"))
            }
        }
    }

    /// The floats, taken out.
    pub fn into_f32s(self) -> Result<Vec<f32>> {
        match self.data {
            Data::F32(v) => Ok(v),
            Data::Mapped(..) => Ok(self.f32s()?.to_vec()),
            Data::U32(_) => Err(Error::shape("tensor: expected 32-bit floats, got unsigned integers")),
        }
    }

    /// The same values under another shape with as many elements.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        check(shape, self.len())?;
        self.shape = shape.to_vec();
        Ok(self)
    }

    /// The values as an ndarray.
    pub fn to_array(&self) -> Result<ArrayD<f32>> {
        ArrayD::from_shape_vec(IxDyn(&self.shape), self.f32s()?.to_vec())
            .map_err(|e| Error::internal(format!("tensor: {e}")))
    }

    /// A tensor with the values of an array of any memory order.
    pub fn from_array(array: ArrayViewD<'_, f32>) -> Self {
        Self { shape: array.shape().to_vec(), data: Data::F32(array.iter().copied().collect()) }
    }
}
