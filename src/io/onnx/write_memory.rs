//! A working memory as operators of ONNX: attention to the h of the steps before, by the tokens that followed them.

use super::builder::{Writer, info, int, ints, text};
use super::schema::dtype;
use super::write::Value;
use crate::error::{Error, Result};
use crate::graph::memory::NOTHING;
use crate::nn::{Mixture, Node as Placed, WorkingMemory};

/// The token of a step that was never read.
const NONE: i64 = -1;

impl Writer<'_> {
    /// ln p `[B, T, V]` of a memory over h, logits and tokens. One that goes on from run to run reads the h and the tokens
    /// of its window as `NAME.h_0` `[B, W, H]` and `NAME.tokens_0` `[B, W]`, -1 where there were none, and gives those of
    /// the next run as `NAME.h_n` and `NAME.tokens_n`.
    pub fn recalled(&mut self, node: &Placed, memory: &WorkingMemory, read: &[Value]) -> Result<String> {
        let [hidden, logits, tokens] = read else { return Err(Error::internal("a working memory without its inputs")) };
        if memory.stateful && read.iter().any(|v| v.lengths.is_some()) {
            return Err(Error::unsupported("what goes on from sequences of different lengths"));
        }
        let features = hidden.signal.features().unwrap_or(0);
        let (keys, kept, before) = match memory.stateful {
            true => self.remembered(node, memory, features, &hidden.name, &tokens.name),
            false => (hidden.name.clone(), tokens.name.clone(), 0),
        };
        let (queries, sentinel) = self.queries(node, memory.mixture, &hidden.name)?;
        let turned = self.op("Transpose", &[&keys], vec![ints("perm", &[0, 2, 1])]);
        let scores = self.op("MatMul", &[&queries, &turned], Vec::new());
        let seen = self.seen(memory.window as i64, before, &scores, &kept);
        let (shares, total) = self.shares(&scores, &seen);
        let found = self.by_token(&shares, &kept, &logits.name);

        let last = vec![ints("axes", &[-1]), int("keepdims", 1)];
        let log_sum = self.op("ReduceLogSumExp", &[&logits.name], last);
        let (of_memory, of_network) = self.parts(memory.mixture, &total, sentinel.as_ref().unwrap_or(&log_sum));
        let said = self.op("Sub", &[&logits.name, &log_sum], Vec::new());
        let said = self.op("Add", &[&said, &of_network], Vec::new());
        let found = self.log(&found);
        let found = self.op("Add", &[&found, &of_memory], Vec::new());
        Ok(self.log_add(&said, &found))
    }

    /// The h and the tokens of the window before this run and of this run, and how many steps lie before it.
    fn remembered(
        &mut self,
        node: &Placed,
        memory: &WorkingMemory,
        features: usize,
        hidden: &str,
        tokens: &str,
    ) -> (String, String, i64) {
        let window = memory.window;
        let mut carried = |part: &str, kind: i32, sizes: &[Option<usize>], own: &str| {
            let (given, next) = (format!("{}.{part}_0", node.name), format!("{}.{part}_n", node.name));
            let names = ["batch", "", ""];
            self.graph.input.push(info(&given, kind, sizes, &names[..sizes.len()]));
            self.graph.output.push(info(&next, kind, sizes, &names[..sizes.len()]));
            let all = self.op("Concat", &[&given, own], vec![int("axis", 1)]);
            let (first, end, axis) = (self.whole(&[-(window as i64)]), self.whole(&[i64::MAX]), self.whole(&[1]));
            let rest = self.op("Slice", &[&all, &first, &end, &axis], Vec::new());
            self.state(&rest, &next);
            all
        };
        let keys = carried("h", dtype::FLOAT, &[None, Some(window), Some(features)], hidden);
        let kept = carried("tokens", dtype::INT64, &[None, Some(window)], tokens);
        (keys, kept, window as i64)
    }

    /// q `[B, T, H]`, and q·s `[B, T, 1]` of a sentinel.
    fn queries(&mut self, node: &Placed, mixture: Mixture, hidden: &str) -> Result<(String, Option<String>)> {
        Ok(match mixture {
            Mixture::Linear { theta, .. } | Mixture::Global { theta, .. } => {
                let theta = self.number(theta);
                (self.op("Mul", &[hidden, &theta], Vec::new()), None)
            }
            Mixture::Pointer => {
                let [weight, bias, sentinel] =
                    ["weight", "bias", "sentinel"].map(|role| format!("{}.{role}", node.name));
                let q = self.linear(hidden, &weight, Some(&bias))?;
                let q = self.op("Tanh", &[&q], Vec::new());
                let beside = self.linear(&q, &sentinel, None)?;
                (q, Some(beside))
            }
        })
    }

    /// Which of the keys each step sees, by the scores `[B, T, K]`: those of the `window` steps before it, where step t
    /// is key t + `before`, that were read.
    fn seen(&mut self, window: i64, before: i64, scores: &str, kept: &str) -> String {
        let [zero, one] = [0, 1].map(|n| self.index(n));
        let shape = self.op("Shape", &[scores], Vec::new());
        let [rows, columns] = [1, 2].map(|axis| {
            let at = self.index(axis);
            let count = self.op("Gather", &[&shape, &at], vec![int("axis", 0)]);
            self.op("Range", &[&zero, &count, &one], Vec::new())
        });
        let (before, last) = (self.index(before), self.whole(&[1]));
        let rows = self.op("Add", &[&rows, &before], Vec::new());
        let rows = self.op("Unsqueeze", &[&rows, &last], Vec::new());
        let distance = self.op("Sub", &[&rows, &columns], Vec::new());
        let window = self.index(window);
        let earlier = self.op("Greater", &[&distance, &zero], Vec::new());
        let near = self.op("LessOrEqual", &[&distance, &window], Vec::new());
        let inside = self.op("And", &[&earlier, &near], Vec::new());
        let none = self.index(NONE);
        let read = self.op("Greater", &[kept, &none], Vec::new());
        let middle = self.whole(&[1]);
        let read = self.op("Unsqueeze", &[&read, &middle], Vec::new());
        self.op("And", &[&inside, &read], Vec::new())
    }

    /// The softmax of the scores that are seen `[B, T, K]`, and the logarithm of its sum `[B, T, 1]`.
    fn shares(&mut self, scores: &str, seen: &str) -> (String, String) {
        let (nothing, zero) = (self.number(NOTHING), self.number(0.0));
        let last = || vec![ints("axes", &[-1]), int("keepdims", 1)];
        let scores = self.op("Where", &[seen, scores, &nothing], Vec::new());
        let largest = self.op("ReduceMax", &[&scores], last());
        let less = self.op("Sub", &[&scores, &largest], Vec::new());
        let powers = self.op("Exp", &[&less], Vec::new());
        let powers = self.op("Where", &[seen, &powers, &zero], Vec::new());
        let axis = self.whole(&[-1]);
        let sum = self.op("ReduceSum", &[&powers, &axis], vec![int("keepdims", 1)]);
        let one = self.number(1.0);
        // The largest has a power of one: less is the sum of none.
        let divisor = self.op("Max", &[&sum, &one], Vec::new());
        let shares = self.op("Div", &[&powers, &divisor], Vec::new());
        let logarithm = self.op("Log", &[&divisor], Vec::new());
        let total = self.op("Add", &[&largest, &logarithm], Vec::new());
        (shares, total)
    }

    /// The shares of the keys by the tokens that followed them: `[B, T, V]`, as the logits are.
    fn by_token(&mut self, shares: &str, kept: &str, logits: &str) -> String {
        // What follows the last is not known, and no step sees it.
        let [first, second, end, axis] = [0, 1, i64::MAX, 1].map(|n| self.whole(&[n]));
        let rest = self.op("Slice", &[kept, &second, &end, &axis], Vec::new());
        let any = self.op("Slice", &[kept, &first, &second, &axis], Vec::new());
        let next = self.op("Concat", &[&rest, &any], vec![int("axis", 1)]);
        // Steps that were not read have no share, whichever token they count for.
        let zero = self.index(0);
        let next = self.op("Max", &[&next, &zero], Vec::new());
        let next = self.op("Unsqueeze", &[&next, &axis], Vec::new());
        let shape = self.op("Shape", &[shares], Vec::new());
        let next = self.op("Expand", &[&next, &shape], Vec::new());
        let shape = self.op("Shape", &[logits], Vec::new());
        let zeros = self.op("ConstantOfShape", &[&shape], Vec::new());
        let attributes = vec![int("axis", 2), text("reduction", "add")];
        self.op("ScatterElements", &[&zeros, &next, shares], attributes)
    }

    /// ln of the memory's part and of the network's, from the logarithms of the sum over keys and of what it competes with.
    fn parts(&mut self, mixture: Mixture, total: &str, rest: &str) -> (String, String) {
        let advantage = match mixture {
            Mixture::Linear { lambda, .. } => {
                let half = self.number(NOTHING / 2.0);
                let something = self.op("Greater", &[total, &half], Vec::new());
                let log = |share: f32| if share > 0.0 { share.ln() } else { NOTHING };
                return [(lambda, NOTHING), (1.0 - lambda, 0.0)]
                    .map(|(share, nothing)| {
                        let (share, nothing) = (self.number(log(share)), self.number(nothing));
                        self.op("Where", &[&something, &share, &nothing], Vec::new())
                    })
                    .into();
            }
            Mixture::Global { alpha, .. } => {
                let alpha = self.number(alpha);
                let sum = self.op("Add", &[total, &alpha], Vec::new());
                self.op("Sub", &[&sum, rest], Vec::new())
            }
            Mixture::Pointer => self.op("Sub", &[total, rest], Vec::new()),
        };
        let turned = self.op("Neg", &[&advantage], Vec::new());
        [turned, advantage]
            .map(|of| {
                let soft = self.op("Softplus", &[&of], Vec::new());
                self.op("Neg", &[&soft], Vec::new())
            })
            .into()
    }

    /// ln of a share, which may be zero.
    fn log(&mut self, share: &str) -> String {
        let (zero, nothing) = (self.number(0.0), self.number(NOTHING));
        let any = self.op("Greater", &[share, &zero], Vec::new());
        let logarithm = self.op("Log", &[share], Vec::new());
        self.op("Where", &[&any, &logarithm, &nothing], Vec::new())
    }

    /// ln(e^a + e^b)
    fn log_add(&mut self, a: &str, b: &str) -> String {
        let largest = self.op("Max", &[a, b], Vec::new());
        let powers = [a, b].map(|x| {
            let less = self.op("Sub", &[x, &largest], Vec::new());
            self.op("Exp", &[&less], Vec::new())
        });
        let sum = self.op("Add", &[&powers[0], &powers[1]], Vec::new());
        let logarithm = self.op("Log", &[&sum], Vec::new());
        self.op("Add", &[&largest, &logarithm], Vec::new())
    }
}
