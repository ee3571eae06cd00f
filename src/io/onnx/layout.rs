//! How the axes of a tensor of ONNX lie over what a network has: sequences, steps, and the features of a row.

use super::int::{Int, Symbol};
use crate::error::{Error, Result};
use crate::nn::Port;
use std::collections::{BTreeMap, VecDeque};

/// What an axis, or a factor of one, runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atom {
    /// Sequences.
    Batch,
    /// Sequences by the lengths of this input, the longest first. Nothing that is given or comes out is in such an order.
    Sorted(u8),
    /// The steps of a time axis.
    Steps(u8),
    /// Some of a row's features: `size` of them, `stride` apart.
    Features {
        /// How many.
        size: usize,
        /// From one to the next.
        stride: usize,
    },
}

impl Atom {
    /// Whether it runs over sequences, in whichever order.
    pub(super) fn is_sequences(self) -> bool {
        matches!(self, Self::Batch | Self::Sorted(_))
    }
}

/// An axis: its factors, outermost first; none where its size is 1.
pub(super) type Axis = Vec<Atom>;

/// What the values stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Bool,
    /// Truths as whole numbers.
    Whole,
    /// Tokens of an input.
    Tokens,
    /// The lengths of sequences, an input.
    Lengths,
}

/// A value of the network, seen as a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lifted {
    pub port: Port,
    pub kind: Kind,
    /// Its time axis, where it has a row for each step.
    pub axis: Option<u8>,
    /// Values a row.
    pub features: usize,
    pub dims: Vec<Axis>,
}

impl Lifted {
    /// Whether an axis runs over all features, in the order in which a row has them.
    pub fn is_features(&self, axis: &Axis) -> bool {
        match axis[..] {
            [] => self.features == 1,
            [Atom::Features { size, stride: 1 }] => size == self.features,
            _ => false,
        }
    }

    pub fn has(&self, atom: Atom) -> bool {
        self.dims.iter().flatten().any(|a| *a == atom)
    }

    /// The same values under other axes.
    pub fn with_dims(&self, dims: Vec<Axis>) -> Self {
        Self { dims: dims.into_iter().map(joined).collect(), ..self.clone() }
    }

    /// All factors in the order of the tensor.
    pub fn atoms(&self) -> Vec<Atom> {
        self.dims.iter().flatten().copied().collect()
    }
}

/// An axis with features beside each other as one factor.
pub(super) fn joined(axis: Axis) -> Axis {
    let mut all: Axis = Vec::with_capacity(axis.len());
    for atom in axis {
        match (all.last_mut(), atom) {
            (_, Atom::Features { size: 1, .. }) => {}
            (Some(Atom::Features { size, stride }), Atom::Features { size: inner, stride: by })
                if *stride == by * inner =>
            {
                (*size, *stride) = (*size * inner, by);
            }
            _ => all.push(atom),
        }
    }
    all
}

/// The sizes that a run, or the file, tells.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    pub batch: Int,
    pub steps: BTreeMap<u8, Int>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { batch: Symbol::Batch.into(), steps: BTreeMap::new() }
    }
}

impl Sizes {
    pub fn atom(&self, atom: Atom) -> Int {
        match atom {
            Atom::Batch | Atom::Sorted(_) => self.batch.clone(),
            Atom::Steps(axis) => self.steps.get(&axis).cloned().unwrap_or_else(|| Symbol::Steps(axis).into()),
            Atom::Features { size, .. } => Int::Known(size as i64),
        }
    }

    pub fn axis(&self, axis: &Axis) -> Result<Int> {
        let product = axis.iter().try_fold(Int::ONE, |n, &atom| n.mul(&self.atom(atom)));
        product.ok_or_else(|| Error::unsupported("a size that is too involved"))
    }

    pub fn of(&self, value: &Lifted) -> Result<Vec<Int>> {
        value.dims.iter().map(|axis| self.axis(axis)).collect()
    }

    /// A factor as an axis; none where its size is 1.
    pub fn as_axis(&self, atom: Atom) -> Axis {
        if self.atom(atom) == Int::ONE { Vec::new() } else { vec![atom] }
    }

    /// Whether an axis runs over all sequences, in whichever order.
    pub fn are_sequences(&self, axis: &Axis) -> bool {
        *axis == self.as_axis(Atom::Batch) || matches!(axis[..], [Atom::Sorted(_)])
    }

    /// The same factors under axes of other sizes; `None` is what is left.
    pub fn regroup(&self, atoms: Vec<Atom>, target: &[Option<Int>]) -> Result<Vec<Axis>> {
        let open = target.iter().position(Option::is_none).unwrap_or(target.len());
        let mut left = VecDeque::from(atoms);
        let mut front = Vec::new();
        for size in target[..open].iter().flatten() {
            front.push(self.split(&mut left, size, true)?);
        }
        let mut back = Vec::new();
        for size in target[open..].iter().skip(1).rev() {
            let size = size.as_ref().ok_or_else(|| Error::shape("a shape with more than one open size"))?;
            let mut axis = self.split(&mut left, size, false)?;
            axis.reverse();
            back.push(axis);
        }
        if open < target.len() {
            front.push(left.drain(..).collect());
        } else if !left.is_empty() {
            return Err(Error::shape("there are more values than the shape has room for"));
        }
        front.extend(back.into_iter().rev());
        Ok(front)
    }

    /// Takes factors of `size` off one end, the outermost of them first at the front and last at the back.
    fn split(&self, left: &mut VecDeque<Atom>, size: &Int, front: bool) -> Result<Axis> {
        let (mut axis, mut reached) = (Axis::new(), Int::ONE);
        let misfit = || Error::unsupported(format!("an axis of {size} that is no product of the sizes there are"));
        while reached != *size {
            let atom = if front { left.pop_front() } else { left.pop_back() }.ok_or_else(misfit)?;
            let whole = reached.mul(&self.atom(atom)).ok_or_else(misfit)?;
            let fits = match (whole.known(), size.known()) {
                (Some(whole), Some(size)) => whole != 0 && size % whole == 0,
                _ => true,
            };
            if fits {
                (reached, axis) = (whole, [axis, vec![atom]].concat());
                continue;
            }
            // A part of the features is enough.
            let part = size.div(&reached).and_then(|p| usize::try_from(p.known()?).ok()).ok_or_else(misfit)?;
            let Atom::Features { size: features, stride } = atom else { return Err(misfit()) };
            if part == 0
                || !features.is_multiple_of(part)
                || reached.mul(&Int::Known(part as i64)) != Some(size.clone())
            {
                return Err(misfit());
            }
            let rest = features / part;
            let (outer, inner) = if front { (part, rest) } else { (rest, part) };
            let (outer, inner) =
                (Atom::Features { size: outer, stride: stride * inner }, Atom::Features { size: inner, stride });
            if front {
                left.push_front(inner);
                axis.push(outer);
            } else {
                left.push_back(outer);
                axis.push(inner);
            }
            reached = size.clone();
        }
        Ok(axis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_split_and_join() {
        let sizes = Sizes::default();
        let atoms = vec![Atom::Batch, Atom::Steps(0), Atom::Features { size: 12, stride: 1 }];
        let b = Int::from(Symbol::Batch);
        let (t, n) = (Int::from(Symbol::Steps(0)), |n| Some(Int::Known(n)));
        let split = sizes.regroup(atoms.clone(), &[Some(b.clone()), None, n(2), n(6)]).unwrap();
        assert_eq!(split[1], [Atom::Steps(0)]);
        assert_eq!(split[2], [Atom::Features { size: 2, stride: 6 }]);
        assert_eq!(split[3], [Atom::Features { size: 6, stride: 1 }]);
        assert_eq!(joined(split[2..].concat()), [Atom::Features { size: 12, stride: 1 }]);
        let merged = sizes.regroup(atoms.clone(), &[Some(b.mul(&t).unwrap()), n(12)]).unwrap();
        assert_eq!(merged[0], [Atom::Batch, Atom::Steps(0)]);
        assert!(sizes.regroup(atoms.clone(), &[Some(b.clone()), n(5), None]).is_err());
        assert!(sizes.regroup(atoms, &[Some(b), Some(t)]).is_err());
    }
}
