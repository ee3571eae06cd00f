//! Whole numbers that differ from sequence to sequence or from step to step: what a file computes from the lengths of
//! sequences, and what that stands for. A step of each sequence by its number, and which
//! steps are within its length.

use super::host::{Data, Host, axis_of};
use super::int::Int;
use super::layout::{Atom, Axis, Kind, Lifted};
use super::lower::{Lower, Outputs, one};
use super::moves::table;
use super::node::Node;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::{Along, Formula, Function, Input, Operand, Pooling, Port, Signal, Step};
use std::rc::Rc;

/// At places i, j, ... the number `plus` + Σ each · place, and the length of a sequence where there is one.
#[derive(Debug, Clone)]
pub(super) struct Numbers {
    /// The lengths, one for each place along `batch`.
    pub lengths: Option<Lifted>,
    batch: usize,
    pub plus: Int,
    pub each: Vec<Int>,
    pub dims: Vec<Int>,
    /// Whether each stands beside the number of its sequence, as one of two along the last dimension.
    pairs: bool,
}

/// What is said of numbers that are used otherwise.
pub(super) fn misused() -> Error {
    Error::unsupported(
        "numbers of sequences or steps can only be compared with lengths, or say which step of each sequence is taken",
    )
}

impl Numbers {
    /// The numbers from `first` on, `count` of them.
    pub fn range(first: i64, count: Int) -> Self {
        let each = vec![Int::ONE];
        Self { lengths: None, batch: 0, plus: Int::Known(first), each, dims: vec![count], pairs: false }
    }

    /// A value as such numbers, if it is.
    pub fn of(lower: &Lower<'_>, value: &Val) -> Result<Option<Self>> {
        Ok(match value {
            Val::Numbers(numbers) => Some((**numbers).clone()),
            Val::Lifted(x) if x.kind == Kind::Lengths => {
                let dims = lower.sizes.of(x)?;
                let batch = x.dims.iter().position(|axis| !axis.is_empty()).unwrap_or(0);
                let each = vec![Int::Known(0); dims.len()];
                Some(Self { lengths: Some(x.clone()), batch, plus: Int::Known(0), each, dims, pairs: false })
            }
            Val::Host(host) => Self::of_host(host),
            Val::Spread { base, dims } if base.data.len() == 1 => {
                let plus = base.whole().ok().and_then(|n| n.first().cloned());
                let each = vec![Int::Known(0); dims.len()];
                plus.map(|plus| Self { lengths: None, batch: 0, plus, each, dims: dims.clone(), pairs: false })
            }
            _ => None,
        })
    }

    /// Constants that grow by as much from place to place along each dimension.
    fn of_host(host: &Host) -> Option<Self> {
        let Data::Int(values) = &host.data else { return None };
        let plus = values.first()?.clone();
        let strides = super::host::strides(&host.shape);
        let each = host.shape.iter().zip(&strides).map(|(&size, &stride)| match size {
            ..2 => Some(Int::Known(0)),
            _ => values.get(stride)?.sub(&plus),
        });
        let each = each.collect::<Option<Vec<Int>>>()?;
        let fits = values.iter().enumerate().all(|(at, value)| {
            let places = host.shape.iter().zip(&strides).map(|(&size, &stride)| (at / stride % size) as i64);
            let sum = places.zip(&each).try_fold(plus.clone(), |sum, (n, by)| sum.add(&by.mul(&Int::Known(n))?));
            sum.as_ref() == Some(value)
        });
        let dims = host.shape.iter().map(|&n| Int::Known(n as i64)).collect();
        fits.then_some(Self { lengths: None, batch: 0, plus, each, dims, pairs: false })
    }

    /// Under as many dimensions as `rank`.
    fn deeper(mut self, rank: usize) -> Self {
        let more = rank.saturating_sub(self.dims.len());
        self.dims.splice(0..0, vec![Int::ONE; more]);
        self.each.splice(0..0, vec![Int::Known(0); more]);
        self.batch += more;
        self
    }

    /// All of them times a factor; none where that is too involved.
    fn times(&self, by: &Int) -> Option<Self> {
        if self.lengths.is_some() && *by != Int::ONE || self.pairs {
            return None;
        }
        let each = self.each.iter().map(|n| n.mul(by)).collect::<Option<_>>()?;
        Some(Self { plus: self.plus.mul(by)?, each, ..self.clone() })
    }

    /// The sum, spread over each other's dimensions.
    fn add(&self, other: &Self) -> Option<Self> {
        let rank = self.dims.len().max(other.dims.len());
        let (a, b) = (self.clone().deeper(rank), other.clone().deeper(rank));
        if a.pairs || b.pairs || a.lengths.is_some() && b.lengths.is_some() {
            return None;
        }
        let dims = a.dims.iter().zip(&b.dims).map(|(a, b)| match (a, b) {
            (a, b) if a == b => Some(a.clone()),
            (Int::Known(1), other) | (other, Int::Known(1)) => Some(other.clone()),
            _ => None,
        });
        let dims = dims.collect::<Option<_>>()?;
        let each = a.each.iter().zip(&b.each).map(|(a, b)| a.add(b)).collect::<Option<_>>()?;
        let batch = if a.lengths.is_some() { a.batch } else { b.batch };
        Some(Self { plus: a.plus.add(&b.plus)?, each, dims, batch, lengths: a.lengths.or(b.lengths), pairs: false })
    }

    /// Under the dimensions that `f` takes from, new ones where it takes none.
    pub fn with_axes(&self, f: &dyn Fn(usize) -> Option<usize>, rank: usize) -> Result<Self> {
        let pick = |all: &[Int], new: Int| -> Vec<Int> {
            (0..rank).map(|at| f(at).and_then(|from| all.get(from).cloned()).unwrap_or_else(|| new.clone())).collect()
        };
        let batch = (0..rank).find(|&at| f(at) == Some(self.batch));
        let varies = self.lengths.is_some() && self.dims.get(self.batch).is_some_and(|n| *n != Int::ONE);
        if self.pairs || varies && batch.is_none() {
            return Err(misused());
        }
        let (dims, each) = (pick(&self.dims, Int::ONE), pick(&self.each, Int::Known(0)));
        Ok(Self { dims, each, batch: batch.unwrap_or(0), ..self.clone() })
    }

    /// In another shape, which only may leave out dimensions of size 1 or add some.
    pub fn reshaped(&self, sizes: Vec<Option<Int>>) -> Result<Self> {
        let own: Vec<usize> = (0..self.dims.len()).filter(|&at| self.dims[at] != Int::ONE).collect();
        let mut left = own.iter();
        let mut from = Vec::with_capacity(sizes.len());
        let named = sizes.iter().flatten().filter(|n| **n != Int::ONE).count();
        for size in &sizes {
            let taken = match size {
                Some(Int::Known(1)) => None,
                // An open size of 1, where all others are named.
                None if named == own.len() => None,
                Some(size) => Some(left.next().copied().filter(|&at| self.dims[at] == *size).ok_or_else(misused)?),
                None => Some(left.next().copied().ok_or_else(misused)?),
            };
            from.push(taken);
        }
        if left.next().is_some() {
            return Err(misused());
        }
        self.with_axes(&|at| from.get(at).copied().flatten(), sizes.len())
    }

    /// Spread over a shape.
    pub fn expanded(&self, dims: Vec<Int>) -> Result<Self> {
        let deep = self.clone().deeper(dims.len());
        let fits = deep.dims.len() == dims.len()
            && deep.dims.iter().zip(&dims).all(|(own, size)| *own == Int::ONE || own == size);
        if self.pairs || !fits {
            return Err(misused());
        }
        Ok(Self { dims, ..deep })
    }

    /// Lengths and what is added to them, where there is nothing else: one number of each sequence.
    fn of_sequences(&self) -> Option<(&Lifted, i64)> {
        let plain = self.each.iter().all(|n| *n == Int::Known(0));
        Some((self.lengths.as_ref().filter(|_| plain)?, self.plus.known()?))
    }
}

/// The axis of sequences that lengths are along; none where there is one sequence.
fn sequences(lengths: &Lifted) -> Axis {
    lengths.dims.concat()
}

/// A function of numbers; none where no operand is of lengths or of places.
pub(super) fn elementwise(lower: &mut Lower<'_>, op: &str, operands: &[&Val]) -> Result<Option<Val>> {
    let counts = |v: &Val| matches!(v, Val::Numbers(_)) || matches!(v, Val::Lifted(x) if x.kind == Kind::Lengths);
    if !operands.iter().any(|v| counts(v)) {
        return Ok(None);
    }
    let [a, b] = operands else { return Err(misused()) };
    let (Some(a), Some(b)) = (Numbers::of(lower, a)?, Numbers::of(lower, b)?) else { return Err(misused()) };
    let scalar = |n: &Numbers| n.lengths.is_none() && n.each.iter().all(|e| *e == Int::Known(0));
    let minus = |a: &Numbers, b: &Numbers| match (&a.lengths, &b.lengths) {
        // Lengths less something, or something less lengths: which of the two is told apart where it is compared.
        (_, None) => b.times(&Int::Known(-1)).and_then(|b| a.add(&b)),
        _ => None,
    };
    let made = match op {
        "Add" | "Sum" => a.add(&b),
        "Sub" => minus(&a, &b),
        "Mul" if scalar(&b) && b.dims.iter().all(|n| *n == Int::ONE) => a.times(&b.plus),
        "Mul" if scalar(&a) && a.dims.iter().all(|n| *n == Int::ONE) => b.times(&a.plus),
        "Less" => return within(lower, &a, &b).map(Some),
        "Greater" => return within(lower, &b, &a).map(Some),
        _ => None,
    };
    made.map(|n| Some(Val::Numbers(Rc::new(n)))).ok_or_else(misused)
}

/// a < b, where one of them counts steps and the other is how many there are of each sequence.
fn within(lower: &mut Lower<'_>, a: &Numbers, b: &Numbers) -> Result<Val> {
    let (steps, lengths, turned) = if b.lengths.is_some() { (a, b, false) } else { (b, a, true) };
    let rank = a.dims.len().max(b.dims.len());
    let (steps, lengths) = (steps.clone().deeper(rank), lengths.clone().deeper(rank));
    let (of, plus) = lengths.of_sequences().ok_or_else(misused)?;
    let (of, batch) = (of.clone(), lengths.batch);
    let counted: Vec<usize> = (0..rank).filter(|&at| steps.each[at] != Int::Known(0)).collect();
    // One step alone is the first.
    let at = match counted[..] {
        [at] if steps.each[at] == Int::ONE => at,
        _ => return Err(misused()),
    };
    let first = steps.plus.known().ok_or_else(misused)?;
    if steps.lengths.is_some() || at == batch && lengths.dims[batch] != Int::ONE {
        return Err(misused());
    }
    let others = (0..rank).filter(|&n| n != at && n != batch);
    if others.clone().any(|n| steps.dims[n] != Int::ONE || lengths.dims[n] != Int::ONE) {
        return Err(misused());
    }
    // t + first < n + plus; or n + plus < t + first, which is not t + first - plus - 1 < n.
    let beyond = if turned { first.checked_sub(plus).and_then(|n| n.checked_sub(1)) } else { first.checked_sub(plus) };
    if beyond != Some(0) {
        return Err(Error::unsupported("steps that are compared with other than the lengths of their sequences"));
    }
    let count = &steps.dims[at];
    let known = lower.sizes.steps.keys().copied().chain(lower.network.input_axes()?.into_iter().flatten());
    let axis = known.into_iter().find(|&axis| lower.sizes.atom(Atom::Steps(axis)) == *count);
    let axis = axis.ok_or_else(|| Error::unsupported(format!("{count} steps, which no sequence has")))?;
    let mut dims = vec![Axis::new(); rank];
    dims[batch] = sequences(&of);
    dims[at] = lower.sizes.as_axis(Atom::Steps(axis));
    let (ones, like) = (ones(lower, of.port)?, lower.port_on(axis)?);
    let inside = lower.add(Along {}, &[ones, like])?[0];
    let inside = lower.lift(inside, Kind::Bool, dims)?;
    if !turned {
        return Ok(inside.into());
    }
    let outside = lower.over(Formula::new(Function::Not, vec![Operand::Input(0)]), &inside)?;
    Ok(Lifted { kind: Kind::Bool, ..outside }.into())
}

/// Lengths spread over a shape.
pub(super) fn expanded(lower: &Lower<'_>, value: &Val, dims: Vec<Int>) -> Result<Val> {
    let numbers = Numbers::of(lower, value)?.ok_or_else(misused)?;
    Ok(Val::Numbers(Rc::new(numbers.expanded(dims)?)))
}

/// One at each step that a length counts.
fn ones(lower: &mut Lower<'_>, lengths: Port) -> Result<Port> {
    let any = anything(lower)?;
    let row = match lower.network.signal(any)?.axis() {
        Some(_) => lower.add(Step { at: 0 }, &[any])?[0],
        None => any,
    };
    let column = lower.add(crate::nn::Columns { first: 0, count: 1 }, &[row])?[0];
    // Whatever it is.
    let one = Formula::new(Function::Where, vec![Operand::Input(0), Operand::Number(1.0), Operand::Number(1.0)]);
    let one = lower.add(one, &[column])?[0];
    Ok(lower.add(Along {}, &[one, lengths])?[0])
}

/// Whatever has features; where there are only tokens so far, what a table makes of them.
fn anything(lower: &mut Lower<'_>) -> Result<Port> {
    let row = |signal: &Signal| signal.features().is_some();
    if let Some(at) = lower.network.input_signals().iter().position(row) {
        return Ok(Port::Input(at));
    }
    let mut nodes = lower.network.signals().iter().enumerate();
    let found = nodes.find_map(|(at, outputs)| outputs.iter().position(row).map(|output| Port::Node(at, output)));
    let tokens = lower.network.inputs.iter().position(|i| i.1 == Input::Tokens);
    match (found, tokens) {
        (Some(port), _) => Ok(port),
        (None, Some(at)) => {
            let tokens = lower.lift(Port::Input(at), Kind::Tokens, Vec::new())?;
            let table = table(lower, &tokens)?;
            Ok(lower.lifted(&table)?.port)
        }
        (None, None) => Err(Error::unsupported("lengths before anything that has features")),
    }
}

/// Lengths as floats, a row of each sequence.
pub(super) fn as_floats(lower: &mut Lower<'_>, value: &Val) -> Result<Val> {
    let numbers = Numbers::of(lower, value)?.ok_or_else(misused)?;
    let (of, plus) = numbers.of_sequences().ok_or_else(misused)?;
    if (0..numbers.dims.len()).any(|at| at != numbers.batch && numbers.dims[at] != Int::ONE) {
        return Err(misused());
    }
    let mut dims = vec![Axis::new(); numbers.dims.len()];
    if let Some(dim) = dims.get_mut(numbers.batch) {
        *dim = sequences(of);
    }
    let ones = ones(lower, of.port)?;
    let count = lower.add(Pooling::sum(), &[ones])?[0];
    let count = lower.lift(count, Kind::Float, dims)?;
    if plus == 0 {
        return Ok(count.into());
    }
    let more = Formula::new(Function::Add, vec![Operand::Input(0), Operand::Number(plus as f32)]);
    Ok(lower.over(more, &count)?.into())
}

/// The step of each sequence that its number says, from its end on; `rest` are the axes of what comes.
fn taken(lower: &mut Lower<'_>, x: &Lifted, numbers: &Numbers, rest: Vec<Axis>) -> Result<Lifted> {
    let (lengths, plus) = match (&numbers.lengths, numbers.plus.known()) {
        (Some(lengths), Some(plus)) => (lengths.clone(), plus),
        _ => return Err(misused()),
    };
    if plus >= 0 {
        return Err(Error::unsupported("a step of each sequence by a number that is not its length less some"));
    }
    if !rest.concat().iter().filter(|a| a.is_sequences()).eq(sequences(&lengths).iter()) {
        return Err(Error::unsupported("steps by the lengths of sequences in another order"));
    }
    let ended = lower.add(Along {}, &[x.port, lengths.port])?[0];
    let row = lower.add(Step { at: plus }, &[ended])?[0];
    lower.lift(row, x.kind, rest)
}

/// Of each sequence the step that its number says, under the axes of x.
pub(super) fn gather_elements(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let (x, which) = (node.input(0)?, node.input(1)?);
    let axis = axis_of(node.int("axis")?.unwrap_or(0), x.rank())?;
    let numbers = match which {
        Val::Numbers(_) | Val::Lifted(Lifted { kind: Kind::Lengths, .. }) => Numbers::of(lower, which)?,
        _ => None,
    };
    let numbers = numbers.ok_or_else(|| Error::unsupported("elements by other than numbers from lengths"))?;
    let x = lower.lifted(x)?;
    let sizes = lower.sizes.of(&x)?;
    let whole = numbers.dims.len() == sizes.len()
        && (0..sizes.len()).all(|at| numbers.dims[at] == if at == axis { Int::ONE } else { sizes[at].clone() });
    if !whole || numbers.of_sequences().is_none() || !matches!(x.dims[axis][..], [Atom::Steps(_)]) {
        return Err(Error::unsupported("elements other than one whole step of each sequence"));
    }
    if numbers.dims[numbers.batch] != Int::ONE && !x.dims[numbers.batch].iter().all(|a| a.is_sequences()) {
        return Err(misused());
    }
    let mut rest = x.dims.clone();
    rest[axis] = Axis::new();
    one(taken(lower, &x, &numbers, rest)?)
}

/// Of each sequence, by its own number, the step that another says.
pub(super) fn gather_nd(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let refused = || Error::unsupported("slices by other than the numbers of sequences beside those of their steps");
    let Val::Numbers(numbers) = node.input(1)? else { return Err(refused()) };
    let x = lower.lifted(node.input(0)?)?;
    let [first, second, rest @ ..] = &x.dims[..] else { return Err(refused()) };
    let fits = numbers.pairs && numbers.dims.len() == 2 && node.int("batch_dims")?.unwrap_or(0) == 0;
    if !fits || !first.iter().all(|a| a.is_sequences()) || !matches!(second[..], [Atom::Steps(_)]) {
        return Err(refused());
    }
    let rest = [std::slice::from_ref(first), rest].concat();
    one(taken(lower, &x, numbers, rest)?)
}

/// Rows of sequences and steps together, of each sequence the one that its number says; or sequences in another order.
pub(super) fn gather(lower: &mut Lower<'_>, x: &Val, which: &Val, axis: usize) -> Result<Val> {
    let x = lower.lifted(x)?;
    match which {
        Val::Order(order) => order.taken(lower, &x, axis),
        Val::Numbers(numbers) => {
            let [sequence @ .., Atom::Steps(steps)] = &x.dims[axis][..] else { return Err(misused()) };
            let size = lower.sizes.atom(Atom::Steps(*steps));
            let counts = numbers.dims.len() == 1
                && (numbers.each[0] == size || sequence.is_empty() && numbers.each[0] == Int::Known(0));
            if axis != 0 || !counts || !sequence.iter().all(|a| a.is_sequences()) {
                return Err(misused());
            }
            let mut rest = x.dims.clone();
            rest[0] = sequence.to_vec();
            Ok(taken(lower, &x, numbers, rest)?.into())
        }
        _ => Err(misused()),
    }
}

/// The numbers of sequences beside those of their steps; none where it is anything else.
pub(super) fn concat(lower: &Lower<'_>, parts: &[&Val], axis: usize) -> Result<Option<Val>> {
    let [first, second] = parts else { return Ok(None) };
    if !matches!(second, Val::Numbers(_)) {
        return Ok(None);
    }
    let (Some(first), Some(second)) = (Numbers::of(lower, first)?, Numbers::of(lower, second)?) else {
        return Err(misused());
    };
    let column = |n: &Numbers| n.dims.len() == 2 && n.dims[1] == Int::ONE && n.dims[0] == lower.sizes.batch;
    let own = first.lengths.is_none() && first.plus == Int::Known(0) && first.each[0] == Int::ONE;
    let one_sequence = lower.sizes.batch == Int::ONE && first.plus == Int::Known(0);
    if axis != 1 || !column(&first) || !column(&second) || !(own || one_sequence) || second.of_sequences().is_none() {
        return Err(misused());
    }
    let dims = vec![second.dims[0].clone(), Int::Known(2)];
    Ok(Some(Val::Numbers(Rc::new(Numbers { dims, pairs: true, ..second }))))
}

#[cfg(test)]
mod tests {
    use super::super::int::Symbol;
    use super::*;

    fn host(shape: &[usize], values: &[i64]) -> Option<Numbers> {
        let values = values.iter().map(|&n| Int::Known(n)).collect();
        Numbers::of_host(&Host::new(shape.to_vec(), Data::Int(values)).unwrap())
    }

    #[test]
    fn constants_are_numbers_where_they_grow_evenly() {
        let numbers = host(&[2, 3], &[4, 5, 6, 14, 15, 16]).unwrap();
        assert_eq!((numbers.plus, numbers.each), (Int::Known(4), vec![Int::Known(10), Int::ONE]));
        assert!(host(&[4], &[0, 1, 2, 4]).is_none());
        assert!(host(&[2, 2], &[0, 1, 2, 4]).is_none());
        assert!(host(&[0], &[]).is_none());
    }

    #[test]
    fn numbers_of_sequences_and_steps_add_up() {
        let (b, t) = (Int::from(Symbol::Batch), Int::from(Symbol::Steps(0)));
        let sequences = Numbers::range(0, b.clone()).with_axes(&|at| (at == 0).then_some(0), 2).unwrap();
        let flat = sequences.times(&t).unwrap().add(&Numbers::range(3, t.clone())).unwrap();
        assert_eq!((flat.plus.clone(), flat.each.clone()), (Int::Known(3), vec![t.clone(), Int::ONE]));
        assert_eq!(flat.dims, [b.clone(), t.clone()]);
        assert!(
            sequences
                .add(&Numbers::range(0, Int::Known(3)).expanded(vec![Int::Known(2), Int::Known(3)]).unwrap())
                .is_none()
        );
        assert!(flat.of_sequences().is_none());
    }

    #[test]
    fn other_shapes_keep_which_dimension_is_of_sequences() {
        let (b, t) = (Int::from(Symbol::Batch), Int::from(Symbol::Steps(0)));
        let numbers = Numbers::range(0, b.clone());
        let known = |n| Some(Int::Known(n));
        let column = numbers.reshaped(vec![None, known(1), known(1)]).unwrap();
        assert_eq!(column.each, [Int::ONE, Int::Known(0), Int::Known(0)]);
        let spread = column.expanded(vec![b.clone(), Int::ONE, t.clone()]).unwrap();
        assert_eq!(spread.dims, [b.clone(), Int::ONE, t.clone()]);
        assert_eq!(column.reshaped(vec![Some(b.clone()), None]).unwrap().dims, [b.clone(), Int::ONE]);
        assert!(numbers.reshaped(vec![Some(t.clone())]).is_err(), "of other sizes");
        assert!(numbers.reshaped(vec![known(1)]).is_err(), "too few");
        assert!(numbers.expanded(vec![t]).is_err(), "spread over what it varies along");
    }
}
