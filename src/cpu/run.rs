//! One run of a program: where the values of each step are, and which operation computes it.

use super::call::{Cached, Call, Operand};
use super::dropout::{RowKind, dropout};
use super::elementwise::elementwise;
use super::lstm_backward::lstm_backward;
use super::lstm_forward::lstm_forward;
use super::lstm_layer::PACKS;
use super::room::Room;
use super::storage::{self, Buffer, Memory, Place};
use super::tape::Tape;
use super::watch::Watch;
use super::{attention, columns, gather, memory, products, reduce, rows, softmax, time};
use crate::error::{Error, Result};
use crate::graph::{Dim, Op, Symbol};
use crate::params::Tensor;
use crate::scheduler::program::root;
use crate::scheduler::strategy::row_axis;
use crate::scheduler::{Action, Batch, Move, Part, Program, Side, Stage, Step};
use std::ops::Range;

/// One run.
pub(super) struct Run<'a> {
    pub program: &'a Program,
    pub inputs: &'a [&'a Tensor],
    pub scalars: Vec<f32>,
    /// The sizes of every value.
    pub whole: &'a [Vec<usize>],
    /// The same, but for those of a part those in the part that runs.
    pub shapes: &'a mut [Vec<usize>],
    pub places: &'a [Option<(Buffer, usize)>],
    pub memory: Memory<'a>,
    pub room: &'a Room,
    pub watch: Option<&'a mut Watch>,
}

impl Run<'_> {
    /// Runs all stages over `batch`, with what each step keeps.
    pub fn all(&mut self, batch: &Batch, tapes: &[Vec<Option<Tape>>], packs: &mut [[Cached; PACKS]]) -> Result<()> {
        self.shapes.clone_from_slice(self.whole);
        self.give()?;
        for (stage, tapes) in self.program.stages.iter().zip(tapes) {
            stage.for_parts(batch, |part| self.part(stage, part, tapes, packs))?;
        }
        self.copy()
    }

    fn place(&self, value: usize) -> Result<Place> {
        let (buffer, offset) = self.places[value]
            .ok_or_else(|| Error::internal(format!("cpu: `{}` has no place", self.program.values[value].name)))?;
        Ok(Place { buffer, offset, len: self.shapes[value].iter().product() })
    }

    /// Stores the inputs that are held whole and are read after the run; others are read where they are.
    fn give(&mut self) -> Result<()> {
        for ((_, value), tensor) in self.program.inputs.iter().zip(self.inputs) {
            if matches!(self.places[*value], None | Some((Buffer::Input(_), _))) {
                continue;
            }
            let place = self.place(*value)?;
            storage::store(tensor, 0, self.memory.write(place)?)?;
        }
        Ok(())
    }

    /// Gives persistent values what they take at the end of a run.
    fn copy(&mut self) -> Result<()> {
        self.shapes.clone_from_slice(self.whole);
        // All sources are read before any is overwritten: values may change places.
        let mut copies = Vec::with_capacity(self.program.copies.len());
        for &(persistent, source) in &self.program.copies {
            copies.push((persistent, self.memory.read(self.place(source)?)?.to_vec()));
        }
        for (persistent, values) in copies {
            let place = self.place(persistent)?;
            self.memory.write(place)?.copy_from_slice(&values);
        }
        Ok(())
    }

    fn part(
        &mut self,
        stage: &Stage,
        part: &Part<'_>,
        tapes: &[Option<Tape>],
        packs: &mut [[Cached; PACKS]],
    ) -> Result<()> {
        for (value, shape) in self.program.values.iter().zip(&mut *self.shapes).filter(|(v, _)| v.cut == stage.cut) {
            part.batch.resolve_into(&value.shape, shape)?;
        }
        for m in stage.before.iter().filter(|_| part.begins) {
            self.transfer(m, part)?;
        }
        for (action, tape) in stage.body.iter().zip(tapes) {
            match action {
                Action::Move(m) => self.transfer(m, part)?,
                Action::Pack(..) | Action::Bring(..) => {
                    return Err(Error::internal("cpu: weights are packed where they are read"));
                }
                Action::Step(step) => {
                    let begin = self.watch.as_ref().map(|watch| watch.now());
                    let mut own = step.number;
                    if self.program.shares[step.number] {
                        // What is there is another step's.
                        own = self.program.steps.len();
                        packs[own].iter_mut().for_each(Cached::forget);
                    }
                    let run = self.step(step, part, tape.as_ref(), &mut packs[own]);
                    run.map_err(|e| e.within(step.op.name()))?;
                    self.watch.iter_mut().zip(begin).for_each(|(watch, begin)| watch.note(step, begin));
                }
            }
        }
        for m in stage.after.iter().filter(|_| part.ends) {
            self.transfer(m, part)?;
        }
        Ok(())
    }

    /// Copies values from one side to the other.
    fn transfer(&mut self, m: &Move, part: &Part<'_>) -> Result<()> {
        let to = self.ranges(m.to, part)?;
        let Some(target) = m.to.value() else { return Err(Error::internal("cpu: a move leads nowhere")) };
        let (buffer, offset) = self.places[target].ok_or_else(|| Error::internal("cpu: a move leads nowhere"))?;
        let whole = Place { buffer, offset, len: 0 };
        let mut taken = self.memory.take(&[Some(whole)])?;
        let result =
            taken.get_mut(&buffer).ok_or_else(|| Error::internal("cpu: a buffer is missing")).and_then(|data| {
                let mut targets = to.iter().map(|r| offset + r.start..offset + r.end);
                match m.from {
                    Side::Home(_) => return Err(Error::internal("cpu: nothing is brought from where it can be read")),
                    Side::Zero => targets.for_each(|r| data[r].fill(0.0)),
                    Side::Input(at) => {
                        let columns =
                            self.inputs[at].len() / self.inputs[at].shape().first().copied().unwrap_or(1).max(1);
                        let rows = part.rows(&self.program.values[self.program.inputs[at].1].shape)?;
                        let mut to = targets.next().unwrap_or(0..0).start;
                        for rows in rows {
                            let n = rows.len() * columns;
                            storage::store(self.inputs[at], rows.start * columns, &mut data[to..to + n])?;
                            to += n;
                        }
                    }
                    Side::Whole(source) | Side::Part(source) | Side::Slot(source) => {
                        let (from, start) =
                            self.places[source].ok_or_else(|| Error::internal("cpu: a move from nowhere"))?;
                        let ranges = self.ranges(m.from, part)?.into_iter();
                        let place = |r: Range<usize>| Place { buffer: from, offset: start + r.start, len: r.len() };
                        let mut sources = ranges.map(|r| self.memory.read(place(r)));
                        let mut values: &[f32] = &[];
                        for range in targets {
                            let mut target = &mut data[range];
                            while !target.is_empty() {
                                if values.is_empty() {
                                    let short = || Err(Error::internal("cpu: a move has too few values"));
                                    values = sources.next().unwrap_or_else(short)?;
                                }
                                let n = target.len().min(values.len());
                                let (now, later) = std::mem::take(&mut target).split_at_mut(n);
                                now.copy_from_slice(&values[..n]);
                                (target, values) = (later, &values[n..]);
                            }
                        }
                    }
                }
                Ok(())
            });
        self.memory.put(taken);
        result
    }

    /// The values of one side of a move, as ranges of its storage.
    fn ranges(&self, side: Side, part: &Part<'_>) -> Result<Vec<Range<usize>>> {
        Ok(match side {
            Side::Zero | Side::Input(_) | Side::Home(_) => Vec::new(),
            Side::Whole(v) => std::iter::once(0..self.shapes[v].iter().product()).collect(),
            Side::Part(v) => {
                let columns: usize = self.shapes[v].iter().skip(1).product();
                let rows = part.rows(&self.program.values[v].shape)?;
                rows.into_iter().map(|r| r.start * columns..r.end * columns).collect()
            }
            Side::Slot(v) => {
                let (slot, row): (usize, usize) = (self.shapes[v].iter().skip(1).product(), self.shapes[v][2]);
                let first = part.slot * slot;
                std::iter::once(first..first + part.batch.sequences() * row).collect()
            }
        })
    }

    fn step(&mut self, step: &Step, part: &Part<'_>, tape: Option<&Tape>, packs: &mut [Cached]) -> Result<()> {
        if matches!(step.op, Op::View { .. }) {
            return Ok(());
        }
        let places = step.outputs.iter().map(|o| o.map(|o| self.place(o)).transpose()).collect::<Result<Vec<_>>>()?;
        let mut taken = self.memory.take(&places)?;
        let result = storage::carve(&mut taken, &places).and_then(|outputs| {
            let inputs = step.inputs.iter().map(|i| i.map(|i| self.operand(i, step)).transpose());
            let inputs = inputs.collect::<Result<Vec<_>>>()?;
            let continues = step.accumulates && part.continues;
            let mut call =
                Call { inputs, outputs, batch: part.batch, scalars: &self.scalars, packs, continues, room: self.room };
            self.dispatch(step, tape, &mut call)
        });
        self.memory.put(taken);
        result
    }

    /// The input `value` of `step`, whose outputs' buffers are taken.
    fn operand(&self, value: usize, step: &Step) -> Result<Operand<'_>> {
        let root = |v: usize| root(&self.program.values, v);
        let same = |o: &Option<usize>| o.is_some_and(|o| root(o) == root(value));
        let in_place_of = step.outputs.iter().position(same);
        let place = self.place(value)?;
        let data = if in_place_of.is_some() { None } else { Some(self.memory.read(place)?) };
        let version = match place.buffer {
            Buffer::Persistent(at) => Some(self.memory.persistents[at].version),
            Buffer::Arena(_) | Buffer::Input(_) => None,
        };
        let axis = row_axis(&self.program.values[value].shape);
        Ok(Operand { data, shape: &self.shapes[value], axis, version, in_place_of })
    }

    fn dispatch(&self, step: &Step, tape: Option<&Tape>, call: &mut Call<'_>) -> Result<()> {
        let kind = || {
            let rows = step.inputs[0].and_then(|x| self.program.values[x].shape.rows().cloned());
            match rows {
                Some(Dim::Symbol(Symbol::Rows(axis))) => RowKind::Axis(axis),
                Some(Dim::Symbol(Symbol::Batch)) => RowKind::Batch,
                _ => RowKind::Fixed,
            }
        };
        match &step.op {
            Op::Lstm(op) => lstm_forward(call, op),
            Op::LstmBackward(op) => lstm_backward(call, op),
            Op::LstmWeightGradient { part, direction, lstm } => {
                products::lstm_weight_gradient(call, *part, *direction, lstm)
            }
            Op::Linear => products::linear(call),
            Op::MatMul => products::matmul(call),
            Op::LstmInputGradient { .. } => products::lstm_input_gradient(call),
            Op::WeightGradient => products::weight_gradient(call),
            Op::Embedding => rows::embedding(call),
            Op::EmbeddingBackward { rows } => rows::embedding_backward(call, *rows),
            Op::Scatter => rows::scatter(call),
            Op::Dropout { rate, operation, mask } => dropout(call, *rate, *operation, *mask, kind()),
            Op::Elementwise { .. } => {
                let output = step.outputs.iter().flatten().next().copied();
                let columns = output.map_or(1, |o| self.shapes[o].iter().skip(1).product());
                let tape = tape.ok_or_else(|| Error::internal("the expressions are not compiled"))?;
                elementwise(call, tape, columns)
            }
            Op::Reduce { kind, over } => reduce::reduce(call, *kind, *over),
            Op::CrossEntropy { ignore } => softmax::cross_entropy(call, *ignore),
            Op::CrossEntropyBackward { ignore } => softmax::cross_entropy_backward(call, *ignore),
            Op::Softmax => softmax::softmax(call),
            Op::OverTime { kind } => time::over_time(call, *kind),
            Op::Attention(op) => attention::attention(call, op),
            Op::AttentionBackward { attention: op, part } => attention::attention_backward(call, op, *part),
            Op::Remember(op) => memory::remember(call, op),
            Op::Recall(op) => memory::recall(call, op),
            Op::RecallBackward { memory: op, part } => memory::recall_backward(call, op, *part),
            Op::RecallPlaces(op) => memory::recall_places(call, op),
            Op::RecallTokens { memory: op, vocabulary } => memory::recall_tokens(call, op, *vocabulary),
            Op::Gather(gather) => {
                let shape = |value: Option<usize>| value.map(|v| &self.program.values[v].shape);
                let (x, y) = (shape(step.inputs[0]), shape(step.outputs[0]));
                let (x, y) = x.zip(y).ok_or_else(|| Error::internal("nobody wants the output"))?;
                gather::gather(call, gather, x, y)
            }
            Op::Concat => columns::concat(call),
            Op::Slice { first, .. } => columns::slice(call, *first),
            Op::Pad { before, .. } => columns::pad(call, *before),
            Op::ArgMax => rows::argmax(call),
            Op::View { .. } => Ok(()),
        }
    }
}
