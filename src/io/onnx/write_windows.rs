//! Layers over windows of steps as operators of ONNX, whose convolutions and pools have the steps last.

use super::builder::{Writer, int, ints, text};
use super::schema::{Attribute, dtype};
use super::write::Value;
use crate::error::{Error, Result};
use crate::nn::{Conv1D, Cropping1D, Padding, Pooling1D, PoolingKind, Signal, Window};

impl Writer<'_> {
    /// The layer `name` over windows of x; each sequence ends where its own steps do.
    pub fn convolved(&mut self, name: &str, layer: &Conv1D, x: &Value, signal: Signal) -> Result<Value> {
        let kernel = self.parameters.get(&format!("{name}.weight"));
        let kernel = kernel.ok_or_else(|| Error::internal("a convolution without a kernel"))?;
        let &[filters, taps, inputs] = kernel.shape() else { return Err(Error::internal("a kernel")) };
        let values = kernel.f32s()?;
        let moved: Vec<f32> = (0..filters * inputs * taps)
            .map(|at| {
                let (f, i, t) = (at / (inputs * taps), at / taps % inputs, at % taps);
                values[(f * taps + t) * inputs + i]
            })
            .collect();
        let w = self.floats(&format!("{name}.weight"), &[filters, inputs, taps], &moved);
        let lengths = self.window_lengths(layer.window, x)?;
        let own = self.own_steps(x, 0.0);
        let turned = self.op("Transpose", &[&own], vec![ints("perm", &[0, 2, 1])]);
        let (own, attributes) = self.windows(layer.window, turned, 0.0, false);
        let mut names = vec![own, w];
        if layer.bias {
            names.push(self.parameter(&format!("{name}.bias"))?.0);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let y = self.op("Conv", &names, attributes);
        let y = self.op("Transpose", &[&y], vec![ints("perm", &[0, 2, 1])]);
        Ok(Value { name: self.activation(layer.activation, &y)?, signal, mask: None, lengths })
    }

    /// A step of each window of x.
    pub fn pooled(&mut self, layer: &Pooling1D, x: &Value, signal: Signal) -> Result<Value> {
        let lengths = self.window_lengths(layer.window, x)?;
        let max = layer.kind == PoolingKind::Max;
        let own = self.own_steps(x, if max { f32::MIN } else { 0.0 });
        let turned = self.op("Transpose", &[&own], vec![ints("perm", &[0, 2, 1])]);
        let y = if max {
            let (x, attributes) = self.windows(layer.window, turned, f32::MIN, true);
            self.op("MaxPool", &[&x], attributes)
        } else {
            self.mean(layer.window, turned, x)?
        };
        let name = self.op("Transpose", &[&y], vec![ints("perm", &[0, 2, 1])]);
        Ok(Value { name, signal, mask: None, lengths })
    }

    /// Some of the steps of a sequence, or zeros around them.
    pub fn cropped(&mut self, layer: &Cropping1D, x: &Value, signal: Signal) -> Result<Value> {
        let padding = Padding::Explicit { before: -layer.before, after: -layer.after };
        let lengths = self.window_lengths(Window { stride: layer.stride, padding, ..Window::new(1) }, x)?;
        let mut name = self.own_steps(x, 0.0);
        let around = [0, layer.before.min(0), 0, 0, layer.after.min(0), 0].map(|n| i64::from(-n));
        if around.iter().any(|&n| n != 0) {
            let pads = self.whole(&around);
            name = self.op("Pad", &[&name, &pads], Vec::new());
        }
        if (layer.before.max(0), layer.after.max(0), layer.stride) != (0, 0, 1) {
            let end = if layer.after > 0 { i64::from(-layer.after) } else { i64::MAX };
            let [first, end, axis, stride] =
                [layer.before.max(0).into(), end, 1, layer.stride as i64].map(|n| self.whole(&[n]));
            name = self.op("Slice", &[&name, &first, &end, &axis, &stride], Vec::new());
        }
        Ok(Value { name, signal, mask: None, lengths })
    }

    /// x `[B, T, F]` with `fill` past each sequence's end.
    fn own_steps(&mut self, x: &Value, fill: f32) -> String {
        let Some(lengths) = &x.lengths else { return x.name.clone() };
        let inside = self.within(&x.name, lengths);
        self.or(&x.name, &inside, fill)
    }

    /// How many windows each sequence has, `[B]`, where x has sequences of different lengths.
    fn window_lengths(&mut self, window: Window, x: &Value) -> Result<Option<String>> {
        let Some(lengths) = &x.lengths else { return Ok(None) };
        let Window { taps, stride, dilation, padding } = window;
        let beyond = ((taps - 1) * dilation) as i64;
        let added = match padding {
            Padding::Valid => 0,
            Padding::Same if stride != 1 => {
                return Err(Error::unsupported("windows that are centred in sequences of different lengths"));
            }
            Padding::Same | Padding::Causal => beyond,
            Padding::Explicit { before, after } => i64::from(before) + i64::from(after),
        };
        // ⌊(L + added - span) / stride⌋ + 1, none where that is less, and of a sequence without a step.
        let long = self.op("Cast", &[lengths], vec![int("to", i64::from(dtype::INT64))]);
        let [more, by, zero] = [added - beyond - 1 + stride as i64, stride as i64, 0].map(|n| self.index(n));
        let sum = self.op("Add", &[&long, &more], Vec::new());
        let sum = self.op("Max", &[&sum, &zero], Vec::new());
        let count = self.op("Div", &[&sum, &by], Vec::new());
        let any = self.op("Greater", &[&long, &zero], Vec::new());
        let count = self.op("Where", &[&any, &count, &zero], Vec::new());
        Ok(Some(self.op("Cast", &[&count], vec![int("to", i64::from(dtype::INT32))])))
    }

    /// The mean of the steps of each window of x `[B, F, T]`, of those that are there.
    fn mean(&mut self, window: Window, x: String, of: &Value) -> Result<String> {
        if window.dilation == 1 && in_a_pool(window) && of.lengths.is_none() {
            let (x, attributes) = self.windows(window, x, 0.0, true);
            return Ok(self.op("AveragePool", &[&x], attributes));
        }
        // The sums of windows over the numbers of steps that they see.
        let features = of.signal.features().unwrap_or(0);
        let ones = self.filled("ones", &[features, 1, window.taps], 1.0)?;
        let shape = self.op("Shape", &[&x], Vec::new());
        let zeros = self.op("ConstantOfShape", &[&shape], Vec::new());
        let mut there = self.op("Exp", &[&zeros], Vec::new());
        if let Some(lengths) = &of.lengths {
            let inside = self.within(&of.name, lengths);
            let middle = self.whole(&[1]);
            let inside = self.op("Unsqueeze", &[&inside, &middle], Vec::new());
            there = self.op("Mul", &[&there, &inside], Vec::new());
        }
        let [sums, counts] = [x, there].map(|x| {
            let (x, mut attributes) = self.windows(window, x, 0.0, false);
            attributes.push(int("group", features as i64));
            self.op("Conv", &[&x, &ones], attributes)
        });
        if of.lengths.is_none() {
            return Ok(self.op("Div", &[&sums, &counts], Vec::new()));
        }
        // Past a sequence's end there is nothing to divide by.
        let one = self.number(1.0);
        let counts = self.op("Max", &[&counts, &one], Vec::new());
        Ok(self.op("Div", &[&sums, &counts], Vec::new()))
    }

    /// What an operator over windows of x `[B, F, T]` reads, and its attributes; beyond a sequence everything is `fill`.
    fn windows(&mut self, window: Window, x: String, fill: f32, pools: bool) -> (String, Vec<Attribute>) {
        let Window { taps, stride, dilation, padding } = window;
        let mut all = vec![ints("kernel_shape", &[taps as i64]), ints("strides", &[stride as i64])];
        if dilation != 1 {
            all.push(ints("dilations", &[dilation as i64]));
        }
        let beyond = ((taps - 1) * dilation) as i64;
        let (x, pads) = match padding {
            Padding::Valid => (x, [0, 0]),
            Padding::Same if stride == 1 => (x, [beyond / 2, beyond - beyond / 2]),
            Padding::Same if dilation == 1 => {
                all.push(text("auto_pad", "SAME_UPPER"));
                return (x, all);
            }
            // What runs graphs disagrees on what this is in a dilated window.
            Padding::Same => return (self.same(&x, stride as i64, beyond, fill), all),
            Padding::Causal => (x, [beyond, 0]),
            Padding::Explicit { before, after } => {
                (self.inner(x, before, after), [before, after].map(|n| n.max(0).into()))
            }
        };
        if pools && pads.iter().any(|&n| n >= taps as i64) {
            let around = self.whole(&[0, 0, pads[0], 0, 0, pads[1]]);
            let fill = self.number(fill);
            return (self.op("Pad", &[&x, &around, &fill], Vec::new()), all);
        }
        if pads != [0, 0] {
            all.push(ints("pads", &pads));
        }
        (x, all)
    }

    /// x `[B, F, T]` without the steps that are less than none at its ends.
    fn inner(&mut self, x: String, before: i32, after: i32) -> String {
        if before >= 0 && after >= 0 {
            return x;
        }
        let end = if after < 0 { after.into() } else { i64::MAX };
        let [start, end, axis] = [(-before).max(0).into(), end, 2].map(|n| self.whole(&[n]));
        self.op("Slice", &[&x, &start, &end, &axis], Vec::new())
    }

    /// x `[B, F, T]` with as much around it as makes ⌈T / stride⌉ windows, which reach `beyond` their first step; an odd
    /// step at the end.
    fn same(&mut self, x: &str, stride: i64, beyond: i64, fill: f32) -> String {
        let shape = self.op("Shape", &[x], Vec::new());
        let [at, less, by, reach, zero, two] = [2, stride - 1, stride, beyond + 1, 0, 2].map(|n| self.whole(&[n]));
        let steps = self.op("Gather", &[&shape, &at], vec![int("axis", 0)]);
        let rounded = self.op("Add", &[&steps, &less], Vec::new());
        let windows = self.op("Div", &[&rounded, &by], Vec::new());
        let starts = self.op("Mul", &[&windows, &by], Vec::new());
        let starts = self.op("Sub", &[&starts, &by], Vec::new());
        let seen = self.op("Add", &[&starts, &reach], Vec::new());
        let missing = self.op("Sub", &[&seen, &steps], Vec::new());
        let missing = self.op("Max", &[&missing, &zero], Vec::new());
        let before = self.op("Div", &[&missing, &two], Vec::new());
        let after = self.op("Sub", &[&missing, &before], Vec::new());
        let none = self.whole(&[0, 0]);
        let around = self.op("Concat", &[&none, &before, &none, &after], vec![int("axis", 0)]);
        let fill = self.number(fill);
        self.op("Pad", &[x, &around, &fill], Vec::new())
    }
}

/// Whether ONNX's pools take as many steps around as these windows have.
fn in_a_pool(window: Window) -> bool {
    match window.padding {
        Padding::Explicit { before, after } => before.max(after) < i32::try_from(window.taps).unwrap_or(i32::MAX),
        _ => true,
    }
}
