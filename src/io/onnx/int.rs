//! Whole numbers of a graph that computes shapes: known ones, and polynomials of sizes that a run tells.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A size that a run tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Symbol {
    /// B
    Batch,
    /// T of a time axis.
    Steps(u8),
}

/// The most terms of a polynomial, and the most factors of one.
const LIMIT: usize = 16;

type Terms = BTreeMap<Vec<Symbol>, i64>;

/// A whole number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Int {
    Known(i64),
    /// Σ factor · symbols, at least one of them with a symbol.
    Of(Arc<Terms>),
}

impl From<i64> for Int {
    fn from(n: i64) -> Self {
        Self::Known(n)
    }
}

impl From<Symbol> for Int {
    fn from(symbol: Symbol) -> Self {
        Self::Of(Arc::new(Terms::from([(vec![symbol], 1)])))
    }
}

impl Int {
    pub const ONE: Self = Self::Known(1);

    pub fn known(&self) -> Option<i64> {
        if let Self::Known(n) = self { Some(*n) } else { None }
    }

    fn terms(&self) -> Terms {
        match self {
            Self::Known(0) => Terms::new(),
            Self::Known(n) => Terms::from([(Vec::new(), *n)]),
            Self::Of(terms) => (**terms).clone(),
        }
    }

    fn of(mut terms: Terms) -> Option<Self> {
        terms.retain(|_, factor| *factor != 0);
        if terms.keys().all(Vec::is_empty) {
            return Some(Self::Known(terms.values().copied().sum()));
        }
        (terms.len() <= LIMIT && terms.keys().all(|s| s.len() <= LIMIT)).then(|| Self::Of(Arc::new(terms)))
    }

    /// The sum; none where it is too large or too involved.
    pub fn add(&self, other: &Self) -> Option<Self> {
        if let (Self::Known(a), Self::Known(b)) = (self, other) {
            return a.checked_add(*b).map(Self::Known);
        }
        let mut all = self.terms();
        for (symbols, factor) in other.terms() {
            let sum = all.entry(symbols).or_insert(0);
            *sum = sum.checked_add(factor)?;
        }
        Self::of(all)
    }

    pub fn neg(&self) -> Option<Self> {
        self.mul(&Self::Known(-1))
    }

    pub fn sub(&self, other: &Self) -> Option<Self> {
        self.add(&other.neg()?)
    }

    pub fn mul(&self, other: &Self) -> Option<Self> {
        if let (Self::Known(a), Self::Known(b)) = (self, other) {
            return a.checked_mul(*b).map(Self::Known);
        }
        let (mut all, others) = (Terms::new(), other.terms());
        for (symbols, factor) in self.terms() {
            for (more, other) in &others {
                let mut symbols = [symbols.as_slice(), more].concat();
                symbols.sort_unstable();
                let sum = all.entry(symbols).or_insert(0);
                *sum = sum.checked_add(factor.checked_mul(*other)?)?;
            }
        }
        Self::of(all)
    }

    /// The quotient, rounded towards zero where both are known; none where it is not certain to be whole.
    pub fn div(&self, other: &Self) -> Option<Self> {
        if let (Self::Known(a), Self::Known(b)) = (self, other) {
            return a.checked_div(*b).map(Self::Known);
        }
        let divisor = other.terms();
        let (1, Some((by, factor))) = (divisor.len(), divisor.into_iter().next()) else { return None };
        let mut all = Terms::new();
        for (mut symbols, mut own) in self.terms() {
            for symbol in &by {
                symbols.remove(symbols.iter().position(|s| s == symbol)?);
            }
            own = (own.checked_rem(factor)? == 0).then(|| own / factor)?;
            all.insert(symbols, own);
        }
        Self::of(all)
    }
}

impl fmt::Display for Int {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match self {
            Self::Known(n) => return write!(f, "{n}"),
            Self::Of(terms) => terms,
        };
        for (at, (symbols, factor)) in terms.iter().enumerate() {
            let plus = if at > 0 { " + " } else { "" };
            write!(f, "{plus}")?;
            let names: Vec<String> = symbols
                .iter()
                .map(|s| match s {
                    Symbol::Batch => "B".to_string(),
                    Symbol::Steps(0) => "T".to_string(),
                    Symbol::Steps(axis) => format!("T{axis}"),
                })
                .collect();
            match (*factor, names.is_empty()) {
                (1, false) => write!(f, "{}", names.join("·"))?,
                (factor, true) => write!(f, "{factor}")?,
                (factor, false) => write!(f, "{factor}·{}", names.join("·"))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_come_to_what_they_should() {
        let (b, t) = (Int::from(Symbol::Batch), Int::from(Symbol::Steps(0)));
        let bt = b.mul(&t).unwrap();
        assert_eq!(bt.mul(&Int::Known(6)).unwrap().div(&b.mul(&Int::Known(3)).unwrap()), t.mul(&Int::Known(2)));
        assert_eq!(bt.sub(&bt).unwrap(), Int::Known(0));
        assert_eq!(b.add(&Int::Known(1)).unwrap().sub(&b).unwrap(), Int::Known(1));
        assert_eq!(t.mul(&Int::Known(3)).unwrap().div(&Int::Known(2)), None);
        assert_eq!(Int::Known(i64::MAX).add(&Int::Known(1)), None);
        assert_eq!(bt.mul(&Int::Known(2)).unwrap().to_string(), "2·B·T");
    }
}
