//! Symbolic sizes: known numbers, and names that a batch or an importer binds.

use std::borrow::Cow;
use std::fmt;

/// A size that is known only when a program runs or is compiled.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Symbol {
    /// T, timesteps of a time axis. Most models have one axis, number 0.
    Time(u8),
    /// N, packed rows of a time axis: all timesteps of all sequences.
    Rows(u8),
    /// B, sequences in the batch.
    Batch,
    /// A size that an importer names; bound when a program is compiled.
    Named(Cow<'static, str>),
}

/// One size of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A name.
    Symbol(Symbol),
}

/// N of the first time axis.
pub const N: Dim = Dim::Symbol(Symbol::Rows(0));
/// T of the first time axis.
pub const T: Dim = Dim::Symbol(Symbol::Time(0));
/// B.
pub const B: Dim = Dim::Symbol(Symbol::Batch);

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::Fixed(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (letter, axis) = match self {
            Self::Fixed(n) => return write!(f, "{n}"),
            Self::Symbol(Symbol::Named(name)) => return write!(f, "{name}"),
            Self::Symbol(Symbol::Batch) => return write!(f, "B"),
            Self::Symbol(Symbol::Time(axis)) => ('T', axis),
            Self::Symbol(Symbol::Rows(axis)) => ('N', axis),
        };
        if *axis == 0 { write!(f, "{letter}") } else { write!(f, "{letter}{axis}") }
    }
}

/// Sizes, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The innermost size if it is a number, and 1 for a rank below 2 whose only size is symbolic.
    pub fn columns(&self) -> Option<usize> {
        match self.0.last() {
            Some(Dim::Fixed(n)) => Some(*n),
            _ => None,
        }
    }

    /// The outermost size.
    pub fn rows(&self) -> Option<&Dim> {
        self.0.first()
    }

    /// Whether it is `[1]`.
    pub fn is_scalar(&self) -> bool {
        self.0 == [Dim::Fixed(1)]
    }

    /// The number of values, if all sizes are numbers.
    pub fn fixed_len(&self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |n, d| match d {
            Dim::Fixed(m) => n.checked_mul(*m),
            Dim::Symbol(_) => None,
        })
    }

    /// The product of all sizes but the outermost, if they are numbers: values in one row.
    pub fn row_len(&self) -> Option<usize> {
        Shape(self.0.iter().skip(1).cloned().collect()).fixed_len()
    }

    /// The time axis if the outermost size is N.
    pub fn axis(&self) -> Option<u8> {
        match self.rows() {
            Some(Dim::Symbol(Symbol::Rows(axis))) => Some(*axis),
            _ => None,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, "]")
    }
}

impl<const K: usize> From<[Dim; K]> for Shape {
    fn from(dims: [Dim; K]) -> Self {
        Self(dims.to_vec())
    }
}

impl From<Vec<Dim>> for Shape {
    fn from(dims: Vec<Dim>) -> Self {
        Self(dims)
    }
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Self {
        Self(sizes.iter().map(|&n| Dim::Fixed(n)).collect())
    }
}

impl From<&Vec<usize>> for Shape {
    fn from(sizes: &Vec<usize>) -> Self {
        sizes.as_slice().into()
    }
}

impl<const K: usize> From<[usize; K]> for Shape {
    fn from(sizes: [usize; K]) -> Self {
        sizes.as_slice().into()
    }
}
