//! Small expression trees over the elements of broadcast inputs, and their derivatives.

use super::shape::Symbol;
use std::ops;
use std::sync::Arc;

/// Functions of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unary {
    /// -x
    Neg,
    /// e^x
    Exp,
    /// ln x
    Log,
    /// √x
    Sqrt,
    /// |x|
    Abs,
    /// -1, 0 or 1
    Sign,
    /// 1/(1+e^-x)
    Sigmoid,
    /// tanh x
    Tanh,
    /// 1 where x is finite, else 0
    IsFinite,
}

/// Functions of two arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// the larger
    Max,
    /// the smaller
    Min,
    /// 1 where a < b, else 0
    Less,
}

/// An expression for one element.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// The element of input number `0`.
    Input(usize),
    /// A constant.
    Const(f32),
    /// A scalar given at each run, by name.
    Scalar(String),
    /// A size of the batch, as a float.
    Size(Symbol),
    /// A function of one argument.
    Unary(Unary, Arc<Expr>),
    /// A function of two arguments.
    Binary(Binary, Arc<Expr>, Arc<Expr>),
    /// The second where the first is not zero, else the third; the other is not looked at, so it may be not finite.
    Select(Arc<Expr>, Arc<Expr>, Arc<Expr>),
}

impl Expr {
    /// A scalar given at each run.
    pub fn scalar(name: &str) -> Self {
        Self::Scalar(name.to_string())
    }

    fn unary(self, f: Unary) -> Self {
        Self::Unary(f, Arc::new(self))
    }

    fn binary(self, f: Binary, b: Self) -> Self {
        Self::Binary(f, Arc::new(self), Arc::new(b))
    }

    /// e^self
    #[must_use]
    pub fn exp(self) -> Self {
        self.unary(Unary::Exp)
    }

    /// ln self
    #[must_use]
    pub fn ln(self) -> Self {
        self.unary(Unary::Log)
    }

    /// √self
    #[must_use]
    pub fn sqrt(self) -> Self {
        self.unary(Unary::Sqrt)
    }

    /// |self|
    #[must_use]
    pub fn abs(self) -> Self {
        self.unary(Unary::Abs)
    }

    /// -1, 0 or 1
    #[must_use]
    pub fn sign(self) -> Self {
        self.unary(Unary::Sign)
    }

    /// 1/(1+e^-self)
    #[must_use]
    pub fn sigmoid(self) -> Self {
        self.unary(Unary::Sigmoid)
    }

    /// tanh self
    #[must_use]
    pub fn tanh(self) -> Self {
        self.unary(Unary::Tanh)
    }

    /// 1 where self is finite, else 0
    #[must_use]
    pub fn is_finite(self) -> Self {
        self.unary(Unary::IsFinite)
    }

    /// The larger of two.
    #[must_use]
    pub fn max(self, b: Self) -> Self {
        self.binary(Binary::Max, b)
    }

    /// The smaller of two.
    #[must_use]
    pub fn min(self, b: Self) -> Self {
        self.binary(Binary::Min, b)
    }

    /// 1 where self < b, else 0.
    #[must_use]
    pub fn less(self, b: Self) -> Self {
        self.binary(Binary::Less, b)
    }

    /// `a` where self is not zero, else `b`.
    #[must_use]
    pub fn select(self, a: Self, b: Self) -> Self {
        Self::Select(Arc::new(self), Arc::new(a), Arc::new(b))
    }

    /// This expression with `f` of its number in place of each input.
    pub fn with_inputs(&self, f: &dyn Fn(usize) -> Expr) -> Expr {
        let shared = |e: &Expr| Arc::new(e.with_inputs(f));
        match self {
            Self::Input(i) => f(*i),
            Self::Unary(op, a) => Self::Unary(*op, shared(a)),
            Self::Binary(op, a, b) => Self::Binary(*op, shared(a), shared(b)),
            Self::Select(a, b, c) => Self::Select(shared(a), shared(b), shared(c)),
            Self::Const(_) | Self::Scalar(_) | Self::Size(_) => self.clone(),
        }
    }

    /// Calls `f` on this expression and all inside it, outside first.
    pub fn visit(&self, f: &mut impl FnMut(&Expr)) {
        f(self);
        match self {
            Self::Unary(_, a) => a.visit(f),
            Self::Binary(_, a, b) => {
                a.visit(f);
                b.visit(f);
            }
            Self::Select(a, b, c) => {
                a.visit(f);
                b.visit(f);
                c.visit(f);
            }
            Self::Input(_) | Self::Const(_) | Self::Scalar(_) | Self::Size(_) => {}
        }
    }

    /// The derivative by input number `by`. The output itself is recomputed where a derivative needs it.
    pub fn derivative(&self, by: usize) -> Expr {
        let zero = || Expr::Const(0.0);
        let one = || Expr::Const(1.0);
        match self {
            Self::Input(i) => Expr::Const(if *i == by { 1.0 } else { 0.0 }),
            Self::Const(_) | Self::Scalar(_) | Self::Size(_) => zero(),
            Self::Unary(f, a) => {
                let da = a.derivative(by);
                if da == zero() {
                    return zero();
                }
                let a = || (**a).clone();
                let outer = match f {
                    Unary::Neg => Expr::Const(-1.0),
                    Unary::Exp => a().exp(),
                    Unary::Log => one() / a(),
                    Unary::Sqrt => Expr::Const(0.5) / a().sqrt(),
                    Unary::Abs => a().sign(),
                    Unary::Sign | Unary::IsFinite => return zero(),
                    Unary::Sigmoid => a().sigmoid() * (one() - a().sigmoid()),
                    Unary::Tanh => one() - a().tanh() * a().tanh(),
                };
                outer * da
            }
            Self::Binary(f, a, b) => {
                let (da, db) = (a.derivative(by), b.derivative(by));
                let (a, b) = (|| (**a).clone(), || (**b).clone());
                match f {
                    Binary::Add => da + db,
                    Binary::Sub => da - db,
                    Binary::Mul => da * b() + a() * db,
                    Binary::Div => da / b() - (a() * db) / (b() * b()),
                    Binary::Max if da == zero() && db == zero() => zero(),
                    Binary::Min if da == zero() && db == zero() => zero(),
                    Binary::Max => a().less(b()).select(db, da),
                    Binary::Min => b().less(a()).select(db, da),
                    Binary::Less => zero(),
                }
            }
            Self::Select(c, a, b) => {
                let (da, db) = (a.derivative(by), b.derivative(by));
                if da == zero() && db == zero() {
                    return zero();
                }
                (**c).clone().select(da, db)
            }
        }
    }
}

impl ops::Add for Expr {
    type Output = Expr;
    fn add(self, b: Expr) -> Expr {
        match (&self, &b) {
            (Expr::Const(x), _) if *x == 0.0 => b,
            (_, Expr::Const(y)) if *y == 0.0 => self,
            _ => self.binary(Binary::Add, b),
        }
    }
}

impl ops::Sub for Expr {
    type Output = Expr;
    fn sub(self, b: Expr) -> Expr {
        match (&self, &b) {
            (_, Expr::Const(y)) if *y == 0.0 => self,
            (Expr::Const(x), _) if *x == 0.0 => -b,
            _ => self.binary(Binary::Sub, b),
        }
    }
}

impl ops::Mul for Expr {
    type Output = Expr;
    fn mul(self, b: Expr) -> Expr {
        match (&self, &b) {
            (Expr::Const(x), _) if *x == 0.0 => self,
            (_, Expr::Const(y)) if *y == 0.0 => b,
            (Expr::Const(x), _) if *x == 1.0 => b,
            (_, Expr::Const(y)) if *y == 1.0 => self,
            _ => self.binary(Binary::Mul, b),
        }
    }
}

impl ops::Div for Expr {
    type Output = Expr;
    fn div(self, b: Expr) -> Expr {
        match (&self, &b) {
            (Expr::Const(x), _) if *x == 0.0 => self,
            (_, Expr::Const(y)) if *y == 1.0 => self,
            _ => self.binary(Binary::Div, b),
        }
    }
}

impl ops::Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        match self {
            Expr::Const(x) => Expr::Const(-x),
            other => other.unary(Unary::Neg),
        }
    }
}

impl From<f32> for Expr {
    fn from(x: f32) -> Self {
        Self::Const(x)
    }
}
