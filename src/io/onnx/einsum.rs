//! Einstein's sums of one or two operands, as transposes and products.

use super::arithmetic::elementwise;
use super::lower::{Lower, Outputs, one};
use super::moves::{transposed, with_axes};
use super::node::Node;
use super::products::product;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::Function;

/// The labels of the operands, and of what comes.
fn labels(equation: &str) -> Result<(Vec<Vec<char>>, Vec<char>)> {
    let wrong = || Error::unsupported(format!("the sum `{equation}`"));
    let bare: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match bare.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (bare.as_str(), None),
    };
    let operands: Vec<Vec<char>> = left.split(',').map(|part| part.chars().collect()).collect();
    let output = match right {
        Some(right) => right.chars().collect(),
        None => {
            // Those that are there once, in the order of the alphabet.
            let mut once: Vec<char> = operands.concat();
            once.sort_unstable();
            let all = once.clone();
            once.retain(|c| all.iter().filter(|a| *a == c).count() == 1);
            once
        }
    };
    let plain = |all: &[char]| {
        all.iter().enumerate().all(|(at, c)| c.is_ascii_alphabetic() && !all.get(..at).unwrap_or(&[]).contains(c))
    };
    let known = output.iter().all(|c| operands.iter().any(|o| o.contains(c)));
    if !known || !plain(&output) || !operands.iter().all(|o| plain(o)) {
        return Err(wrong());
    }
    Ok((operands, output))
}

/// A value whose axes have labels, under those of `wanted`: in another order, of size 1 where it has none.
fn under(lower: &Lower<'_>, x: &Val, own: &[char], wanted: &[char]) -> Result<Val> {
    let order: Vec<usize> = wanted.iter().filter_map(|c| own.iter().position(|o| o == c)).collect();
    let turned = if order.iter().copied().eq(0..own.len()) { x.clone() } else { transposed(lower, x, &order)? };
    if order.len() == wanted.len() {
        return Ok(turned);
    }
    let there: Vec<usize> = (0..wanted.len()).filter(|&at| own.contains(&wanted[at])).collect();
    with_axes(&turned, &|at| there.iter().position(|&t| t == at), wanted.len())
}

pub(super) fn einsum(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let equation = node.text("equation")?.ok_or_else(|| Error::data("expected an equation"))?;
    let (operands, out) = labels(equation)?;
    let refused = || Error::unsupported(format!("the sum `{equation}`, which is no product of two values"));
    if operands.len() != node.len() {
        return Err(Error::data(format!("the sum `{equation}` of {} operands", node.len())));
    }
    for (at, own) in operands.iter().enumerate() {
        if own.len() != node.input(at)?.rank() {
            return Err(Error::shape(format!("the sum `{equation}`: operand {at} has other dimensions")));
        }
    }
    let (a, b) = match &operands[..] {
        [own] if own.len() == out.len() => return one(under(lower, node.input(0)?, own, &out)?),
        [a, b] => ((node.input(0)?, node.name(0), a), (node.input(1)?, node.name(1), b)),
        _ => return Err(refused()),
    };
    let summed: Vec<char> = a.2.iter().copied().filter(|c| b.2.contains(c) && !out.contains(c)).collect();
    if operands.concat().iter().any(|c| !out.contains(c) && !summed.contains(c)) {
        return Err(refused());
    }
    let &[k] = &summed[..] else {
        if !summed.is_empty() {
            return Err(refused());
        }
        let (a, b) = (under(lower, a.0, a.2, &out)?, under(lower, b.0, b.2, &out)?);
        return elementwise(lower, "Mul", Function::Multiply, &[&a, &b]).and_then(one);
    };
    // A matrix of the file is the second, weights of steps are the first; else what comes first in the output is.
    let alone = |x: &[char], y: &[char]| -> Vec<char> { x.iter().copied().filter(|c| !y.contains(c)).collect() };
    let first = |own: Vec<char>| out.iter().position(|c| own.contains(c));
    let known = |x: &Val| matches!(x, Val::Host(_));
    let swap = if known(a.0) != known(b.0) {
        known(a.0)
    } else if let Val::Scores(_) = b.0 {
        true
    } else {
        !matches!(a.0, Val::Scores(_)) && first(alone(b.2, a.2)) < first(alone(a.2, b.2))
    };
    let (a, b) = if swap { (b, a) } else { (a, b) };
    let (own_a, own_b) = (alone(a.2, b.2), alone(b.2, a.2));
    let shared: Vec<char> = a.2.iter().copied().filter(|&c| c != k && b.2.contains(&c)).collect();
    if own_b.len() > 1 || known(b.0) && !shared.is_empty() || !known(b.0) && own_a.len() > 1 {
        return Err(refused());
    }
    // Rows and columns that there are not have a size of 1, under labels that nothing else has.
    let row = own_a.first().copied().filter(|_| !known(b.0)).unwrap_or('<');
    let column = own_b.first().copied().unwrap_or('>');
    let rows = if known(b.0) { own_a } else { vec![row] };
    let x = under(lower, a.0, a.2, &[&shared[..], &rows, &[k]].concat())?;
    let y = under(lower, b.0, b.2, &[&shared[..], &[k, column]].concat())?;
    let made = product(lower, &x, &y, [b.1, ""])?;
    let labels = [&shared[..], &rows, &[column]].concat();
    let kept: Vec<usize> = (0..labels.len()).filter(|&at| out.contains(&labels[at])).collect();
    let labels: Vec<char> = kept.iter().map(|&at| labels[at]).collect();
    let made = with_axes(&made, &|at| kept.get(at).copied(), kept.len())?;
    one(under(lower, &made, &labels, &out)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_come_apart() {
        let (operands, out) = labels("bth, ho -> bto").unwrap();
        assert_eq!(operands, [vec!['b', 't', 'h'], vec!['h', 'o']]);
        assert_eq!(out, ['b', 't', 'o']);
        assert_eq!(labels("ba,ac").unwrap().1, ['b', 'c']);
        for wrong in ["...i,ij->...j", "ii->i", "ab->abc", "a,b->aa"] {
            assert!(labels(wrong).is_err(), "{wrong}");
        }
    }
}
