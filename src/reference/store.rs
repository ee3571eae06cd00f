//! What outlives a run: named storage as it is declared, packed.

use super::Real;
use crate::error::{Error, Result};
use crate::params::{DType, Tensor};

/// A persistent value with its declared shape.
#[derive(Debug, Clone)]
pub(super) struct Stored<R> {
    pub shape: Vec<usize>,
    pub data: Data<R>,
}

/// Values in a session's order, row-major.
#[derive(Debug, Clone)]
pub(super) enum Data<R> {
    Float(Vec<R>),
    Index(Vec<u32>),
}

impl<R: Real> Data<R> {
    pub fn zeros(len: usize, dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::Float(vec![R::zero(); len]),
            DType::U32 => Self::Index(vec![0; len]),
        }
    }

    pub fn of(tensor: &Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::F32 => Self::Float(tensor.f32s()?.iter().map(|&x| super::real(x)).collect()),
            DType::U32 => Self::Index(tensor.u32s()?.to_vec()),
        })
    }

    pub fn tensor(&self, shape: &[usize]) -> Result<Tensor> {
        match self {
            Self::Float(x) => Tensor::new(shape, x.iter().map(|x| x.to_double() as f32).collect()),
            Self::Index(x) => Tensor::from_u32(shape, x.clone()),
        }
    }

    pub fn exact(&self) -> Vec<f64> {
        match self {
            Self::Float(x) => x.iter().map(|x| x.to_double()).collect(),
            Self::Index(x) => x.iter().map(|&x| f64::from(x)).collect(),
        }
    }

    pub fn dtype(&self) -> DType {
        match self {
            Self::Float(_) => DType::F32,
            Self::Index(_) => DType::U32,
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Float(x) => x.len(),
            Self::Index(x) => x.len(),
        }
    }

    /// The first `len` values.
    pub fn leading(&self, len: usize) -> Result<Self> {
        let missing = || Error::shape(format!("the storage holds {} values, {len} are needed", self.len()));
        Ok(match self {
            Self::Float(x) => Self::Float(x.get(..len).ok_or_else(missing)?.to_vec()),
            Self::Index(x) => Self::Index(x.get(..len).ok_or_else(missing)?.to_vec()),
        })
    }

    /// Overwrites the first values by all of `values`.
    pub fn overwrite(&mut self, values: &Self) -> Result<()> {
        let (have, come) = (self.len(), values.len());
        if come > have {
            return Err(Error::shape(format!("the storage holds {have} values, {come} came")));
        }
        match (self, values) {
            (Self::Float(to), Self::Float(from)) => to[..come].copy_from_slice(from),
            (Self::Index(to), Self::Index(from)) => to[..come].copy_from_slice(from),
            (to, from) => {
                return Err(Error::shape(format!("expected values of {:?}, got {:?}", to.dtype(), from.dtype())));
            }
        }
        Ok(())
    }
}
