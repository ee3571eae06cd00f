//! Layers over the steps of sequences as operators of ONNX.

use super::builder::{Writer, int, ints};
use super::schema::dtype;
use super::write::Value;
use crate::error::{Error, Result};
use crate::nn::{PoolingKind, Signal};

impl Writer<'_> {
    /// One row of all steps of each sequence, of those kept where some are not.
    pub fn pooling(&mut self, kind: PoolingKind, x: &Value) -> Result<String> {
        let Some(mask) = self.kept(x) else {
            return Ok(match kind {
                PoolingKind::Average => self.op("ReduceMean", &[&x.name], vec![ints("axes", &[1]), int("keepdims", 0)]),
                PoolingKind::Max => self.op("ReduceMax", &[&x.name], vec![ints("axes", &[1]), int("keepdims", 0)]),
                PoolingKind::Sum => {
                    let axis = self.whole(&[1]);
                    self.op("ReduceSum", &[&x.name, &axis], vec![int("keepdims", 0)])
                }
            });
        };
        if kind == PoolingKind::Max {
            // As Keras has it, over masked steps too.
            let seen = if x.mask.is_some() { x.name.clone() } else { self.or(&x.name, &mask, f32::MIN) };
            return Ok(self.op("ReduceMax", &[&seen], vec![ints("axes", &[1]), int("keepdims", 0)]));
        }
        let (axis, last) = (self.whole(&[1]), self.whole(&[2]));
        let column = self.op("Unsqueeze", &[&mask, &last], Vec::new());
        let kept = self.op("Mul", &[&x.name, &column], Vec::new());
        let sum = self.op("ReduceSum", &[&kept, &axis], vec![int("keepdims", 0)]);
        if kind == PoolingKind::Sum {
            return Ok(sum);
        }
        let count = self.op("ReduceSum", &[&column, &axis], vec![int("keepdims", 0)]);
        let one = self.number(1.0);
        let count = self.op("Max", &[&count, &one], Vec::new());
        Ok(self.op("Div", &[&sum, &count], Vec::new()))
    }

    /// 1 at the steps of x that are kept, `[B, T]`, where some are not.
    pub fn kept(&mut self, x: &Value) -> Option<String> {
        match (&x.mask, &x.lengths) {
            (Some(mask), _) => Some(mask.clone()),
            (None, Some(lengths)) => Some(self.within(&x.name, lengths)),
            (None, None) => None,
        }
    }

    /// x `[B, T, F]` at the steps that are kept, and `fill` at others, whatever x is there.
    pub fn or(&mut self, x: &str, kept: &str, fill: f32) -> String {
        let (last, fill) = (self.whole(&[2]), self.number(fill));
        let column = self.op("Unsqueeze", &[kept, &last], Vec::new());
        let column = self.op("Cast", &[&column], vec![int("to", i64::from(dtype::BOOL))]);
        self.op("Where", &[&column, x, &fill], Vec::new())
    }

    /// One step `[B, F]` of each sequence, from its end where `at` is below zero; zero where there is none.
    pub fn step(&mut self, x: &Value, at: i64) -> String {
        let Some(lengths) = &x.lengths else {
            let at = self.index(at);
            return self.op("Gather", &[&x.name, &at], vec![int("axis", 1)]);
        };
        let inside = self.within(&x.name, lengths);
        let (axis, zero) = (self.whole(&[1]), self.number(0.0));
        // Steps that are there count up from one; the last has as many as there are.
        let time = self.index(1);
        let numbers = self.op("CumSum", &[&inside, &time], Vec::new());
        let numbers = self.op("Mul", &[&numbers, &inside], Vec::new());
        let wanted = match at {
            0.. => self.number((at + 1) as f32),
            _ => {
                let count = self.op("ReduceSum", &[&inside, &axis], vec![int("keepdims", 1)]);
                let back = self.number((at + 1) as f32);
                let wanted = self.op("Add", &[&count, &back], Vec::new());
                // No step has a number below one.
                let none = self.number(-1.0);
                let there = self.op("Greater", &[&wanted, &zero], Vec::new());
                self.op("Where", &[&there, &wanted, &none], Vec::new())
            }
        };
        let only = self.op("Equal", &[&numbers, &wanted], Vec::new());
        let last = self.whole(&[2]);
        let only = self.op("Unsqueeze", &[&only, &last], Vec::new());
        let all = self.op("Where", &[&only, &x.name, &zero], Vec::new());
        self.op("ReduceSum", &[&all, &axis], vec![int("keepdims", 0)])
    }

    /// A softmax over the steps of each sequence.
    pub fn time_softmax(&mut self, x: &Value) -> String {
        let Some(kept) = self.kept(x) else { return self.op("Softmax", &[&x.name], vec![int("axis", 1)]) };
        let seen = self.or(&x.name, &kept, f32::MIN);
        let shares = self.op("Softmax", &[&seen], vec![int("axis", 1)]);
        self.or(&shares, &kept, 0.0)
    }

    /// The steps of each sequence from its last to its first: `[B, T, F]`, zero past its end.
    pub fn turned(&mut self, x: &Value) -> String {
        let Some(lengths) = &x.lengths else {
            let [start, end, axis, step] = [-1, i64::MIN + 1, 1, -1].map(|n| self.whole(&[n]));
            return self.op("Slice", &[&x.name, &start, &end, &axis, &step], Vec::new());
        };
        let inside = self.within(&x.name, lengths);
        let (time, zero) = (self.index(1), self.number(0.0));
        let numbers = self.op("CumSum", &[&inside, &time], Vec::new());
        let axis = self.whole(&[1]);
        let count = self.op("ReduceSum", &[&inside, &axis], vec![int("keepdims", 1)]);
        let places = self.op("Sub", &[&count, &numbers], Vec::new());
        // Past the end any step will do.
        let places = self.op("Max", &[&places, &zero], Vec::new());
        let places = self.op("Cast", &[&places], vec![int("to", i64::from(dtype::INT64))]);
        let turned = self.taken(&x.name, &places);
        self.or(&turned, &inside, 0.0)
    }

    /// 1 at the steps of x `[B, T, F]` that are within lengths `[B]`, else 0: `[B, T]`.
    pub fn within(&mut self, x: &str, lengths: &str) -> String {
        let shape = self.op("Shape", &[x], Vec::new());
        let (at, zero, one) = (self.index(1), self.index(0), self.index(1));
        let steps = self.op("Gather", &[&shape, &at], vec![int("axis", 0)]);
        let range = self.op("Range", &[&zero, &steps, &one], Vec::new());
        let wide = self.op("Cast", &[lengths], vec![int("to", i64::from(dtype::INT64))]);
        let axis = self.whole(&[1]);
        let wide = self.op("Unsqueeze", &[&wide, &axis], Vec::new());
        let inside = self.op("Less", &[&range, &wide], Vec::new());
        self.op("Cast", &[&inside], vec![int("to", i64::from(dtype::FLOAT))])
    }

    /// A value at the steps of another.
    pub fn along(&mut self, read: &[Value], signal: Signal) -> Result<Vec<Value>> {
        let [x, like] = read else { return Err(Error::internal("a value and a sequence")) };
        let value = |name: String, lengths: Option<String>| Value { name, signal, mask: None, lengths };
        if x.mask.is_some() || like.mask.is_some() {
            return Err(Error::unsupported("values at the steps that a mask keeps of others"));
        }
        if x.signal.axis().is_none() {
            let axis = self.whole(&[1]);
            let row = self.op("Unsqueeze", &[&x.name, &axis], Vec::new());
            let shape = self.op("Shape", &[&like.name], Vec::new());
            let (first, second) = (self.whole(&[1]), self.whole(&[2]));
            let steps = self.op("Slice", &[&shape, &first, &second], Vec::new());
            let ones = self.whole(&[1]);
            let target = self.op("Concat", &[&ones, &steps, &ones], vec![int("axis", 0)]);
            return Ok(vec![value(self.op("Expand", &[&row, &target], Vec::new()), like.lengths.clone())]);
        }
        match (&x.lengths, &like.lengths) {
            // As long as an input says.
            (None, Some(lengths)) => Ok(vec![value(x.name.clone(), Some(lengths.clone()))]),
            // Back to all steps, zero past each sequence's end.
            (Some(lengths), None) => {
                let inside = self.within(&x.name, lengths);
                Ok(vec![value(self.or(&x.name, &inside, 0.0), None)])
            }
            (None, None) if x.signal.axis() == like.signal.axis() => Ok(vec![value(x.name.clone(), None)]),
            // As many as the other has, zeros where there are none.
            _ => {
                let own = match &x.lengths {
                    Some(lengths) => {
                        let inside = self.within(&x.name, lengths);
                        self.or(&x.name, &inside, 0.0)
                    }
                    None => x.name.clone(),
                };
                let [zero, one, two, three] = [0, 1, 2, 3].map(|n| self.whole(&[n]));
                let shapes = [&own, &like.name].map(|name| self.op("Shape", &[name], Vec::new()));
                let batch = self.op("Slice", &[&shapes[0], &zero, &one], Vec::new());
                let steps = self.op("Slice", &[&shapes[1], &one, &two], Vec::new());
                let features = self.op("Slice", &[&shapes[0], &two, &three], Vec::new());
                let shape = self.op("Concat", &[&batch, &steps, &features], vec![int("axis", 0)]);
                let zeros = self.op("ConstantOfShape", &[&shape], Vec::new());
                let long = self.op("Concat", &[&own, &zeros], vec![int("axis", 1)]);
                let name = self.op("Slice", &[&long, &zero, &steps, &one], Vec::new());
                Ok(vec![value(name, like.lengths.clone())])
            }
        }
    }

    pub fn attention(
        &mut self,
        read: &[Value],
        signal: Signal,
        scale: Option<String>,
        additive: bool,
        causal: bool,
    ) -> Result<Vec<Value>> {
        let [query, value, rest @ ..] = read else { return Err(Error::internal("queries and values")) };
        let key = rest.first().unwrap_or(value);
        let scores = if additive {
            let (two, one) = (self.whole(&[2]), self.whole(&[1]));
            let (q, k) = (
                self.op("Unsqueeze", &[&query.name, &two], Vec::new()),
                self.op("Unsqueeze", &[&key.name, &one], Vec::new()),
            );
            let sum = self.op("Add", &[&q, &k], Vec::new());
            let mut fits = self.op("Tanh", &[&sum], Vec::new());
            if let Some(scale) = scale {
                fits = self.op("Mul", &[&fits, &scale], Vec::new());
            }
            let last = self.whole(&[-1]);
            self.op("ReduceSum", &[&fits, &last], vec![int("keepdims", 0)])
        } else {
            let turned = self.op("Transpose", &[&key.name], vec![ints("perm", &[0, 2, 1])]);
            let fits = self.op("MatMul", &[&query.name, &turned], Vec::new());
            match scale {
                Some(scale) => self.op("Mul", &[&fits, &scale], Vec::new()),
                None => fits,
            }
        };
        let mut seen: Option<String> = None;
        if let Some(kept) = self.kept(value) {
            let one = self.whole(&[1]);
            seen = Some(self.op("Unsqueeze", &[&kept, &one], Vec::new()));
        }
        if causal {
            let (shape, zero, one) = (self.op("Shape", &[&scores], Vec::new()), self.index(0), self.index(1));
            let (rows, columns) = (self.index(1), self.index(2));
            let rows = self.op("Gather", &[&shape, &rows], vec![int("axis", 0)]);
            let columns = self.op("Gather", &[&shape, &columns], vec![int("axis", 0)]);
            let rows = self.op("Range", &[&zero, &rows, &one], Vec::new());
            let columns = self.op("Range", &[&zero, &columns, &one], Vec::new());
            let last = self.whole(&[1]);
            let rows = self.op("Unsqueeze", &[&rows, &last], Vec::new());
            let earlier = self.op("LessOrEqual", &[&columns, &rows], Vec::new());
            let earlier = self.op("Cast", &[&earlier], vec![int("to", i64::from(dtype::FLOAT))]);
            seen = Some(match seen {
                Some(seen) => self.op("Mul", &[&seen, &earlier], Vec::new()),
                None => earlier,
            });
        }
        let weights = match &seen {
            None => self.op("Softmax", &[&scores], vec![int("axis", -1)]),
            Some(seen) => {
                // What is not seen has no share, and a query without any gives zeros.
                let (one, far) = (self.number(1.0), self.number(-1e30));
                let hidden = self.op("Sub", &[&one, seen], Vec::new());
                let away = self.op("Mul", &[&hidden, &far], Vec::new());
                let scores = self.op("Add", &[&scores, &away], Vec::new());
                let shares = self.op("Softmax", &[&scores], vec![int("axis", -1)]);
                self.op("Mul", &[&shares, seen], Vec::new())
            }
        };
        let mut y = self.op("MatMul", &[&weights, &value.name], Vec::new());
        if let Some(mask) = &query.mask {
            y = self.or(&y, mask, 0.0);
        }
        Ok(vec![Value { name: y, signal, mask: query.mask.clone(), lengths: query.lengths.clone() }])
    }
}
