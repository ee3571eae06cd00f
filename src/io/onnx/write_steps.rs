//! Layers over the steps of sequences as operators of ONNX.

use super::builder::{Writer, int, ints, text};
use super::schema::{Attribute, dtype};
use super::write::Value;
use crate::error::{Error, Result};
use crate::nn::{Conv1D, Cropping1D, Padding, Pooling1D, PoolingKind, Signal, Window};

impl Writer<'_> {
    /// The layer `name` over windows of `x`.
    pub fn convolved(&mut self, name: &str, layer: &Conv1D, x: &str) -> Result<String> {
        let kernel = self.parameters.get(&format!("{}.weight", name));
        let kernel = kernel.ok_or_else(|| Error::internal("a convolution without a kernel"))?;
        let &[filters, taps, inputs] = kernel.shape() else { return Err(Error::internal("a kernel")) };
        let values = kernel.f32s()?;
        let moved: Vec<f32> = (0..filters * inputs * taps)
            .map(|at| {
                let (f, i, t) = (at / (inputs * taps), at / taps % inputs, at % taps);
                values[(f * taps + t) * inputs + i]
            })
            .collect();
        let w = self.floats(&format!("{}.weight", name), &[filters, inputs, taps], &moved);
        let turned = self.op("Transpose", &[x], vec![ints("perm", &[0, 2, 1])]);
        let mut names = vec![turned, w];
        if layer.bias {
            names.push(self.parameter(&format!("{}.bias", name))?.0);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let y = self.op("Conv", &names, windows(layer.window, true, false)?);
        let y = self.op("Transpose", &[&y], vec![ints("perm", &[0, 2, 1])]);
        self.activation(layer.activation, &y)
    }

    /// A step of each window of `x`.
    pub fn pooled(&mut self, layer: &Pooling1D, x: &str) -> Result<String> {
        let turned = self.op("Transpose", &[x], vec![ints("perm", &[0, 2, 1])]);
        let op = if layer.kind == PoolingKind::Max { "MaxPool" } else { "AveragePool" };
        let y = self.op(op, &[&turned], windows(layer.window, layer.kind == PoolingKind::Max, true)?);
        Ok(self.op("Transpose", &[&y], vec![ints("perm", &[0, 2, 1])]))
    }

    /// Some of the steps of a sequence, or zeros around them.
    pub fn cropped(&mut self, layer: &Cropping1D, x: &str) -> String {
        let around = [0, layer.before.min(0), 0, 0, layer.after.min(0), 0].map(|n| i64::from(-n));
        let mut y = x.to_string();
        if around.iter().any(|&n| n != 0) {
            let pads = self.whole(&around);
            y = self.op("Pad", &[&y, &pads], Vec::new());
        }
        if (layer.before.max(0), layer.after.max(0), layer.stride) != (0, 0, 1) {
            let end = if layer.after > 0 { i64::from(-layer.after) } else { i64::MAX };
            let (first, end, axis) = (self.whole(&[layer.before.max(0).into()]), self.whole(&[end]), self.whole(&[1]));
            let stride = self.whole(&[layer.stride as i64]);
            y = self.op("Slice", &[&y, &first, &end, &axis, &stride], Vec::new());
        }
        y
    }

    /// One row of all steps of each sequence, of those kept where some are not.
    pub fn pooling(&mut self, kind: PoolingKind, x: &Value) -> Result<String> {
        let mask = match (&x.mask, &x.lengths) {
            (Some(mask), _) => Some(mask.clone()),
            (None, Some(lengths)) => Some(self.within(&x.name, lengths)),
            (None, None) => None,
        };
        let Some(mask) = mask else {
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
            if x.mask.is_none() {
                return Err(Error::unsupported("the largest of sequences of different lengths"));
            }
            // As Keras has it, over masked steps too.
            return Ok(self.op("ReduceMax", &[&x.name], vec![ints("axes", &[1]), int("keepdims", 0)]));
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
            if like.lengths.is_some() {
                return Err(Error::unsupported("a row at the steps of sequences of different lengths"));
            }
            let axis = self.whole(&[1]);
            let row = self.op("Unsqueeze", &[&x.name, &axis], Vec::new());
            let shape = self.op("Shape", &[&like.name], Vec::new());
            let (first, second) = (self.whole(&[1]), self.whole(&[2]));
            let steps = self.op("Slice", &[&shape, &first, &second], Vec::new());
            let ones = self.whole(&[1]);
            let target = self.op("Concat", &[&ones, &steps, &ones], vec![int("axis", 0)]);
            return Ok(vec![value(self.op("Expand", &[&row, &target], Vec::new()), None)]);
        }
        match (&x.lengths, &like.lengths) {
            // As long as an input says.
            (None, Some(lengths)) => Ok(vec![value(x.name.clone(), Some(lengths.clone()))]),
            // Back to all steps, zero past each sequence's end.
            (Some(lengths), None) => {
                let inside = self.within(&x.name, lengths);
                let last = self.whole(&[2]);
                let column = self.op("Unsqueeze", &[&inside, &last], Vec::new());
                Ok(vec![value(self.op("Mul", &[&x.name, &column], Vec::new()), None)])
            }
            (None, None) if x.signal.axis() == like.signal.axis() => Ok(vec![value(x.name.clone(), None)]),
            _ => Err(Error::unsupported("steps of one sequence at those of another")),
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
        if let Some(mask) = &value.mask {
            let one = self.whole(&[1]);
            seen = Some(self.op("Unsqueeze", &[mask, &one], Vec::new()));
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
            let last = self.whole(&[2]);
            let column = self.op("Unsqueeze", &[mask, &last], Vec::new());
            y = self.op("Mul", &[&y, &column], Vec::new());
        }
        Ok(vec![Value { name: y, signal, mask: query.mask.clone(), lengths: None }])
    }
}

/// The attributes of windows over steps, of a pool or a convolution.
fn windows(window: Window, dilates: bool, pools: bool) -> Result<Vec<Attribute>> {
    let Window { taps, stride, dilation, padding } = window;
    let mut all = vec![ints("kernel_shape", &[taps as i64]), ints("strides", &[stride as i64])];
    if dilation != 1 && !dilates {
        return Err(Error::unsupported("a mean of steps that are not beside each other"));
    }
    if dilates {
        all.push(ints("dilations", &[dilation as i64]));
    }
    let beyond = ((taps - 1) * dilation) as i64;
    let pads = match padding {
        Padding::Valid => [0, 0],
        Padding::Same if stride == 1 => [beyond / 2, beyond - beyond / 2],
        Padding::Same if dilation == 1 => {
            all.push(text("auto_pad", "SAME_UPPER"));
            return Ok(all);
        }
        // How much is padded follows from the number of steps, and what runs graphs disagrees on it.
        Padding::Same => {
            return Err(Error::unsupported("as many steps as go in, of windows with a stride and a dilation"));
        }
        Padding::Causal => [beyond, 0],
        Padding::Explicit { before: before @ 0.., after: after @ 0.. } => [before.into(), after.into()],
        Padding::Explicit { .. } => return Err(Error::unsupported("windows over a part of the steps")),
    };
    if pools && pads.iter().any(|&n| n >= taps as i64) {
        return Err(Error::unsupported(format!("a pool of {taps} steps beside {pads:?} that are added")));
    }
    if pads != [0, 0] {
        all.push(ints("pads", &pads));
    }
    Ok(all)
}
