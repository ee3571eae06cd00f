//! Runs a case: a stack of LSTM layers, its outputs, and the gradients of Σ output · upstream.

use super::{Case, Tensors};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::builder::{LstmOutputs, LstmWeights};
use crate::graph::{B, Graph, LstmOp, N, Value};
use crate::params::{DType, Tensor, lstm_parameters};
use crate::reference::Reference;
use crate::scheduler::{Batch, Capacity, CompileOptions, Target, compile};
use std::sync::Arc;

/// `out.*` and `grad.*` of a case on `device`.
pub fn on_device(device: &Device, case: &Case, tensors: &Tensors<f32>) -> Result<Tensors<f64>> {
    let problem = Problem::new(case, tensors)?;
    let mut session = device.session()?;
    for (name, tensor) in &problem.parameters {
        session.set(name, tensor)?;
    }
    let mut executable = session.load(&problem.graph, &Capacity::exactly(&problem.batch))?;
    let inputs: Vec<(&str, &Tensor)> = problem.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&mut executable, &problem.batch, &inputs)?;
    problem.results(|name| Ok(session.output(&executable, name)?.f32s()?.iter().copied().map(f64::from).collect()))
}

/// `out.*` and `grad.*` of a case by the reference in 64 bits.
pub fn exactly(case: &Case, tensors: &Tensors<f32>) -> Result<Tensors<f64>> {
    let problem = Problem::new(case, tensors)?;
    let options = CompileOptions::new(&Capacity::exactly(&problem.batch));
    let program = Arc::new(compile(&problem.graph, Target::REFERENCE, &options)?);
    let mut reference = Reference::<f64>::new();
    for (name, tensor) in &problem.parameters {
        reference.declare(name, tensor.shape(), DType::F32);
        reference.write(name, tensor)?;
    }
    let mut prepared = reference.prepare(&program)?;
    let input = |(wanted, _): &(String, usize)| {
        let found = problem.inputs.iter().find(|(name, _)| name == wanted);
        found.map(|f| &f.1).ok_or_else(|| Error::internal(format!("verify: input `{wanted}` is missing")))
    };
    let inputs = program.inputs.iter().map(input).collect::<Result<Vec<&Tensor>>>()?;
    reference.run(&mut prepared, &problem.batch, &inputs)?;
    problem.results(|name| {
        let at = program.outputs.iter().position(|(n, _)| n == name);
        let at = at.ok_or_else(|| Error::internal(format!("verify: output `{name}` is missing")))?;
        reference.output_exact(&prepared, at)
    })
}

/// A case as a graph, a batch, and what they run on; sequences packed, sequences in packed order.
struct Problem<'a> {
    case: &'a Case,
    graph: Graph,
    batch: Batch,
    parameters: Vec<(String, Tensor)>,
    inputs: Vec<(String, Tensor)>,
}

impl<'a> Problem<'a> {
    fn new(case: &'a Case, tensors: &Tensors<f32>) -> Result<Self> {
        let batch = match &case.lengths {
            Some(lengths) => Batch::ragged(lengths)?,
            None => Batch::dense(case.time, case.batch)?,
        };
        let (parameters, inputs) = (Vec::new(), Vec::new());
        let mut problem = Self { case, graph: Graph::new(), batch, parameters, inputs };
        problem.build(tensors)?;
        Ok(problem)
    }

    fn build(&mut self, tensors: &Tensors<f32>) -> Result<()> {
        let config = self.case.config();
        let op = LstmOp { direction: config.direction, ..LstmOp::plain() };
        let (r, hidden) = (config.output_size(), config.hidden_size);
        let x = self.sequence("in.x", self.case.input_size, tensors)?;
        let mut gradients = vec![("grad.x".to_string(), x)];
        let (mut upstream, mut y) = (Vec::new(), x);
        for layer in 0..config.num_layers {
            let state = if self.case.has_initial_state {
                let state = (self.state("in.h0", layer, r, tensors)?, self.state("in.c0", layer, hidden, tensors)?);
                gradients.push((format!("grad.h0.{layer}"), state.0));
                gradients.push((format!("grad.c0.{layer}"), state.1));
                Some(state)
            } else {
                None
            };
            let weights = self.weights(layer, tensors, &mut gradients)?;
            let LstmOutputs { y: above, h_n, c_n } = self.graph.lstm_layer(y, state, &op, &weights)?;
            self.graph.output(&format!("out.h_n.{layer}"), h_n)?;
            self.graph.output(&format!("out.c_n.{layer}"), c_n)?;
            upstream.push((h_n, self.state("up.h_n", layer, r, tensors)?));
            upstream.push((c_n, self.state("up.c_n", layer, hidden, tensors)?));
            y = above;
        }
        self.graph.output("out.y", y)?;
        upstream.push((y, self.sequence("up.y", op.directions() * r, tensors)?));
        let by: Vec<Value> = gradients.iter().map(|g| g.1).collect();
        let values = self.graph.gradients_from(&upstream, &by)?;
        gradients.iter().zip(values).try_for_each(|((name, _), value)| self.graph.output(name, value))
    }

    /// The parameters of a layer's directions.
    fn weights(
        &mut self,
        layer: usize,
        tensors: &Tensors<f32>,
        gradients: &mut Vec<(String, Value)>,
    ) -> Result<Vec<LstmWeights>> {
        let config = self.case.config();
        let mut values = Vec::new();
        for parameter in lstm_parameters(&config, layer) {
            let name = format!("param.{}", parameter.name);
            self.parameters.push((name.clone(), Tensor::new(&parameter.shape, find(tensors, &name)?.to_vec())?));
            let value = self.graph.persistent(&name, &parameter.shape)?;
            gradients.push((format!("grad.{}", parameter.name), value));
            values.push((parameter, value));
        }
        let of = |direction: usize, role: &str| {
            values.iter().find(|(p, _)| p.direction == direction && p.role == role).map(|v| v.1)
        };
        (0..config.direction.count()).map(|direction| LstmWeights::by_role(|role| of(direction, role))).collect()
    }

    /// The input `name` `[N, width]`, packed.
    fn sequence(&mut self, name: &str, width: usize, tensors: &Tensors<f32>) -> Result<Value> {
        let packed = self.batch.pack(0, find(tensors, name)?, self.case.time, width, self.case.batch_first)?;
        let rows = packed.len() / width;
        self.inputs.push((name.to_string(), Tensor::new(&[rows, width], packed)?));
        self.graph.input(name, [N, width.into()], DType::F32)
    }

    /// The input `name.layer` `[B, D·width]`, sorted, from `name` `[L·D, B, width]`.
    fn state(&mut self, name: &str, layer: usize, width: usize, tensors: &Tensors<f32>) -> Result<Value> {
        let (batch, directions) = (self.case.batch, self.case.config().direction.count());
        let all = find(tensors, name)?;
        let row = |b: usize, d: usize| &all[((layer * directions + d) * batch + b) * width..][..width];
        let places = (0..batch).flat_map(|b| (0..directions).map(move |d| (b, d)));
        let rows: Vec<f32> = places.flat_map(|(b, d)| row(b, d).iter().copied()).collect();
        let name = format!("{name}.{layer}");
        let sorted = self.batch.sort_rows(&rows, directions * width);
        self.inputs.push((name.clone(), Tensor::new(&[batch, directions * width], sorted)?));
        self.graph.input(&name, [B, (directions * width).into()], DType::F32)
    }

    /// What the case expects, in the caller's order, from the graph's outputs.
    fn results(&self, mut output: impl FnMut(&str) -> Result<Vec<f64>>) -> Result<Tensors<f64>> {
        let (case, config) = (self.case, self.case.config());
        let directions = config.direction.count();
        let mut result = |name: &str| match name {
            "out.y" | "grad.x" => {
                let width = if name == "grad.x" { case.input_size } else { directions * config.output_size() };
                self.batch.unpack(0, &output(name)?, case.time, width, case.batch_first, 0.0)
            }
            "out.h_n" | "out.c_n" | "grad.h0" | "grad.c0" => {
                let width = if name.contains(".h") { config.output_size() } else { case.hidden_size };
                let mut all = Vec::new();
                for layer in 0..case.num_layers {
                    let rows = self.batch.unsort_rows(&output(&format!("{name}.{layer}"))?, directions * width);
                    for d in 0..directions {
                        all.extend(rows.chunks_exact(directions * width).flat_map(|row| &row[d * width..][..width]));
                    }
                }
                Ok(all)
            }
            _ => output(name),
        };
        case.wanted().into_iter().map(|(name, _)| Ok((name.clone(), result(&name)?))).collect()
    }
}

fn find<'a>(tensors: &'a Tensors<f32>, name: &str) -> Result<&'a [f32]> {
    let found = tensors.get(name).ok_or_else(|| Error::data(format!("case: tensor `{name}` is missing")))?;
    Ok(found)
}
