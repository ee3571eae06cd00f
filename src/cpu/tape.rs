//! Expressions compiled to instructions over blocks of elements.
//!
//! Equal subexpressions are computed once, over all outputs of a step; what is the same for every element is computed
//! once a task, before its first block.

use crate::error::{Error, Result};
use crate::graph::{Binary, Broadcast, Expr, Unary};
use std::collections::HashMap;

/// Where an instruction finds an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The same elements of an input of the output's shape.
    Input(usize),
    /// A register.
    Register(usize),
}

/// What an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// A constant, by its bits.
    Const(u32),
    /// A scalar of the run, by its position.
    Scalar(usize),
    /// An input that spreads over the output.
    Spread(Broadcast, usize),
    /// A function of one operand.
    Unary(Unary),
    /// A function of two operands.
    Binary(Binary),
    /// The second operand where the first is not zero, else the third.
    Select,
}

/// One instruction over a block of elements.
#[derive(Debug, Clone)]
pub(super) struct Instruction {
    pub(super) action: Action,
    pub(super) operands: Vec<Source>,
    /// The register that it fills; never one that it reads.
    pub(super) to: usize,
}

/// Compiled expressions.
#[derive(Debug, Clone, Default)]
pub(super) struct Tape {
    /// Run once a task, over whole registers.
    pub(super) uniform: Vec<Instruction>,
    /// Run for every block.
    pub(super) instructions: Vec<Instruction>,
    /// Where each compiled expression's result is.
    pub(super) results: Vec<Source>,
    /// Number of registers.
    pub(super) registers: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Node {
    Input(usize),
    Compute(Action, Vec<usize>),
}

struct Compiler<'a> {
    spreads: &'a [Broadcast],
    scalar: &'a dyn Fn(&Expr) -> Option<usize>,
    nodes: Vec<Node>,
    known: HashMap<Node, usize>,
}

impl Compiler<'_> {
    fn node(&mut self, node: Node) -> usize {
        if let Some(&at) = self.known.get(&node) {
            return at;
        }
        self.nodes.push(node.clone());
        self.known.insert(node, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn compute(&mut self, action: Action, operands: &[&Expr]) -> Result<usize> {
        let operands = operands.iter().map(|e| self.add(e)).collect::<Result<Vec<_>>>()?;
        Ok(self.node(Node::Compute(action, operands)))
    }

    fn add(&mut self, expr: &Expr) -> Result<usize> {
        match expr {
            Expr::Input(i) => match self.spreads.get(*i) {
                Some(Broadcast::Full) => Ok(self.node(Node::Input(*i))),
                Some(&spread) => self.compute(Action::Spread(spread, *i), &[]),
                None => Err(Error::internal(format!("an expression reads input {i} of {}", self.spreads.len()))),
            },
            Expr::Const(c) => self.compute(Action::Const(c.to_bits()), &[]),
            Expr::Scalar(_) | Expr::Size(_) => {
                let at =
                    (self.scalar)(expr).ok_or_else(|| Error::internal(format!("{expr:?} is not in the program")))?;
                self.compute(Action::Scalar(at), &[])
            }
            Expr::Unary(f, a) => self.compute(Action::Unary(*f), &[a.as_ref()]),
            Expr::Binary(f, a, b) => self.compute(Action::Binary(*f), &[a.as_ref(), b.as_ref()]),
            Expr::Select(c, a, b) => self.compute(Action::Select, &[c.as_ref(), a.as_ref(), b.as_ref()]),
        }
    }

    /// Whether each node is the same for every element.
    fn uniform(&self) -> Vec<bool> {
        let mut uniform = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            uniform.push(match node {
                Node::Input(_) => false,
                Node::Compute(Action::Spread(spread, _), _) => *spread == Broadcast::Scalar,
                Node::Compute(_, operands) => operands.iter().all(|&o| uniform[o]),
            });
        }
        uniform
    }

    fn finish(self, results: &[usize]) -> Tape {
        let uniform = self.uniform();
        let mut last: Vec<usize> = (0..self.nodes.len()).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            if let Node::Compute(_, operands) = node {
                operands.iter().for_each(|&o| last[o] = at);
            }
        }
        results.iter().for_each(|&r| last[r] = usize::MAX);
        let mut tape = Tape::default();
        let mut free = Vec::new();
        let mut sources: Vec<Source> = Vec::with_capacity(self.nodes.len());
        // Uniform registers are filled before all others and are never used again for anything else.
        for (at, node) in self.nodes.iter().enumerate() {
            let Node::Compute(action, operands) = node else {
                sources.push(match node {
                    Node::Input(i) => Source::Input(*i),
                    Node::Compute(..) => Source::Register(usize::MAX),
                });
                continue;
            };
            let to = if uniform[at] { None } else { free.pop() }.unwrap_or_else(|| {
                tape.registers += 1;
                tape.registers - 1
            });
            let instruction =
                Instruction { action: *action, operands: operands.iter().map(|&o| sources[o]).collect(), to };
            if uniform[at] { &mut tape.uniform } else { &mut tape.instructions }.push(instruction);
            sources.push(Source::Register(to));
            let mut done: Vec<usize> = operands.iter().copied().filter(|&o| last[o] == at && !uniform[o]).collect();
            done.sort_unstable();
            done.dedup();
            free.extend(done.into_iter().filter_map(|o| match sources[o] {
                Source::Register(r) => Some(r),
                Source::Input(_) => None,
            }));
        }
        tape.results = results.iter().map(|&r| sources[r]).collect();
        tape
    }
}

impl Tape {
    /// Compiles `exprs` over inputs that spread as `spreads` say; `scalar` gives the position of a run's scalar.
    pub(super) fn compile(
        exprs: &[&Expr],
        spreads: &[Broadcast],
        scalar: &dyn Fn(&Expr) -> Option<usize>,
    ) -> Result<Self> {
        let mut compiler = Compiler { spreads, scalar, nodes: Vec::new(), known: HashMap::new() };
        let results = exprs.iter().map(|e| compiler.add(e)).collect::<Result<Vec<_>>>()?;
        Ok(compiler.finish(&results))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_parts_are_computed_once_and_registers_are_used_again() {
        let x = || Expr::Input(0);
        let s = || x().sigmoid();
        let expr = s() * (Expr::Const(1.0) - s());
        let tape = Tape::compile(&[&expr, &s()], &[Broadcast::Full], &|_| None).unwrap();
        assert_eq!((tape.uniform.len(), tape.instructions.len()), (1, 3));
        let chain = (0..10).fold(x(), |e, _| e.tanh());
        assert_eq!(Tape::compile(&[&chain], &[Broadcast::Full], &|_| None).unwrap().registers, 2);
    }

    #[test]
    fn what_is_the_same_everywhere_is_computed_before_the_blocks() {
        let expr = (Expr::scalar("a") * Expr::Input(1)).sqrt() + Expr::Input(0);
        let tape = Tape::compile(&[&expr], &[Broadcast::Full, Broadcast::Scalar], &|_| Some(0)).unwrap();
        assert_eq!((tape.uniform.len(), tape.instructions.len()), (4, 1));
    }
}
