//! Running a program step by step over values of its own.

use super::array::{Array, Call, Rows, pack, unpack};
use super::store::{Data, Stored};
use super::{
    Real, argmax, attention, columns, cross_entropy, dropout, elementwise, embedding, gather, linear, lstm_backward,
    lstm_forward, lstm_gradients, memory, reduce, softmax, time, view,
};
use crate::error::{Error, Result};
use crate::graph::{Dim, Op};
use crate::params::{DType, Tensor};
use crate::scheduler::compile::changes_in_place;
use crate::scheduler::program::Storage;
use crate::scheduler::{Batch, Program, ProgramValue};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Persistent values by name, and the running of programs over them, in `R`.
#[derive(Debug, Clone, Default)]
pub struct Reference<R: Real> {
    stored: BTreeMap<String, Stored<R>>,
}

/// A program with all values of its last run.
#[derive(Debug, Clone)]
pub struct Prepared<R: Real> {
    program: Arc<Program>,
    values: Vec<Option<Array<R>>>,
    /// The batch of the last run that succeeded.
    batch: Option<Batch>,
}

impl<R: Real> Reference<R> {
    /// No persistent value.
    pub fn new() -> Self {
        Self { stored: BTreeMap::new() }
    }

    /// Lets go of a persistent value.
    pub fn release(&mut self, name: &str) {
        self.stored.remove(name);
    }

    /// Declares a persistent value of zeros, in the place of one of the same name.
    pub fn declare(&mut self, name: &str, shape: &[usize], dtype: DType) {
        let data = Data::zeros(shape.iter().product(), dtype);
        self.stored.insert(name.to_string(), Stored { shape: shape.to_vec(), data });
    }

    fn stored(&self, name: &str) -> Result<&Stored<R>> {
        self.stored.get(name).ok_or_else(|| undeclared(name))
    }

    /// Writes the first `tensor.len()` values of the persistent value `name`.
    pub fn write(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        self.overwrite(name, &Data::of(tensor)?)
    }

    /// Writes the first floats of the persistent value `name`, without rounding them to f32.
    pub fn write_exact(&mut self, name: &str, values: &[f64]) -> Result<()> {
        self.overwrite(name, &Data::Float(values.iter().map(|&x| R::from_double(x)).collect()))
    }

    fn overwrite(&mut self, name: &str, values: &Data<R>) -> Result<()> {
        let stored = self.stored.get_mut(name).ok_or_else(|| undeclared(name))?;
        stored.data.overwrite(values).map_err(|e| e.within(format!("reference: `{name}`")))
    }

    /// The whole persistent value `name` in its declared shape.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let stored = self.stored(name)?;
        stored.data.tensor(&stored.shape)
    }

    /// Makes `program` ready to run: every persistent value that it names must be declared, and fit.
    pub fn prepare(&self, program: &Arc<Program>) -> Result<Prepared<R>> {
        for value in program.values.iter().filter(|v| v.storage == Storage::Persistent) {
            let stored = self.stored(&value.name)?;
            let fits = |(dim, size): (&Dim, &usize)| !matches!(dim, Dim::Fixed(n) if n != size);
            let same_rank = stored.shape.len() == value.shape.rank();
            if !same_rank || !value.shape.0.iter().zip(&stored.shape).all(fits) || stored.data.dtype() != value.dtype {
                return Err(Error::shape(format!(
                    "reference: the program takes `{}` as {:?} of {}, it is declared as {:?} of {:?}",
                    value.name,
                    value.dtype,
                    value.shape,
                    stored.data.dtype(),
                    stored.shape
                )));
            }
        }
        Ok(Prepared { program: program.clone(), values: vec![None; program.values.len()], batch: None })
    }

    /// Runs all steps, then updates the persistent values. `inputs` are packed, in the order of `program.inputs`.
    /// Where it fails, no persistent value changes.
    pub fn run<V: std::borrow::Borrow<Tensor>>(
        &mut self,
        prepared: &mut Prepared<R>,
        batch: &Batch,
        inputs: &[V],
    ) -> Result<()> {
        let inputs: &[&Tensor] = &inputs.iter().map(std::borrow::Borrow::borrow).collect::<Vec<_>>();
        let program = prepared.program.clone();
        program.admits(batch)?;
        prepared.batch = None;
        prepared.values = vec![None; program.values.len()];
        self.load(prepared, batch, inputs)?;
        for step in &program.steps {
            let call = Call { program: &program, batch, step, values: &prepared.values };
            let context = || format!("reference: {}", step.op.name());
            let results = execute(&call).map_err(|e| e.within(context()))?;
            for (at, result) in results.into_iter().enumerate() {
                let Some(value) = step.outputs.get(at).copied().flatten() else { continue };
                check(&program.values[value], batch, &result).map_err(|e| e.within(context()))?;
                prepared.values[value] = Some(result);
            }
        }
        // All new values are taken before the first is stored, so that persistent values may change places.
        let mut updates = Vec::new();
        for (persistent, source) in ends(&program) {
            updates.push((&program.values[persistent].name, packed(prepared, source, batch)?));
        }
        for (name, data) in &updates {
            let stored = self.stored(name)?;
            stored.data.leading(data.len()).map_err(|e| e.within(format!("reference: `{name}`")))?;
        }
        for (name, data) in updates {
            self.overwrite(name, &data)?;
        }
        prepared.batch = Some(batch.clone());
        Ok(())
    }

    /// Unpacks inputs and persistent values.
    fn load(&self, prepared: &mut Prepared<R>, batch: &Batch, inputs: &[&Tensor]) -> Result<()> {
        let program = prepared.program.clone();
        if inputs.len() != program.inputs.len() {
            return Err(Error::argument(format!(
                "reference: the program takes {} inputs, got {}",
                program.inputs.len(),
                inputs.len()
            )));
        }
        for ((name, value), tensor) in program.inputs.iter().zip(inputs) {
            let info = &program.values[*value];
            let wanted = batch.resolve(&info.shape)?;
            if tensor.shape() != wanted || tensor.dtype() != info.dtype {
                return Err(Error::shape(format!(
                    "reference: input `{name}`: expected {:?} of {wanted:?} ({}), got {:?} of {:?}",
                    info.dtype,
                    info.shape,
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            prepared.values[*value] = Some(unpacked(&Data::of(tensor)?, info, batch)?);
        }
        for (at, info) in program.values.iter().enumerate().filter(|(_, v)| v.storage == Storage::Persistent) {
            let len = batch.resolve(&info.shape)?.iter().product();
            let within = |e: Error| e.within(format!("reference: `{}`", info.name));
            let data = self.stored(&info.name)?.data.leading(len).map_err(within)?;
            prepared.values[at] = Some(unpacked(&data, info, batch)?);
        }
        Ok(())
    }

    /// Output number `index` of the last run, packed, sized to that run's batch.
    pub fn output(&self, prepared: &Prepared<R>, index: usize) -> Result<Tensor> {
        let (batch, value) = ran(prepared, index)?;
        packed(prepared, value, batch)?.tensor(&batch.resolve(&prepared.program.values[value].shape)?)
    }

    /// Output number `index` of the last run, packed, not rounded to f32.
    pub fn output_exact(&self, prepared: &Prepared<R>, index: usize) -> Result<Vec<f64>> {
        let (batch, value) = ran(prepared, index)?;
        Ok(packed(prepared, value, batch)?.exact())
    }

    /// Any value of the last run by its name in the program, packed; for bisecting. Persistent values are those that
    /// the run began with.
    pub fn value(&self, prepared: &Prepared<R>, name: &str) -> Option<Vec<f64>> {
        let at = prepared.program.values.iter().position(|v| v.name == name)?;
        Some(packed(prepared, at, prepared.batch.as_ref()?).ok()?.exact())
    }
}

fn undeclared(name: &str) -> Error {
    Error::argument(format!("reference: the persistent value `{name}` is not declared"))
}

/// The batch of the last run and the value of output number `index`.
fn ran<R: Real>(prepared: &Prepared<R>, index: usize) -> Result<(&Batch, usize)> {
    let batch = prepared.batch.as_ref().ok_or_else(|| Error::argument("reference: the program has not run"))?;
    let outputs = &prepared.program.outputs;
    let (_, value) = outputs.get(index).ok_or_else(|| {
        Error::argument(format!("reference: output {index} is asked for, the program has {}", outputs.len()))
    })?;
    Ok((batch, *value))
}

fn unpacked<R: Real>(data: &Data<R>, info: &ProgramValue, batch: &Batch) -> Result<Array<R>> {
    Ok(match data {
        Data::Float(x) => Array::Float(unpack(x, R::zero(), &info.shape, batch)?),
        Data::Index(x) => Array::Index(unpack(x, 0, &info.shape, batch)?),
    })
}

fn packed<R: Real>(prepared: &Prepared<R>, value: usize, batch: &Batch) -> Result<Data<R>> {
    let info = &prepared.program.values[value];
    match &prepared.values[value] {
        Some(Array::Float(x)) => Ok(Data::Float(pack(x, &info.shape, batch)?)),
        Some(Array::Index(x)) => Ok(Data::Index(pack(x, &info.shape, batch)?)),
        None => Err(Error::internal(format!("reference: `{}` was not computed", info.name))),
    }
}

/// The persistent values that a run changes, each with the value it takes: those that the program copies, and the
/// results that it places in a persistent value's own storage. A view of a persistent value shares its
/// storage too and changes nothing.
fn ends(program: &Program) -> Vec<(usize, usize)> {
    let mut all = program.copies.clone();
    for step in program.steps.iter().filter(|s| changes_in_place(&s.op)) {
        for &value in step.outputs.iter().flatten() {
            let root = program.root(value);
            if root != value && program.updated.contains(&root) {
                all.push((root, value));
            }
        }
    }
    all
}

/// Refuses a result that has not the type and size that the program promises.
fn check<R>(info: &ProgramValue, batch: &Batch, result: &Array<R>) -> Result<()> {
    let wanted = (Rows::of(&info.shape, batch)?.count, super::array::columns(&info.shape, batch)?);
    if result.dim() != wanted || result.dtype() != info.dtype {
        return Err(Error::internal(format!(
            "`{}` came out as {:?} of {:?}, expected {:?} of {wanted:?}",
            info.name,
            result.dtype(),
            result.dim(),
            info.dtype
        )));
    }
    Ok(())
}

/// All outputs of one step, by position.
fn execute<R: Real>(call: &Call<'_, R>) -> Result<Vec<Array<R>>> {
    let one = |x: ndarray::Array2<R>| vec![Array::Float(x)];
    Ok(match &call.step.op {
        Op::Lstm(op) => lstm_forward::lstm(call, op)?,
        Op::LstmBackward(op) => lstm_backward::lstm_backward(call, op)?,
        Op::LstmInputGradient { .. } => one(lstm_gradients::input_gradient(call)?),
        Op::LstmWeightGradient { part, direction, lstm } => {
            one(lstm_gradients::weight_gradient(call, *part, *direction, lstm)?)
        }
        Op::Linear => one(linear::linear(call)?),
        Op::MatMul => one(linear::matmul(call)?),
        Op::WeightGradient => one(linear::weight_gradient(call)?),
        Op::Embedding => one(embedding::embedding(call)?),
        Op::EmbeddingBackward { rows } => one(embedding::embedding_backward(call, *rows)?),
        Op::Scatter => one(embedding::scatter(call)?),
        Op::Dropout { rate, operation, mask } => one(dropout::dropout(call, *rate, *operation, *mask)?),
        Op::Elementwise { exprs } => elementwise::elementwise(call, exprs)?,
        Op::Reduce { kind, over } => one(reduce::reduce(call, *kind, *over)?),
        Op::CrossEntropy { ignore } => cross_entropy::cross_entropy(call, *ignore)?,
        Op::CrossEntropyBackward { ignore } => one(cross_entropy::cross_entropy_backward(call, *ignore)?),
        Op::Softmax => one(softmax::softmax(call)?),
        Op::OverTime { kind } => one(time::over_time(call, *kind)?),
        Op::Attention(op) => attention::attention(call, op)?.into_iter().map(Array::Float).collect(),
        Op::AttentionBackward { attention: op, part } => one(attention::attention_backward(call, op, *part)?),
        Op::Remember(op) => one(memory::remember(call, op)?),
        Op::Recall(op) => one(memory::recall(call, op)?),
        Op::RecallBackward { memory: op, part } => one(memory::recall_backward(call, op, *part)?),
        Op::RecallPlaces(op) => memory::recall_places(call, op)?.into_iter().map(Array::Float).collect(),
        Op::RecallTokens { memory: op, vocabulary } => one(memory::recall_tokens(call, op, *vocabulary)?),
        Op::Gather(places) => {
            let y = call.step.outputs[0].ok_or_else(|| Error::internal("nobody wants the output"))?;
            let shape = &call.program.values[y].shape;
            let size = (Rows::of(shape, call.batch)?.count, super::array::columns(shape, call.batch)?);
            one(gather::gather(call, places, size, shape.axis())?)
        }
        Op::Concat => one(columns::concat(call)?),
        Op::Slice { first, count } => one(columns::slice(call, *first, *count)?),
        Op::Pad { before, after } => one(columns::pad(call, *before, *after)?),
        Op::ArgMax => vec![Array::Index(argmax::argmax(call)?)],
        Op::View { .. } => vec![view::view(call)?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::graph::{B, Expr, Graph, N};
    use crate::scheduler::{Capacity, CompileOptions, Target, compile};

    fn program(graph: &Graph, batch: &Batch) -> Arc<Program> {
        let options = CompileOptions::new(&Capacity::exactly(batch));
        Arc::new(compile(graph, Target::REFERENCE, &options).unwrap())
    }

    #[test]
    fn updates_take_what_values_were_before_the_run() {
        let mut g = Graph::new();
        let [p, q, r] = ["p", "q", "r"].map(|name| g.persistent(name, [2]).unwrap());
        let doubled = g.elementwise(Expr::Input(0) * Expr::Const(2.0), &[p]).unwrap();
        let moved = g.elementwise(Expr::Input(0) + Expr::Input(1), &[r, p]).unwrap();
        g.update(p, doubled).unwrap();
        g.update(q, p).unwrap();
        g.update(r, moved).unwrap();
        let batch = Batch::dense(1, 1).unwrap();
        let program = program(&g, &batch);
        let mut reference = Reference::<f32>::new();
        for (name, start) in [("p", 1.0), ("q", 10.0), ("r", 100.0)] {
            reference.declare(name, &[2], DType::F32);
            reference.write_exact(name, &[start, start + 1.0]).unwrap();
        }
        let mut prepared = reference.prepare(&program).unwrap();
        reference.run(&mut prepared, &batch, &[] as &[Tensor]).unwrap();
        let read = |name: &str| reference.read(name).unwrap().into_f32s().unwrap();
        assert_eq!([read("p"), read("q"), read("r")], [vec![2.0, 4.0], vec![1.0, 2.0], vec![101.0, 103.0]]);
        // q takes p after the run, so p is not written in place; r is.
        assert_eq!(program.copies.len(), 2, "{}", program.describe());
    }

    #[test]
    fn states_larger_than_the_batch_change_in_their_leading_rows_only() {
        let mut g = Graph::new();
        let s = g.persistent("s", [B, 2.into()]).unwrap();
        let next = g.elementwise(Expr::Input(0) + Expr::scalar("by"), &[s]).unwrap();
        let seen = g.view(s, [B, 1.into(), 2.into()]).unwrap();
        g.update(s, next).unwrap();
        g.output("seen", seen).unwrap();
        let mut batch = Batch::dense(1, 2).unwrap();
        let program = program(&g, &batch);
        let mut reference = Reference::<f64>::new();
        assert_eq!(reference.prepare(&program).unwrap_err().kind(), ErrorKind::Argument);
        reference.declare("s", &[3, 2], DType::F32);
        reference.write("s", &Tensor::new(&[4], vec![1.0, 2.0, 3.0, 4.0]).unwrap()).unwrap();
        let mut prepared = reference.prepare(&program).unwrap();
        assert!(reference.run(&mut prepared, &batch, &[] as &[Tensor]).is_err(), "the scalar is not set");
        assert!(reference.output(&prepared, 0).is_err());
        batch.set_scalar("by", 0.5);
        reference.run(&mut prepared, &batch, &[] as &[Tensor]).unwrap();
        let read = reference.read("s").unwrap();
        assert_eq!((read.shape(), read.f32s().unwrap()), (&[3, 2][..], &[1.5, 2.5, 3.5, 4.5, 0.0, 0.0][..]));
        assert_eq!(reference.value(&prepared, "s"), Some(vec![1.0, 2.0, 3.0, 4.0]));
        let seen = reference.output(&prepared, 0).unwrap();
        assert_eq!((seen.shape(), seen.f32s().unwrap()), (&[2, 1, 2][..], &[1.0, 2.0, 3.0, 4.0][..]));
        reference.declare("s", &[1, 2], DType::F32);
        assert_eq!(reference.run(&mut prepared, &batch, &[] as &[Tensor]).unwrap_err().kind(), ErrorKind::Shape);
    }

    #[test]
    fn integers_out_of_range_and_inputs_that_do_not_fit_are_errors() {
        let mut g = Graph::new();
        let (table, tokens) = (g.persistent("table", [3, 2]).unwrap(), g.input("tokens", [N], DType::U32).unwrap());
        let y = g.embedding(table, tokens).unwrap();
        let loss = g.cross_entropy(y, tokens, Some(2)).unwrap();
        g.output("loss", loss.sum).unwrap();
        let batch = Batch::ragged(&[1, 0, 2]).unwrap();
        let program = program(&g, &batch);
        let mut reference = Reference::<f32>::new();
        reference.declare("table", &[3, 2], DType::F32);
        let mut prepared = reference.prepare(&program).unwrap();
        let tensor = |tokens: &[u32]| Tensor::from_u32(&[tokens.len()], tokens.to_vec()).unwrap();
        let mut run = |t: Tensor| {
            reference.run(&mut prepared, &batch, &[t]).map_err(|e| e.kind())?;
            Ok(reference.output(&prepared, 0).unwrap().f32s().unwrap()[0])
        };
        assert_eq!(run(tensor(&[2, 2, 2])), Ok(0.0));
        assert!(run(tensor(&[1, 0, 2])).is_ok_and(|loss| (loss - 2.0 * 2f32.ln()).abs() < 1e-6));
        assert_eq!(run(tensor(&[0, 1, 3])), Err(ErrorKind::Data));
        assert_eq!(run(tensor(&[0, 1])), Err(ErrorKind::Shape));
        assert_eq!(run(Tensor::zeros(&[3])), Err(ErrorKind::Shape));
        assert!(reference.run(&mut prepared, &batch, &[] as &[Tensor]).is_err());
        assert!(reference.run(&mut prepared, &Batch::dense(3, 3).unwrap(), &[tensor(&[0; 9])]).is_err());
    }
}
