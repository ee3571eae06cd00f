//! What a file tells of the calls of layers: the tensors that they read, and their settings.

use super::config::Object;
use super::entry::{Reference, reference, references, tensors};
use super::inner::{Call, Member, Model, Models, Part, Place, shape_of};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// Finds the tensors that a model refers to.
pub(super) struct Finder<'m, 'a> {
    members: &'m [Member<'a>],
    models: &'m [Model<'a>],
    places: BTreeMap<&'a str, usize>,
    /// Of each member the number that its first call has.
    first: Vec<usize>,
    is_old: bool,
}

impl<'m, 'a> Finder<'m, 'a> {
    pub fn of(config: Object<'a>, members: &'m [Member<'a>], models: &'m [Model<'a>], is_old: bool) -> Self {
        let places: BTreeMap<&str, usize> = members.iter().enumerate().map(|(at, m)| (m.entry.name, at)).collect();
        let mut first = vec![0; members.len()];
        if is_old {
            // In Keras 2 a model is called by itself before any other calls it, unless it was built late. All calls in
            // a file are read by some other or are outputs.
            let mut read = references(config.get("output_layers"));
            members.iter().flat_map(|m| m.entry.nodes).for_each(|node| tensors(node, &mut read));
            let mut least = vec![usize::MAX; members.len()];
            for (name, call, _) in read {
                if let Some(least) = places.get(name).and_then(|&at| least.get_mut(at)) {
                    *least = call.min(*least);
                }
            }
            let is_model = |member: &Member<'_>| matches!(member.part, Part::Model(_));
            let one = |(member, least): (&Member<'_>, usize)| usize::from(is_model(member) && least == 1);
            first = members.iter().zip(least).map(one).collect();
        }
        Self { members, models, places, first, is_old }
    }

    /// The number that the first call of a layer has in the outputs of the model that calls it: Keras 3 counts the call
    /// that a functional model has by itself there, and not in what other calls read.
    pub fn outputs_from(&self, name: &str) -> usize {
        let member = self.places.get(name).and_then(|&at| self.members.get(at));
        let functional = |m: &Member<'_>| matches!(m.part, Part::Model(_)) && m.entry.class != "Sequential";
        usize::from(!self.is_old && member.is_some_and(functional))
    }

    /// The tensor that `place` refers to, where the first call has at least the number `from`.
    pub fn find(&self, place: &str, &(name, call, output): &Reference<'_>, from: usize) -> Result<Place> {
        let refuse = |what: String| Err(Error::data(format!("keras: {place}: {what}")));
        let Some((at, member)) = self.places.get(name).and_then(|&at| Some((at, self.members.get(at)?))) else {
            return refuse(format!("what it reads comes from `{name:.80}`, which is no layer of the model"));
        };
        let calls = if member.part == Part::Input { 1 } else { member.entry.nodes.len() };
        let from = from.max(self.first.get(at).copied().unwrap_or(0));
        let Some(number) = call.checked_sub(from).filter(|&number| number < calls) else {
            return refuse(format!("`{name}` has {calls} calls, numbered from {from}, and none is {call}"));
        };
        let outputs = match member.part {
            Part::Model(inner) => self.models.get(inner).map_or(0, |m| m.outputs.len()),
            // How many there are is known where the layer is.
            Part::Layer(_) => usize::MAX,
            Part::Input | Part::Mask => 1,
        };
        if output >= outputs {
            return refuse(format!("`{name}` has no output {output}, only {outputs}"));
        }
        Ok((at, number, output))
    }
}

/// The tensors in an argument in the order in which Keras has them, or what in it is none.
fn collect<'a>(value: &'a Value, found: &mut Vec<Option<&'a Value>>) -> std::result::Result<(), &'a Value> {
    match value {
        Value::Null => found.push(None),
        Value::Array(list) => list.iter().try_for_each(|v| collect(v, found))?,
        Value::Object(_) if history(value).is_some() => found.push(Some(value)),
        Value::Object(object) if !object.contains_key("class_name") => {
            object.values().try_for_each(|v| collect(v, found))?;
        }
        other => return Err(other),
    }
    Ok(())
}

/// What a tensor of the file comes from.
fn history(tensor: &Value) -> Option<Reference<'_>> {
    reference(tensor.get("config")?.get("keras_history")?)
}

/// A call as the file has it, and how many axes the tensors in its first argument have.
pub(super) fn call<'a>(finder: &Finder<'_, 'a>, member: &Member<'a>, node: &'a Value) -> Result<(Call, Vec<Axes>)> {
    let name = member.name.as_str();
    let refuse = |what: String| Err(Error::unsupported(format!("keras: {name}: {what} is not supported")));
    let args = node.get("args").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if member.part == Part::Mask {
        let mut read = Vec::new();
        args.iter().for_each(|arg| tensors(arg, &mut read));
        let first = read.iter().map(|r| finder.find(name, r, 0)).collect::<Result<_>>()?;
        let value = args.get(1).and_then(Value::as_f64);
        return Ok((Call { first, value, ..Call::default() }, Vec::new()));
    }
    let (mut first, mut more, mut masks, mut causal) = (Vec::new(), Vec::new(), Vec::new(), false);
    for (at, arg) in args.iter().enumerate() {
        if let Err(odd) = collect(arg, if at == 0 { &mut first } else { &mut more }) {
            return refuse(format!("the argument {:.80}, which is no tensor,", odd.to_string()));
        }
    }
    let is_attention = matches!(member.entry.class, "Attention" | "AdditiveAttention");
    let kwargs = node.get("kwargs").and_then(Value::as_object);
    for (key, value) in kwargs.into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        let known = match (key.as_str(), member.entry.class) {
            ("initial_state", "LSTM" | "Bidirectional") => collect(value, &mut more).is_ok(),
            ("mask", _) => collect(value, &mut masks).is_ok(),
            ("use_causal_mask", _) if is_attention && value.is_boolean() => {
                causal = value == &Value::Bool(true);
                true
            }
            ("return_attention_scores", _) => is_attention && value == &Value::Bool(false),
            ("training", _) => value == &Value::Bool(false),
            _ => false,
        };
        if !known {
            return refuse(format!("the argument `{key:.80}`"));
        }
    }
    if matches!(member.part, Part::Model(_)) && args.first().is_some_and(|arg| named_otherwise(member, arg)) {
        return refuse("a call of a model with other names than those of its inputs".to_string());
    }
    let axes = |tensor: &&Value| tensor.get("config").and_then(|c| c.get("shape")?.as_array()).map(Vec::len);
    let shapes = first.iter().flatten().map(axes).collect();
    let place = |tensor: &Value| match history(tensor) {
        Some(reference) => finder.find(name, &reference, 0).map(Some),
        None => Ok(None),
    };
    let places = |list: Vec<Option<&Value>>| -> Result<Vec<Place>> {
        list.into_iter().flatten().filter_map(|tensor| place(tensor).transpose()).collect()
    };
    let masks = masks.into_iter().map(|tensor| tensor.map_or(Ok(None), place)).collect::<Result<_>>()?;
    Ok((Call { first: places(first)?, more: places(more)?, masks, causal, value: None }, shapes))
}

/// Whether an argument names the inputs of the model that it is for, and has not the names that the model itself has.
fn named_otherwise(member: &Member<'_>, arg: &Value) -> bool {
    let Some(given) = arg.as_object().filter(|_| history(arg).is_none()) else { return false };
    let wanted = member.entry.config.get("input_layers").as_object();
    wanted.is_none_or(|wanted| !wanted.keys().eq(given.keys()))
}

impl<'a> Models<'a> {
    /// Refuses a call of a model with other inputs than its own, also those that Keras would make fit.
    pub fn check_inputs(
        &self,
        members: &[Member<'a>],
        member: &Member<'a>,
        call: &Call,
        shapes: &[Axes],
    ) -> Result<()> {
        let Part::Model(inner) = member.part else { return Ok(()) };
        let Some(inner) = self.models.get(inner) else { return Err(Error::internal("keras: a call of no model")) };
        let (wanted, got) = (inner.inputs.len(), call.first.len());
        if wanted != got || !call.more.is_empty() {
            let got = got + call.more.len();
            let error = format!("keras: {}: expected {wanted} inputs of the model, got {got}", member.name);
            return Err(Error::data(error));
        }
        for (at, (&input, &place)) in inner.inputs.iter().zip(&call.first).enumerate() {
            let Some(own) = inner.members.get(input) else { continue };
            let source = members.get(place.0).filter(|m| m.part == Part::Input);
            let shape = |m: &Member<'_>| shape_of(&m.entry).as_array().map(Vec::len);
            let got = shapes.get(at).copied().flatten().or_else(|| source.and_then(shape));
            if let (Some(got), Some(wanted)) = (got, shape(own))
                && got != wanted
            {
                let (name, input) = (&member.name, own.entry.name);
                let error = format!("keras: {name}: expected {wanted} axes for its input `{input}`, got {got}");
                return Err(Error::unsupported(error));
            }
            let reads = |m: &&Member<'_>| m.calls.iter().any(|c| c.reads().any(|r| r.0 == input));
            let looks_up = |m: &Member<'_>| m.part == Part::Mask || m.entry.class == "Embedding";
            let tokens = || inner.members.iter().filter(reads).all(looks_up);
            let (wanted, got) = (own.entry.config.get("dtype").as_str(), self.dtype(members, place));
            if let (Some(wanted), Some(got)) = (wanted, got)
                && !(converts(got, wanted) || got == "float32" && is_whole(wanted) && tokens())
            {
                let (name, input) = (&member.name, own.entry.name);
                let error = format!("keras: {name}: expected {wanted} for its input `{input}`, got {got}");
                return Err(Error::unsupported(error));
            }
        }
        Ok(())
    }

    /// The type of the numbers in a tensor, where the file tells it.
    fn dtype(&self, members: &[Member<'a>], (at, _, output): Place) -> Option<&'a str> {
        let member = members.get(at)?;
        match member.part {
            Part::Input => member.entry.config.get("dtype").as_str(),
            Part::Mask => None,
            Part::Layer(_) => Some("float32"),
            Part::Model(inner) => {
                let inner = self.models.get(inner)?;
                self.dtype(&inner.members, *inner.outputs.get(output)?)
            }
        }
    }
}

/// The number of axes of a tensor, where the file tells it.
type Axes = Option<usize>;

fn is_whole(dtype: &str) -> bool {
    matches!(dtype, "int32" | "int64")
}

/// Whether numbers stay what they are where Keras converts them.
fn converts(from: &str, to: &str) -> bool {
    from == to || is_whole(from) && (is_whole(to) || to == "float32")
}
