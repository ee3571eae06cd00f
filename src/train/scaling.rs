//! Loss scaling, where gradients pass through 16 bits: the loss is multiplied by a power of two before it is differentiated, so
//! that small gradients stay above what halves hold, and gradients are divided by it before they are used (Micikevicius et
//! al., Mixed Precision Training, ICLR 2018). The scale is the device's own: it is halved by a step whose gradient
//! overflows, which changes nothing else, and doubled after [`STEADY`] steps that did not.

use crate::device::Session;
use crate::error::{Error, Result};
use crate::graph::{Expr, Graph, Op, Value};
use crate::params::{DType, Tensor};

/// The scale, `[1]`.
const SCALE: &str = "train.loss_scale";
/// Steps since it changed, `[1]`.
const AGE: &str = "train.loss_scale_age";

/// Where it begins.
const FIRST: f32 = 65536.0;
/// Powers of two that it stays between. A loss whose gradient overflows unscaled is not finite.
const LEAST: f32 = 1.0;
const MOST: f32 = 16_777_216.0;
/// Steps after which a larger one is tried.
const STEADY: f32 = 2000.0;

/// The scale of a training step's loss, in its graph.
pub(super) struct LossScale {
    scale: Value,
    age: Value,
}

impl LossScale {
    /// What of it outlives a run.
    pub(super) const NAMES: [&'static str; 2] = [SCALE, AGE];

    /// Sets it to where it begins, unless the session has it.
    pub(super) fn begin(session: &mut Session) -> Result<()> {
        if !session.names().any(|name| name == SCALE) {
            session.set(SCALE, &Tensor::new(&[1], vec![FIRST])?)?;
            session.zero(AGE, &[1], DType::F32)?;
        }
        Ok(())
    }

    /// In `graph`, whose layers must not bound gradients as they pass.
    pub(super) fn new(graph: &mut Graph) -> Result<Self> {
        let bounds = |op: &Op| matches!(op, Op::Lstm(lstm) if lstm.cell.gradient_clip.is_some());
        if graph.nodes().iter().any(|node| bounds(&node.op)) {
            return Err(Error::unsupported(
                "training: gradient_clip bounds gradients as they are, and with f16-products they are scaled; \
                 an optimiser's clipping bounds them after",
            ));
        }
        Ok(Self { scale: graph.persistent(SCALE, [1])?, age: graph.persistent(AGE, [1])? })
    }

    /// The gradients of `loss`, times the scale.
    pub(super) fn gradients(&self, graph: &mut Graph, loss: Value, of: &[Value]) -> Result<Vec<Value>> {
        let up = graph.elementwise(Expr::Input(1), &[loss, self.scale])?;
        graph.gradients_from(&[(loss, up)], of)
    }

    /// What scaled gradients are multiplied by, and the sum of squares of what that gives.
    pub(super) fn undo(&self, graph: &mut Graph, squares: Value) -> Result<(Value, Value)> {
        let inverse = graph.elementwise(Expr::Const(1.0) / Expr::Input(0), &[self.scale])?;
        let squares = graph.elementwise(Expr::Input(0) * Expr::Input(1) * Expr::Input(1), &[squares, inverse])?;
        Ok((inverse, squares))
    }

    /// 1 where a gradient that is not finite is the scale's fault, so that a smaller one may do.
    pub(super) fn may_shrink(&self, graph: &mut Graph) -> Result<Value> {
        graph.elementwise(Expr::Const(LEAST).less(Expr::Input(0)), &[self.scale])
    }

    /// The next scale, after a step that was `alive` or was not; unchanged where training had stopped before, which `latch`
    /// says.
    pub(super) fn update(self, graph: &mut Graph, alive: Value, latch: Value) -> Result<()> {
        let [scale, age, alive_now, latched] = [0, 1, 2, 3].map(Expr::Input);
        let older = age.clone() + Expr::Const(1.0);
        let due = Expr::Const(STEADY - 0.5).less(older.clone());
        let (half, twice) = (scale.clone() * Expr::Const(0.5), scale.clone() * Expr::Const(2.0));
        let grown = due.clone().select(twice.min(Expr::Const(MOST)), scale.clone());
        let shrunk = latched.clone().select(scale, half.max(Expr::Const(LEAST)));
        let next = alive_now.clone().select(grown, shrunk);
        let next_age = alive_now.select(due.select(Expr::Const(0.0), older), Expr::Const(0.0));
        let operands = [self.scale, self.age, alive, latch];
        let next = graph.elementwise_many(vec![next, latched.select(age, next_age)], &operands)?;
        graph.update(self.scale, next[0])?;
        graph.update(self.age, next[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::{Dense, Input, Lstm, Sequential};
    use crate::optim::{Adam, Clipping, Course, Optimizer};
    use crate::scheduler::{Batch, Capacity};
    use crate::train::step::{LATCH, TRAIN, begin_slots, training_graph, training_scalars};
    use crate::train::{Loss, Objective};

    /// Weights after so many steps, the scale and the latch; from such a scale, or without one.
    fn trained(scale: Option<f32>, steps: u32) -> (Vec<f32>, f32, f32) {
        let mut model = Sequential::new(&Device::reference());
        model.add(Lstm::new(3)).add(Dense::new(1));
        model.build(Input::Features(2)).unwrap();
        let adam = Adam::default().learning_rate(0.1);
        let optimizer = Optimizer::from(adam).clip(Clipping::GlobalNorm(0.5));
        let objective = [Objective::sole(Loss::MeanSquaredError)];
        let network = model.network(Input::Features(2)).unwrap();
        let graph = training_graph(&network, &objective, &optimizer, "t.", scale.is_some(), false).unwrap();
        let slots = optimizer.slots(&model.parameters());
        let session = model.session().unwrap();
        begin_slots(session, &slots).unwrap();
        TRAIN.zero(session).unwrap();
        if let Some(scale) = scale {
            LossScale::begin(session).unwrap();
            session.set(SCALE, &Tensor::new(&[1], vec![scale]).unwrap()).unwrap();
        }
        let batch = Batch::ragged(&[3, 2]).unwrap();
        let mut program = session.load(&graph, &Capacity::exactly(&batch)).unwrap();
        let x = Tensor::new(&[5, 2], (0..10).map(|n| (n as f32).sin()).collect()).unwrap();
        let y = Tensor::new(&[2, 1], vec![2.0, -1.0]).unwrap();
        for step in 0..steps {
            let mut batch = batch.clone().at_step(1, step);
            // Every step's correction is that of the first: which steps count differs.
            for (name, value) in training_scalars(&optimizer, &Course::at(0)) {
                batch.set_scalar(name, value);
            }
            session.run(&mut program, &batch, &[("x", &x), ("y", &y)]).unwrap();
        }
        let mut read = |name: &str| session.get(name).unwrap().f32s().unwrap().to_vec();
        let scale = if scale.is_some() { read(SCALE)[0] } else { 1.0 };
        (read("lstm.weight_hh_l0"), scale, read(LATCH)[0])
    }

    #[test]
    fn a_scale_changes_no_bit_and_gives_way_where_gradients_overflow() {
        let (wanted, _, _) = trained(None, 4);
        // Powers of two are exact.
        assert_eq!(trained(Some(FIRST), 4), (wanted.clone(), FIRST, 0.0));
        // The sum of squares of the largest scale of floats overflows, and so do those of its halves down to about 2^63.
        let (weights, scale, latch) = trained(Some(2.0f32.powi(66)), 12);
        assert_eq!(latch, 0.0);
        assert!(scale < 2.0f32.powi(66) && scale > 2.0f32.powi(55), "{scale}");
        let skipped = (2.0f32.powi(66) / scale).log2() as u32;
        assert_eq!(weights, trained(None, 12 - skipped).0);
        // A scale that cannot shrink is not to blame, and training stops at the first step.
        let (weights, scale, latch) = trained(Some(f32::NAN), 3);
        assert!(scale.is_nan() && latch == 1.0);
        assert_eq!(weights, trained(None, 0).0);
    }
}
