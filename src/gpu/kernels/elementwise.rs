//! Expressions over broadcast values: generated bindings and a generated `apply`.

use super::{Runner, input, kernel, params, word};
use crate::error::{Error, Result};
use crate::gpu::pipeline::{Binding, EPILOGUE, Kernel};
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run, Values};
use crate::graph::{Binary, Broadcast, Dim, Expr, Op, Shape, Unary, broadcast};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;
use std::fmt::Write as _;

params!(Params { len: u32, columns: u32 });

/// The prelude adds the run's scalars and the values to these bindings.
pub(super) static KERNEL: Kernel = kernel!("elementwise", "main", Params, [Params, Run]);

/// Threads of one workgroup.
const WORKGROUP: usize = 256;

/// Bindings of one kernel, where the device allows more: what compilers and drivers are used to.
const MOST_BINDINGS: usize = 64;

/// One or more expressions over the same values; where sizes are fixed, of several steps.
pub(super) struct Elementwise {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    output: usize,
    columns: usize,
    /// Threads of several steps; of one there are as many as values.
    threads: Option<usize>,
}

/// One step as its kernel sees it.
struct Member {
    /// What each expression writes.
    outputs: Vec<usize>,
    /// What the expressions read, and how it spreads; none for what none of them reads.
    inputs: Vec<Option<(usize, Broadcast)>>,
    exprs: Vec<Expr>,
    shape: Shape,
}

impl Member {
    fn of(values: &Values, step: &Step, exprs: &[Expr]) -> Result<Self> {
        let written = step.outputs.iter().zip(exprs).filter_map(|(v, e)| Some(((*v)?, e.clone())));
        let (outputs, exprs): (Vec<usize>, Vec<Expr>) = written.unzip();
        let first = *outputs.first().ok_or_else(|| Error::internal("nothing is written"))?;
        let shape = values.shape(first).clone();
        let mut inputs = Vec::new();
        for at in 0..step.inputs.len() {
            let value = input(step, at)?;
            let mut used = false;
            exprs.iter().for_each(|e| e.visit(&mut |e| used |= *e == Expr::Input(at)));
            let spread = broadcast(&shape, values.shape(value)).ok_or_else(|| Error::internal("no broadcast"))?;
            inputs.push(used.then_some((value, spread)));
        }
        Ok(Self { outputs, inputs, exprs, shape })
    }

    fn read(&self) -> impl Iterator<Item = usize> + '_ {
        self.inputs.iter().flatten().map(|input| input.0)
    }

    /// How many values it writes by each expression, if that is known before there is a batch.
    fn len(&self) -> Option<usize> {
        self.shape.0.iter().map(|dim| if let Dim::Fixed(n) = dim { Some(*n) } else { None }).product()
    }
}

/// The storages that a kernel binds, those that are written first; one binding each.
struct Bound {
    written: Vec<usize>,
    read: Vec<usize>,
}

impl Bound {
    fn of(values: &Values, members: &[Member]) -> Self {
        let root = |v: &usize| values.program.root(*v);
        let add = |all: &mut Vec<usize>, value: usize| {
            if !all.iter().any(|v| root(v) == root(&value)) {
                all.push(value);
            }
        };
        let (mut written, mut read) = (Vec::new(), Vec::new());
        members.iter().flat_map(|m| &m.outputs).for_each(|&v| add(&mut written, v));
        for value in members.iter().flat_map(Member::read) {
            if !written.iter().any(|v| root(v) == root(&value)) {
                add(&mut read, value);
            }
        }
        Self { written, read }
    }

    fn all(&self) -> impl Iterator<Item = usize> + '_ {
        self.written.iter().chain(&self.read).copied()
    }

    fn binding(&self, values: &Values, value: usize) -> Result<usize> {
        let root = values.program.root(value);
        let at = self.all().position(|v| values.program.root(v) == root);
        at.ok_or_else(|| Error::internal("a value is not bound"))
    }
}

/// How many of `steps`, from the first on, one dispatch can run: elementwise steps over values of fixed sizes, of which none reads or writes what another writes, in as many bindings as there are. At least 1.
pub(in crate::gpu) fn apart_from_each_other(values: &Values, steps: &[&Step]) -> Result<usize> {
    let mut members = Vec::new();
    for step in steps {
        let Op::Elementwise { exprs } = &step.op else { break };
        members.push(Member::of(values, step, exprs)?);
        let fits = members.last().is_some_and(|m| m.len().is_some()) && apart(values, &members)?;
        if !fits {
            members.pop();
            break;
        }
    }
    Ok(members.len().max(1))
}

/// Whether no member reads or writes what another writes, and no buffer would be bound to be read and to be written.
fn apart(values: &Values, members: &[Member]) -> Result<bool> {
    let bound = Bound::of(values, members);
    if bound.all().count() > values.program.target.limits.storage_bindings.min(MOST_BINDINGS) {
        return Ok(false);
    }
    let buffers = |all: &[usize]| all.iter().map(|&v| values.view(v, 0)).collect::<Result<Vec<_>>>();
    let (written, read) = (buffers(&bound.written)?, buffers(&bound.read)?);
    let crossed = read.iter().any(|r| written.iter().any(|w| *w.buffer == *r.buffer));
    let root = |v: usize| values.program.root(v);
    let touches = |m: &Member, value: usize| m.read().chain(m.outputs.iter().copied()).any(|v| root(v) == root(value));
    let shared = members.iter().enumerate().any(|(at, m)| {
        let others = members.iter().enumerate().filter(|(other, _)| *other != at);
        others.flat_map(|(_, other)| &other.outputs).any(|&v| touches(m, v))
    });
    Ok(!crossed && !shared)
}

impl Elementwise {
    /// `steps`, as many as [`apart_from_each_other`] allows.
    pub fn prepare(preparer: &mut Preparer<'_>, steps: &[&Step]) -> Result<Self> {
        let values = preparer.values;
        let of = |step: &&Step| match &step.op {
            Op::Elementwise { exprs } => Member::of(values, step, exprs),
            _ => Err(Error::internal("not an elementwise step")),
        };
        let members = steps.iter().map(of).collect::<Result<Vec<_>>>()?;
        let bound = Bound::of(values, &members);
        let most = values.program.target.limits.storage_bindings;
        let count = bound.all().count();
        if count > most {
            return Err(Error::unsupported(format!("{count} values in one expression, the device binds {most}")));
        }
        let binding = |value| bound.binding(values, value);
        let scalar = |e: &Expr| values.program.scalar_index(e);
        let mut text = declarations(count, bound.written.len());
        let mut threads = None;
        if let [member] = members.as_slice() {
            text += &apply("apply", member, &binding, &scalar)?;
        } else {
            let (mut start, mut choose) = (0, String::new());
            for (at, member) in members.iter().enumerate() {
                text += &apply(&format!("apply_{at}"), member, &binding, &scalar)?;
                let len = member.len().ok_or_else(|| Error::internal("a size is not fixed"))?;
                let (end, columns) = (start + len.next_multiple_of(WORKGROUP), columns(&member.shape));
                let _ = write!(
                    choose,
                    "if (i < {end}u) {{\n        let k = i - {start}u;\n        if (k < {len}u) {{\n            \
                     apply_{at}(k, k / {columns}u, k % {columns}u);\n        }}\n    }} else "
                );
                start = end;
            }
            text += &format!("fn apply(i: u32, row: u32, column: u32) {{\n    {choose}{{\n    }}\n}}\n");
            threads = Some(start);
        }
        let storage = (0..count).map(|b| if b < bound.written.len() { Binding::Write } else { Binding::Read });
        let bindings: Vec<Binding> = KERNEL.bindings.iter().copied().chain(storage).collect();
        let shape = &members[0].shape;
        let axis = row_axis(shape);
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let piece = |v: usize| if row_axis(values.shape(v)).is_some() { p } else { 0 };
            let views = bound.all().map(|v| Ok(Some(values.view(v, piece(v))?))).collect::<Result<Vec<_>>>()?;
            pieces.push(preparer.launch_with(&KERNEL, &text, Some(bindings.clone()), &Vec::new(), &views)?);
        }
        Ok(Self { pieces, axis, output: members[0].outputs[0], columns: columns(shape), threads })
    }
}

/// Values in one row, as `apply` counts: all but the outermost dimension.
fn columns(shape: &Shape) -> usize {
    shape.row_len().unwrap_or(1).max(1)
}

impl Runner for Elementwise {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        if let Some(threads) = self.threads {
            let params = Params { len: word(threads), columns: 1 };
            out.dispatch(&self.pieces[0], &params, threads.div_ceil(WORKGROUP));
            return Ok(());
        }
        for (p, start, end) in run.pieces(self.axis, run.rows(self.output)?) {
            let len = (end - start) * self.columns;
            let params = Params { len: word(len), columns: word(self.columns) };
            out.dispatch(&self.pieces[p], &params, len.div_ceil(WORKGROUP));
        }
        Ok(())
    }
}

/// Declares the scalars and `bound` values, of which the first are written.
fn declarations(bound: usize, written: usize) -> String {
    let mut text = String::from("@group(0) @binding(1) var<uniform> scalars: array<vec4<f32>, 16>;\n");
    for b in 0..bound {
        let access = if b < written { "read_write" } else { "read" };
        let _ = writeln!(text, "@group(0) @binding({}) var<storage, {access}> v{b}: array<f32>;", b + 2);
    }
    text
}

/// The function `name`, which reads, computes and writes one element of `member`.
fn apply(
    name: &str,
    member: &Member,
    binding: &dyn Fn(usize) -> Result<usize>,
    scalar: &dyn Fn(&Expr) -> Option<usize>,
) -> Result<String> {
    let mut text = format!("fn {name}(i: u32, row: u32, column: u32) {{\n");
    for (at, input) in member.inputs.iter().enumerate() {
        let Some((value, spread)) = input else { continue };
        let index = match spread {
            Broadcast::Full => "i",
            Broadcast::Row => "column",
            Broadcast::Column => "row",
            Broadcast::Scalar => "0",
        };
        let _ = writeln!(text, "    let x{at} = v{}[{index}];", binding(*value)?);
    }
    for (at, expr) in member.exprs.iter().enumerate() {
        let _ = writeln!(text, "    let y{at} = {};", wgsl(expr, scalar)?);
    }
    for (at, output) in member.outputs.iter().enumerate() {
        let _ = writeln!(text, "    v{}[i] = y{at};", binding(*output)?);
    }
    text.push_str("}\n");
    Ok(text)
}

/// `expr` in WGSL.
fn wgsl(expr: &Expr, scalar: &dyn Fn(&Expr) -> Option<usize>) -> Result<String> {
    let go = |e: &Expr| wgsl(e, scalar);
    Ok(match expr {
        Expr::Input(i) => format!("x{i}"),
        Expr::Const(c) if c.is_finite() => format!("f32({c:?})"),
        Expr::Const(c) => format!("float_of({}u)", c.to_bits()),
        Expr::Scalar(_) | Expr::Size(_) => {
            let at = scalar(expr).ok_or_else(|| Error::internal("a scalar is not among the program's"))?;
            format!("scalars[{}][{}]", at / 4, at % 4)
        }
        Expr::Unary(f, a) => {
            let a = go(a)?;
            match f {
                Unary::Neg => format!("(-{a})"),
                Unary::Exp => format!("exp_any_f32({a})"),
                Unary::Log => format!("log({a})"),
                Unary::Sqrt => format!("sqrt({a})"),
                Unary::Abs => format!("abs({a})"),
                Unary::Sign => format!("sign({a})"),
                Unary::Sigmoid => format!("sigmoid_f32({a})"),
                Unary::Tanh => format!("tanh_f32({a})"),
                Unary::IsFinite => format!("is_finite_f32({a})"),
            }
        }
        Expr::Binary(f, a, b) => {
            let (a, b) = (go(a)?, go(b)?);
            match f {
                Binary::Add => format!("({a} + {b})"),
                Binary::Sub => format!("({a} - {b})"),
                Binary::Mul => format!("({a} * {b})"),
                Binary::Div => format!("({a} / {b})"),
                Binary::Max => format!("max({a}, {b})"),
                Binary::Min => format!("min({a}, {b})"),
                Binary::Less => format!("select(0.0, 1.0, {a} < {b})"),
            }
        }
        Expr::Select(c, a, b) => format!("select({}, {}, {} != 0.0)", go(b)?, go(a)?, go(c)?),
    })
}

/// The part of a product's prelude that makes `expr` of each element, its input 0.
pub(super) fn epilogue(expr: &Expr) -> Result<String> {
    Ok(format!("{EPILOGUE}\n    return {};\n}}\n", wgsl(expr, &|_| None)?))
}

/// A prelude that uses every function and every way to spread, for tools.
pub(super) fn sample_prelude() -> Result<String> {
    let x = Expr::Input;
    let all = [x(0).exp(), x(1).ln(), x(2).sqrt(), x(3).abs(), x(0).sign(), x(1).sigmoid(), x(2).tanh(), -x(3)];
    let sum = all.into_iter().fold(Expr::scalar("s"), |a, b| (a + b.clone()).max(b));
    let chosen = x(0).is_finite().select(sum / x(1), x(0).less(x(1)).min(Expr::Const(f32::INFINITY)) * x(2));
    let spreads = [Broadcast::Full, Broadcast::Row, Broadcast::Column, Broadcast::Scalar];
    let inputs = spreads.into_iter().enumerate().map(Some).collect();
    let member = Member { outputs: vec![0], inputs, exprs: vec![chosen], shape: Shape(Vec::new()) };
    Ok(declarations(4, 1) + &apply("apply", &member, &Ok, &|_| Some(5))?)
}
