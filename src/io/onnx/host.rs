//! Tensors whose values are known before a run, and the operations that make others of them.

use super::int::Int;
use crate::error::{Error, Result};
use std::cell::Cell;

/// How many values may still be made of a file's own, so that a small file cannot ask for much.
pub(super) struct Budget(Cell<u64>);

/// Values that any file may make.
const ALLOWANCE: u64 = 1 << 18;

impl Budget {
    /// For a file of `bytes`: as many values, which is some four times what it holds of them.
    pub fn new(bytes: u64) -> Self {
        Self(Cell::new(ALLOWANCE + bytes))
    }

    pub fn spend(&self, values: usize) -> Result<()> {
        let left = self.0.get().checked_sub(values as u64);
        self.0.set(left.ok_or_else(|| Error::unsupported("the file makes far more values than it holds"))?);
        Ok(())
    }
}

/// Values of one type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    Float(Vec<f32>),
    Int(Vec<Int>),
    Bool(Vec<bool>),
}

impl Data {
    pub fn len(&self) -> usize {
        match self {
            Self::Float(v) => v.len(),
            Self::Int(v) => v.len(),
            Self::Bool(v) => v.len(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Float(_) => "floats",
            Self::Int(_) => "integers",
            Self::Bool(_) => "truth values",
        }
    }
}

/// A tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Host {
    pub shape: Vec<usize>,
    pub data: Data,
}

fn product(shape: &[usize]) -> Result<usize> {
    let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n));
    len.filter(|&len| len <= isize::MAX as usize / 16)
        .ok_or_else(|| Error::shape(format!("a tensor of shape {shape:?} is too large")))
}

/// Values from one index of an axis to the next, for each axis.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut all = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        all[at - 1] = all[at] * shape[at];
    }
    all
}

/// The axis that `axis`, which may count from the end, is of `rank`.
pub(super) fn axis_of(axis: i64, rank: usize) -> Result<usize> {
    let at = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    at.and_then(|at| usize::try_from(at).ok())
        .filter(|&at| at < rank)
        .ok_or_else(|| Error::shape(format!("axis {axis} of {rank} dimensions")))
}

/// The shape that both spread over, as NumPy has it.
pub(super) fn broadcast_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], at: usize| (at + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    (0..rank)
        .map(|at| match (size(a, at), size(b, at)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::shape(format!("{a:?} and {b:?} do not spread over each other"))),
        })
        .collect()
}

impl Host {
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Self> {
        match product(&shape)? == data.len() {
            true => Ok(Self { shape, data }),
            false => Err(Error::shape(format!("expected values of shape {shape:?}, got {}", data.len()))),
        }
    }

    pub fn ints(values: Vec<Int>) -> Self {
        Self { shape: vec![values.len()], data: Data::Int(values) }
    }

    pub fn floats(&self) -> Result<&[f32]> {
        match &self.data {
            Data::Float(values) => Ok(values),
            other => Err(Error::unsupported(format!("expected floats, got {}", other.kind()))),
        }
    }

    /// Whole numbers, which may depend on sizes.
    pub fn whole(&self) -> Result<&[Int]> {
        match &self.data {
            Data::Int(values) => Ok(values),
            other => Err(Error::unsupported(format!("expected integers, got {}", other.kind()))),
        }
    }

    /// Whole numbers that are known.
    pub fn numbers(&self) -> Result<Vec<i64>> {
        let known = |n: &Int| {
            n.known().ok_or_else(|| Error::unsupported(format!("it depends on a size that only a run tells, {n}")))
        };
        self.whole()?.iter().map(known).collect()
    }

    /// Its only value as a float.
    pub fn scalar(&self) -> Option<f32> {
        match &self.data {
            Data::Float(v) if v.len() == 1 => Some(v[0]),
            Data::Int(v) if v.len() == 1 => v[0].known().map(|n| n as f32),
            Data::Bool(v) if v.len() == 1 => Some(f32::from(v[0])),
            _ => None,
        }
    }

    /// As floats, whatever it is.
    pub fn as_floats(&self) -> Result<Vec<f32>> {
        Ok(match &self.data {
            Data::Float(v) => v.clone(),
            Data::Int(_) => self.numbers()?.into_iter().map(|n| n as f32).collect(),
            Data::Bool(v) => v.iter().map(|&b| f32::from(b)).collect(),
        })
    }

    /// The values at these places, as a tensor of `shape`.
    pub fn pick(&self, budget: &Budget, shape: Vec<usize>, places: impl Iterator<Item = usize>) -> Result<Self> {
        fn all<V: Clone>(values: &[V], places: impl Iterator<Item = usize>, len: usize) -> Result<Vec<V>> {
            let outside = || Error::shape("an index outside of its tensor");
            let mut out = Vec::with_capacity(len);
            for at in places {
                out.push(values.get(at).ok_or_else(outside)?.clone());
            }
            Ok(out)
        }
        let len = product(&shape)?;
        budget.spend(len)?;
        let data = match &self.data {
            Data::Float(v) => Data::Float(all(v, places, len)?),
            Data::Int(v) => Data::Int(all(v, places, len)?),
            Data::Bool(v) => Data::Bool(all(v, places, len)?),
        };
        Self::new(shape, data)
    }

    /// The values at the places that each index of `shape` has by `strides`, from `first` on.
    fn strided(&self, budget: &Budget, shape: Vec<usize>, first: usize, strides: &[isize]) -> Result<Self> {
        let len = product(&shape)?;
        let mut index = vec![0usize; shape.len()];
        let mut at = first as isize;
        let sizes = shape.clone();
        let places = (0..len).map(move |_| {
            let here = at;
            for axis in (0..sizes.len()).rev() {
                index[axis] += 1;
                at += strides[axis];
                if index[axis] < sizes[axis] {
                    break;
                }
                at -= strides[axis] * sizes[axis] as isize;
                index[axis] = 0;
            }
            here as usize
        });
        self.pick(budget, shape, places)
    }

    pub fn reshape(&self, shape: Vec<usize>) -> Result<Self> {
        Self::new(shape, self.data.clone())
    }

    pub fn transpose(&self, budget: &Budget, order: &[usize]) -> Result<Self> {
        let own = strides(&self.shape);
        let shape = order.iter().map(|&at| self.shape[at]).collect();
        let strides: Vec<isize> = order.iter().map(|&at| own[at] as isize).collect();
        self.strided(budget, shape, 0, &strides)
    }

    /// `count` indices of an axis from `first` on, each `step` after the one before.
    pub fn slice(&self, budget: &Budget, axis: usize, (first, count, step): (usize, usize, i64)) -> Result<Self> {
        let own = strides(&self.shape);
        let mut shape = self.shape.clone();
        shape[axis] = count;
        // To one index there is no step.
        let step = if count > 1 { step } else { 1 };
        let mut strides: Vec<isize> = own.iter().map(|&s| s as isize).collect();
        strides[axis] = strides[axis].checked_mul(step as isize).ok_or_else(|| Error::shape("a step out of range"))?;
        self.strided(budget, shape, first * own[axis], &strides)
    }

    /// The indices `which` of an axis, in the shape that they have.
    pub fn take(&self, budget: &Budget, axis: usize, which: &[usize], shape: &[usize]) -> Result<Self> {
        let (outer, inner) = (product(&self.shape[..axis])?, product(&self.shape[axis + 1..])?);
        let size = self.shape[axis];
        let whole = [&self.shape[..axis], shape, &self.shape[axis + 1..]].concat();
        if let Some(&bad) = which.iter().find(|&&at| at >= size) {
            return Err(Error::shape(format!("index {bad} of an axis of {size}")));
        }
        let places = (0..outer)
            .flat_map(|o| which.iter().flat_map(move |&at| (0..inner).map(move |i| (o * size + at) * inner + i)));
        self.pick(budget, whole, places)
    }

    /// Spread over `shape`.
    pub fn expand(&self, budget: &Budget, shape: &[usize]) -> Result<Self> {
        if broadcast_shape(&self.shape, shape)? != shape {
            return Err(Error::shape(format!("{:?} does not spread over {shape:?}", self.shape)));
        }
        let own = strides(&self.shape);
        let before = shape.len() - self.shape.len();
        let strides: Vec<isize> = (0..shape.len())
            .map(|at| match at.checked_sub(before) {
                Some(axis) if self.shape[axis] > 1 => own[axis] as isize,
                _ => 0,
            })
            .collect();
        self.strided(budget, shape.to_vec(), 0, &strides)
    }

    pub fn concat(budget: &Budget, parts: &[&Self], axis: usize) -> Result<Self> {
        let Some(first) = parts.first() else { return Err(Error::shape("expected values side by side, got none")) };
        let mut shape = first.shape.clone();
        shape[axis] = 0;
        for part in parts {
            let alike = part.shape.len() == shape.len()
                && part.shape.iter().zip(&first.shape).enumerate().all(|(at, (a, b))| at == axis || a == b);
            if !alike {
                return Err(Error::shape(format!("{:?} and {:?} do not fit side by side", first.shape, part.shape)));
            }
            shape[axis] += part.shape[axis];
        }
        let (len, outer) = (product(&shape)?, product(&shape[..axis])?);
        budget.spend(len)?;
        macro_rules! join {
            ($kind:ident) => {{
                let mut all = Vec::with_capacity(len);
                for o in 0..outer {
                    for part in parts {
                        let Data::$kind(values) = &part.data else {
                            return Err(Error::shape("values of different types side by side"));
                        };
                        let run = values.len() / outer;
                        all.extend_from_slice(&values[o * run..(o + 1) * run]);
                    }
                }
                Data::$kind(all)
            }};
        }
        let data = match &first.data {
            _ if outer == 0 => first.data.clone(),
            Data::Float(_) => join!(Float),
            Data::Int(_) => join!(Int),
            Data::Bool(_) => join!(Bool),
        };
        Self::new(shape, data)
    }

    /// The product of two matrices.
    pub fn matmul(&self, budget: &Budget, other: &Self) -> Result<Self> {
        let (&[m, k], &[same, n]) = (&self.shape[..], &other.shape[..]) else {
            return Err(Error::unsupported(format!("a product of {:?} and {:?}", self.shape, other.shape)));
        };
        if k != same {
            return Err(Error::shape(format!("a product of {:?} and {:?}", self.shape, other.shape)));
        }
        budget.spend(product(&[m, n, k])?)?;
        let (a, b) = (self.floats()?, other.floats()?);
        let element =
            |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
        let data = (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| element(i, j) as f32).collect();
        Self::new(vec![m, n], Data::Float(data))
    }

    /// Its axes reduced by `kind`; all of them where none is named.
    pub fn reduce(&self, budget: &Budget, kind: &str, axes: &[usize], keep: bool) -> Result<Self> {
        let all: Vec<usize> = if axes.is_empty() { (0..self.shape.len()).collect() } else { axes.to_vec() };
        let kept: Vec<usize> = (0..self.shape.len()).filter(|at| !all.contains(at)).collect();
        let order: Vec<usize> = kept.iter().chain(&all).copied().collect();
        let moved = self.transpose(budget, &order)?;
        let run = product(&all.iter().map(|&at| self.shape[at]).collect::<Vec<_>>())?;
        if run == 0 {
            return Err(Error::unsupported("a reduction of no values"));
        }
        let shape = match keep {
            true => (0..self.shape.len()).map(|at| if all.contains(&at) { 1 } else { self.shape[at] }).collect(),
            false => kept.iter().map(|&at| self.shape[at]).collect(),
        };
        let data = match &moved.data {
            Data::Float(values) => {
                let one = |v: &[f32]| -> Result<f32> {
                    let sum = || v.iter().map(|&x| f64::from(x)).sum::<f64>();
                    Ok(match kind {
                        "Sum" => sum() as f32,
                        "Mean" => (sum() / v.len() as f64) as f32,
                        "Prod" => v.iter().product(),
                        "Max" => v.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                        "Min" => v.iter().copied().fold(f32::INFINITY, f32::min),
                        _ => return Err(Error::unsupported(format!("Reduce{kind} of known values"))),
                    })
                };
                Data::Float(values.chunks_exact(run).map(one).collect::<Result<_>>()?)
            }
            Data::Int(values) => {
                let fold = |v: &[Int], f: fn(&Int, &Int) -> Option<Int>| {
                    let first = v.first().cloned();
                    let folded = v.iter().skip(1).fold(first, |sum, n| f(&sum?, n));
                    folded.ok_or_else(|| Error::unsupported("a size that is too involved"))
                };
                let known = |v: &[Int]| v.iter().map(Int::known).collect::<Option<Vec<i64>>>();
                let one = |v: &[Int]| match (kind, known(v)) {
                    ("Sum", _) => fold(v, Int::add),
                    ("Prod", _) => fold(v, Int::mul),
                    ("Max", Some(known)) => Ok(known.into_iter().max().unwrap_or(0).into()),
                    ("Min", Some(known)) => Ok(known.into_iter().min().unwrap_or(0).into()),
                    _ => Err(Error::unsupported(format!("Reduce{kind} of sizes"))),
                };
                Data::Int(values.chunks_exact(run).map(one).collect::<Result<_>>()?)
            }
            Data::Bool(_) => return Err(Error::unsupported("a reduction of truth values")),
        };
        Self::new(shape, data)
    }
}

/// A function of one tensor, by its operator.
pub(super) fn unary(op: &str, x: &Host) -> Result<Host> {
    let unknown = || Error::unsupported(format!("{op} of {}", x.data.kind()));
    let data = match &x.data {
        Data::Float(values) => {
            let f: fn(f32) -> f32 = match op {
                "Neg" => |x| -x,
                "Abs" => f32::abs,
                "Sqrt" => f32::sqrt,
                "Exp" => f32::exp,
                "Log" => f32::ln,
                "Reciprocal" => |x| 1.0 / x,
                "Sign" => |x| if x == 0.0 { 0.0 } else { x.signum() },
                "Floor" => f32::floor,
                "Ceil" => f32::ceil,
                "Round" => f32::round_ties_even,
                "Sin" => f32::sin,
                "Cos" => f32::cos,
                "Tanh" => f32::tanh,
                "Sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
                "Relu" => |x| if x > 0.0 { x } else { 0.0 },
                _ => return Err(unknown()),
            };
            Data::Float(values.iter().map(|&x| f(x)).collect())
        }
        Data::Int(values) => {
            let f: fn(&Int) -> Option<Int> = match op {
                "Neg" => Int::neg,
                "Abs" => |n| n.known()?.checked_abs().map(Int::from),
                "Sign" => |n| n.known().map(|n| n.signum().into()),
                _ => return Err(unknown()),
            };
            Data::Int(values.iter().map(f).collect::<Option<_>>().ok_or_else(unknown)?)
        }
        Data::Bool(values) if op == "Not" => Data::Bool(values.iter().map(|b| !b).collect()),
        Data::Bool(_) => return Err(unknown()),
    };
    Host::new(x.shape.clone(), data)
}

/// A comparison by its operator.
fn comparison<V: PartialOrd>(op: &str) -> Option<fn(V, V) -> bool> {
    Some(match op {
        "Equal" => |a, b| a == b,
        "Less" => |a, b| a < b,
        "Greater" => |a, b| a > b,
        "LessOrEqual" => |a, b| a <= b,
        "GreaterOrEqual" => |a, b| a >= b,
        _ => return None,
    })
}

/// A function of two tensors that spread over each other, by its operator.
pub(super) fn binary(budget: &Budget, op: &str, a: &Host, b: &Host) -> Result<Host> {
    let shape = broadcast_shape(&a.shape, &b.shape)?;
    let (a, b) = (a.expand(budget, &shape)?, b.expand(budget, &shape)?);
    let unknown = || Error::unsupported(format!("{op} of {} and {}", a.data.kind(), b.data.kind()));
    let data = match (&a.data, &b.data) {
        (Data::Float(a), Data::Float(b)) => {
            let pairs = a.iter().zip(b);
            if let Some(test) = comparison::<f32>(op) {
                Data::Bool(pairs.map(|(&a, &b)| test(a, b)).collect())
            } else {
                let f: fn(f32, f32) -> f32 = match op {
                    "Add" => |a, b| a + b,
                    "Sub" => |a, b| a - b,
                    "Mul" => |a, b| a * b,
                    "Div" => |a, b| a / b,
                    "Pow" => f32::powf,
                    "Max" => f32::max,
                    "Min" => f32::min,
                    _ => return Err(unknown()),
                };
                Data::Float(pairs.map(|(&a, &b)| f(a, b)).collect())
            }
        }
        (Data::Int(a), Data::Int(b)) => {
            let known = || {
                let both = |(a, b): (&Int, &Int)| Some((a.known()?, b.known()?));
                a.iter().zip(b).map(both).collect::<Option<Vec<(i64, i64)>>>()
            };
            let involved = || Error::unsupported(format!("{op} of sizes that only a run tells, or too large"));
            if let Some(test) = comparison::<i64>(op) {
                // A size is none of the negative numbers that stand for no size.
                let sizes = |(a, b): (&Int, &Int)| match (op, a, b) {
                    ("Equal", Int::Of(_), Int::Known(n)) | ("Equal", Int::Known(n), Int::Of(_)) if *n < 0 => {
                        Some(false)
                    }
                    ("Equal", a, b) if a == b => Some(true),
                    _ => Some(test(a.known()?, b.known()?)),
                };
                Data::Bool(a.iter().zip(b).map(sizes).collect::<Option<_>>().ok_or_else(involved)?)
            } else {
                let f: fn(&Int, &Int) -> Option<Int> = match op {
                    "Add" => Int::add,
                    "Sub" => Int::sub,
                    "Mul" => Int::mul,
                    "Div" => Int::div,
                    "Max" if known().is_some() => |a, b| Some(a.known()?.max(b.known()?).into()),
                    "Min" if known().is_some() => |a, b| Some(a.known()?.min(b.known()?).into()),
                    "Mod" if known().is_some() => |a, b| a.known()?.checked_rem_euclid(b.known()?).map(Int::from),
                    "Pow" if known().is_some() => {
                        |a, b| a.known()?.checked_pow(u32::try_from(b.known()?).ok()?).map(Int::from)
                    }
                    "Max" | "Min" | "Mod" | "Pow" => return Err(involved()),
                    _ => return Err(unknown()),
                };
                Data::Int(a.iter().zip(b).map(|(a, b)| f(a, b)).collect::<Option<_>>().ok_or_else(involved)?)
            }
        }
        (Data::Bool(a), Data::Bool(b)) => {
            let f: fn(bool, bool) -> bool = match op {
                "And" => |a, b| a && b,
                "Or" => |a, b| a || b,
                "Xor" => |a, b| a != b,
                "Equal" => |a, b| a == b,
                _ => return Err(unknown()),
            };
            Data::Bool(a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect())
        }
        _ => return Err(unknown()),
    };
    Host::new(shape, data)
}

/// `a` where `condition`, else `b`.
pub(super) fn choose(budget: &Budget, condition: &Host, a: &Host, b: &Host) -> Result<Host> {
    let shape = broadcast_shape(&condition.shape, &broadcast_shape(&a.shape, &b.shape)?)?;
    let (c, a, b) = (condition.expand(budget, &shape)?, a.expand(budget, &shape)?, b.expand(budget, &shape)?);
    fn each<V: Clone>(c: &[bool], a: &[V], b: &[V]) -> Vec<V> {
        c.iter().zip(a.iter().zip(b)).map(|(&c, (a, b))| if c { a.clone() } else { b.clone() }).collect()
    }
    let data = match (&c.data, &a.data, &b.data) {
        (Data::Bool(c), Data::Float(a), Data::Float(b)) => Data::Float(each(c, a, b)),
        (Data::Bool(c), Data::Int(a), Data::Int(b)) => Data::Int(each(c, a, b)),
        (Data::Bool(c), Data::Bool(a), Data::Bool(b)) => Data::Bool(each(c, a, b)),
        _ => return Err(Error::unsupported(format!("Where of {} and {}", a.data.kind(), b.data.kind()))),
    };
    Host::new(shape, data)
}
