//! Twenty steps of Adam on a two-layer LSTM give PyTorch's losses. The fixture's script is `data/make_adam.py`.

use mnemon::device::Device;
use mnemon::error::Result;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{Expr, Graph, N, Value};
use mnemon::optim::{Adam, Course, Gate, Optimizer};
use mnemon::params::{DType, Initializer, ParameterSpec, Rules, Tensor};
use mnemon::scheduler::{Batch, Capacity};
use safetensors::SafeTensors;

const FIXTURE: &[u8] = include_bytes!("data/adam.safetensors");
const LEARNING_RATE: f64 = 1e-2;
/// Relative; the losses are computed in 64 bits, ours in 32.
const TOLERANCE: f32 = 1e-4;
const LAYERS: usize = 2;

/// `reference`, `cpu`, and a GPU where `MNEMON_TEST_GPU` names one (for example `software`).
fn devices() -> Vec<Device> {
    let mut all = vec![Device::reference(), Device::cpu()];
    if let Ok(name) = std::env::var("MNEMON_TEST_GPU")
        && name != "none"
    {
        all.push(Device::parse(&name, Default::default(), None).expect("the GPU that MNEMON_TEST_GPU asks for"));
    }
    all
}

fn tensor(name: &str) -> Tensor {
    let file = SafeTensors::deserialize(FIXTURE).unwrap();
    let view = file.tensor(name).unwrap();
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Tensor::new(view.shape(), values).unwrap()
}

/// A graph under construction, and its parameters in the order in which they were added.
struct Model {
    graph: Graph,
    parameters: Vec<(ParameterSpec, Value)>,
}

impl Model {
    fn parameter(&mut self, name: String) -> Result<Value> {
        let spec = Rules::default().spec(name.clone(), tensor(&name).shape().to_vec(), Initializer::Zeros);
        let value = self.graph.persistent(&name, &spec.shape)?;
        self.parameters.push((spec, value));
        Ok(value)
    }

    /// Linear(LSTM(LSTM(x))), its mean squared error, and one step of Adam.
    fn step(&mut self, adam: &Optimizer, input: usize, output: usize) -> Result<()> {
        let mut y = self.graph.input("x", [N, input.into()], DType::F32)?;
        for l in 0..LAYERS {
            let mut parameter = |role: &str| self.parameter(format!("lstm.{role}_l{l}"));
            let weights = LstmWeights::new(parameter("weight_ih")?, parameter("weight_hh")?);
            let weights = weights.bias(Some(parameter("bias_ih")?), Some(parameter("bias_hh")?));
            y = self.graph.lstm(y, None, &weights)?.y;
        }
        let (weight, bias) = (self.parameter("dense.weight".into())?, self.parameter("dense.bias".into())?);
        let y = self.graph.linear(y, weight, Some(bias))?;
        let target = self.graph.input("target", [N, output.into()], DType::F32)?;
        let loss = self.graph.mean_squared_error(y, target)?.mean;
        self.graph.output("loss", loss)?;
        let by: Vec<Value> = self.parameters.iter().map(|p| p.1).collect();
        let gradients = self.graph.gradients(loss, &by)?;
        let alive = self.graph.elementwise(Expr::Const(1.0), &[loss])?;
        let specs: Vec<ParameterSpec> = self.parameters.iter().map(|p| p.0.clone()).collect();
        adam.apply(&mut self.graph, &specs, &gradients, Gate { scale: None, squares: None, alive })
    }
}

fn losses(device: &Device, steps: usize) -> Result<Vec<f32>> {
    let rows = |name: &str| {
        let tensor = tensor(name);
        let [steps, sequences, width] = tensor.shape().try_into().unwrap();
        (tensor.reshape(&[steps * sequences, width]).unwrap(), steps, sequences, width)
    };
    let (x, time, sequences, input) = rows("x");
    let (target, .., output) = rows("target");
    let adam = Optimizer::from(Adam::pytorch().learning_rate(LEARNING_RATE));
    let mut model = Model { graph: Graph::new(), parameters: Vec::new() };
    model.step(&adam, input, output)?;
    let mut session = device.session()?;
    for (ParameterSpec { name, .. }, _) in &model.parameters {
        let first = tensor(name);
        for slot in model.graph.values().iter().filter(|v| v.name.ends_with(&format!(".{name}"))) {
            session.zero(&slot.name, first.shape(), DType::F32)?;
        }
        session.set(name, &first)?;
    }
    let mut batch = Batch::dense(time, sequences)?;
    let mut executable = session.load(&model.graph, &Capacity::exactly(&batch))?;
    let mut losses = Vec::new();
    for step in 0..steps {
        for (name, value) in adam.scalars(&Course::at(step as u32)) {
            batch.set_scalar(name, value);
        }
        session.run(&mut executable, &batch, &[("x", &x), ("target", &target)])?;
        losses.push(session.output(&executable, "loss")?.f32s()?[0]);
    }
    Ok(losses)
}

#[test]
fn twenty_steps_of_adam_give_pytorchs_losses_on_every_device() {
    let wanted = tensor("losses").into_f32s().unwrap();
    assert_eq!(wanted.len(), 20);
    for device in devices() {
        let got = losses(&device, wanted.len()).unwrap();
        for (step, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            let error = (got - wanted).abs() / wanted;
            assert!(error <= TOLERANCE, "{} step {step}: expected {wanted}, got {got}", device.name());
        }
        assert!(got[19] < 0.9 * got[0], "it learns");
    }
}
