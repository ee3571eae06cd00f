//! What is known of a graph before its dimensions are.

use super::schema::{self, dtype};
use std::collections::{HashMap, HashSet};

/// What a graph's names are.
pub(super) struct Facts<'m> {
    /// The versions of operators.
    pub imports: &'m [schema::OperatorSet],
    /// Functions by domain, name and overload.
    pub functions: HashMap<(&'m str, &'m str, &'m str), &'m schema::Function>,
    /// How many nodes read a name.
    pub uses: HashMap<&'m str, usize>,
    /// How many tokens an input may be, where a table tells.
    pub vocabularies: HashMap<&'m str, usize>,
    /// Inputs that are weights.
    pub weights: HashSet<&'m str>,
    /// Inputs, and initialisers, that say how long sequences are.
    pub lengths: HashSet<&'m str>,
}

impl<'m> Facts<'m> {
    pub fn of(model: &'m schema::Model, graph: &'m schema::Graph) -> Self {
        let mut uses: HashMap<&str, usize> = HashMap::new();
        let mut makers: HashMap<&str, &schema::Node> = HashMap::new();
        count_uses(graph, &mut uses);
        for node in &graph.node {
            makers.extend(node.output.iter().map(|name| (name.as_str(), node)));
        }
        let given =
            graph.input.iter().map(|i| i.name.as_str()).chain(graph.initializer.iter().map(|t| t.name.as_str()));
        let given: HashSet<&str> = given.filter(|name| !name.is_empty()).collect();
        let tables: HashMap<&str, &schema::Tensor> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        let (mut weights, mut lengths, mut vocabularies) = (HashSet::new(), HashSet::new(), HashMap::new());
        for node in &graph.node {
            match node.op_type.as_str() {
                "LSTM" => {
                    let from = |at: usize| node.input.get(at).map(|n| origin(&makers, n)).filter(|n| given.contains(n));
                    weights.extend([1, 2, 3, 7].into_iter().filter_map(from));
                    lengths.extend(from(4));
                }
                "Gather" => {
                    let table = node.input.first().and_then(|n| tables.get(n.as_str()));
                    let rows = table.and_then(|t| t.dims.first()).and_then(|&n| usize::try_from(n).ok());
                    if let (Some(rows), Some(tokens)) = (rows, node.input.get(1).map(|n| origin(&makers, n))) {
                        vocabularies.insert(tokens, rows);
                    }
                }
                _ => {}
            }
        }
        // What says which step of a sequence is taken, or is compared with the numbers of steps, says how long it is.
        let mut rows: HashSet<&str> = graph.input.iter().filter(|i| is_row(i)).map(|i| i.name.as_str()).collect();
        // Tokens are none, whatever is around them.
        for node in &graph.node {
            let tokens = match node.op_type.as_str() {
                "Gather" if node.input.first().is_some_and(|n| tables.contains_key(n.as_str())) => node.input.get(1),
                "OneHot" => node.input.first(),
                _ => None,
            };
            let tokens = tokens.map(|name| roots(&makers, name)).unwrap_or_default();
            tokens.iter().for_each(|name| {
                rows.remove(name);
            });
        }
        for node in &graph.node {
            let read: &[usize] = match node.op_type.as_str() {
                "GatherElements" | "GatherND" | "Gather" => &[1],
                "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => &[0, 1],
                "LSTM" => &[4],
                "Cast" if to_float(node) => &[0],
                _ => &[],
            };
            for name in read.iter().filter_map(|&at| node.input.get(at)) {
                lengths.extend(roots(&makers, name).into_iter().filter(|n| rows.contains(n)));
            }
        }
        let key = |f: &'m schema::Function| (f.domain.as_str(), f.name.as_str(), f.overload.as_str());
        let functions = model.functions.iter().map(|f| (key(f), f)).collect();
        Self { imports: &model.opset_import, functions, uses, vocabularies, weights, lengths }
    }
}

/// How often each name is read, in branches too.
fn count_uses<'m>(graph: &'m schema::Graph, uses: &mut HashMap<&'m str, usize>) {
    for node in &graph.node {
        for name in &node.input {
            *uses.entry(name).or_default() += 1;
        }
        for branch in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
            count_uses(branch, uses);
        }
    }
    for output in &graph.output {
        *uses.entry(&output.name).or_default() += 1;
    }
}

/// Whether an input is one dimension of whole numbers.
fn is_row(info: &schema::ValueInfo) -> bool {
    let kind = info.kind.as_ref().and_then(|k| k.tensor.as_ref());
    kind.is_some_and(|k| {
        matches!(k.elem_type, dtype::INT64 | dtype::INT32) && k.shape.as_ref().is_some_and(|s| s.dim.len() == 1)
    })
}

fn to_float(node: &schema::Node) -> bool {
    let to = node.attribute.iter().find(|a| a.name == "to").map(|a| a.i);
    to.is_some_and(|to| [dtype::FLOAT, dtype::DOUBLE, dtype::FLOAT16].map(i64::from).contains(&to))
}

/// The most names that are followed from one.
const FOLLOWED: usize = 64;

/// What a whole number is computed from by what keeps one number of each sequence.
fn roots<'m>(makers: &HashMap<&'m str, &'m schema::Node>, name: &'m str) -> HashSet<&'m str> {
    let (mut all, mut open) = (HashSet::from([name]), vec![name]);
    while let Some(name) = open.pop() {
        let Some(node) = makers.get(name).filter(|_| all.len() < FOLLOWED) else { continue };
        let kept =
            ["Cast", "Identity", "Add", "Sub", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Concat", "TopK", "Tile"];
        if kept.contains(&node.op_type.as_str()) {
            open.extend(node.input.iter().map(String::as_str).filter(|n| all.insert(n)));
        }
    }
    all
}

/// What a value is, but for casts.
fn origin<'m>(makers: &HashMap<&'m str, &'m schema::Node>, mut name: &'m str) -> &'m str {
    for _ in 0..8 {
        match makers.get(name) {
            Some(node) if matches!(node.op_type.as_str(), "Cast" | "Identity") && !node.input.is_empty() => {
                name = &node.input[0];
            }
            _ => break,
        }
    }
    name
}
