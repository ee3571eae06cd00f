//! Models inside a model, taken apart: what calls others becomes one model of their layers. A layer of a model inside is
//! called after both, is called once for each call of its model, and has its parameters once. Weights stay where they
//! are: `names` tells which group is whose.

use super::archive::KerasArchive;
use super::entry::IN_ORDER;
use super::inner::{Level, Member, Models, Part, Place, count, is_model, shape_of, too_many_calls};
use super::masking::{self, Carried, Mask, Masks, Read, Tensor};
use super::model::CALLS;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The archive with the layers of the models inside its model in their place, and with the masks that Keras 3 finds as it
/// runs; as it is where there are neither.
pub(super) fn flatten(mut archive: KerasArchive) -> Result<KerasArchive> {
    let class = |value: &Value| value.get("class_name").and_then(Value::as_str).is_some_and(is_model);
    let masks = archive.keras_version.starts_with("3.");
    let counts = |layer: &Value| class(layer) || masks && makes_mask(layer);
    let layers = archive.config.get("config").and_then(|c| c.get("layers")).and_then(Value::as_array);
    if !class(&archive.config) || !layers.is_some_and(|layers| layers.iter().any(counts)) {
        return Ok(archive);
    }
    let (config, names) = flattened(&archive)?;
    let compiled = archive.config.get_mut("compile_config").map(Value::take);
    archive.config = json!({ "class_name": "Functional", "config": config, "compile_config": compiled });
    archive.names = names;
    Ok(archive)
}

/// Whether a layer leaves out steps by their values.
fn makes_mask(layer: &Value) -> bool {
    let setting = layer.get("config").and_then(|config| config.get("mask_zero"));
    layer.get("class_name").and_then(Value::as_str) == Some("Masking") || setting == Some(&Value::Bool(true))
}

/// The configuration of the whole, and the name of each layer by the group that has its weights.
fn flattened(archive: &KerasArchive) -> Result<(Value, BTreeMap<String, String>)> {
    let mut models = Models::new(archive);
    let number = models.read(&archive.config, &Level::whole())?;
    let mut run = Run::of(&models);
    let inputs = models.models.get(number).map_or(0, |whole| whole.inputs.len());
    let given: Vec<Carried> =
        (0..inputs).map(|at| Carried::Tensor((models.layers.len() + at, 0, 0), Mask::None)).collect();
    let outputs = run.model(number, &given)?;
    let calls = run.calls;
    let mut groups = BTreeMap::new();
    for layer in &models.layers {
        let Some(group) = &layer.group else { continue };
        if let Some(other) = groups.insert(format!("{group}/vars"), layer.name.clone()) {
            let error = format!("keras: {}: expected weights of its own, got those of `{other}`", layer.name);
            return Err(Error::data(error));
        }
    }
    let names = models.layers.iter().map(|layer| layer.name.clone()).collect();
    let mut whole = Whole { models, number, names, masks: Vec::new() };
    Ok((whole.config(&archive.config, &calls, &outputs)?, groups))
}

/// A call of a layer in the whole.
struct Placed {
    reads: Vec<Tensor>,
    masks: Vec<Mask>,
    causal: bool,
}

/// What a call gives.
enum Made {
    /// A layer's outputs: its number, its call, the mask of the first output, and whether the second has it too.
    Layer(usize, usize, Mask, bool),
    All(Vec<Carried>),
}

impl Made {
    fn get(&self, output: usize) -> Option<Carried> {
        match self {
            Self::All(all) => all.get(output).copied(),
            &Self::Layer(layer, call, mask, both) => {
                let mask = if output == 0 || both && output == 1 { mask } else { Mask::None };
                Some(Carried::Tensor((layer, call, output), mask))
            }
        }
    }
}

/// The calls of one model that are placed, by member and number.
type Calls = BTreeMap<(usize, usize), Made>;

/// Goes through models as Keras does when it runs them.
struct Run<'m, 'a> {
    models: &'m Models<'a>,
    /// The calls of each layer.
    calls: Vec<Vec<Placed>>,
    /// Calls so far, and tensors read: models in models repeat them.
    count: usize,
    reads: usize,
}

impl<'m, 'a> Run<'m, 'a> {
    fn of(models: &'m Models<'a>) -> Self {
        Self { models, calls: models.layers.iter().map(|_| Vec::new()).collect(), count: 0, reads: 0 }
    }

    /// One call of a model.
    fn model(&mut self, number: usize, given: &[Carried]) -> Result<Vec<Carried>> {
        let models = self.models;
        let Some(model) = models.models.get(number) else { return Err(Error::internal("keras: a call of no model")) };
        let inputs = model.inputs.iter().zip(given);
        let mut made: Calls = inputs.map(|(&at, &carried)| ((at, 0), Made::All(vec![carried]))).collect();
        for &(at, call) in &model.calls {
            if let Some(member) = model.members.get(at) {
                let given = self.call(member, call, &made)?;
                made.insert((at, call), given);
            }
        }
        count(&mut self.reads, model.outputs.len())?;
        model.outputs.iter().map(|&place| find("the model", &made, place)).collect()
    }

    /// One call of a member of a model of which others are `made`.
    fn call(&mut self, member: &Member<'a>, number: usize, made: &Calls) -> Result<Made> {
        self.count += 1;
        if self.count > CALLS {
            return Err(too_many_calls());
        }
        let Some(call) = member.calls.get(number) else { return Err(Error::internal("keras: no such call")) };
        count(&mut self.reads, call.first.len() + call.more.len())?;
        let name = member.name.as_str();
        let find = |&place: &Place| find(name, made, place);
        if member.part == Part::Mask {
            let first = call.first.first().map(find).transpose()?;
            return Ok(Made::All(vec![Carried::Mask(masking::made(&member.entry, first, call.value))]));
        }
        let tensor = |place: &Place| match find(place)? {
            Carried::Tensor(tensor, mask) => Ok((tensor, mask)),
            Carried::Mask(_) => {
                Err(Error::unsupported(format!("keras: {name}: a mask as what it reads is not supported")))
            }
        };
        let first = call.first.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        let more = call.more.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        let mask = |place: &Option<Place>| match place.as_ref().map(find).transpose()? {
            Some(Carried::Mask(mask)) => Ok(Some(mask)),
            Some(Carried::Tensor(..)) => Ok(Some(Mask::Other)),
            None => Ok(None),
        };
        let masks = call.masks.iter().map(mask).collect::<Result<Vec<_>>>()?;
        match member.part {
            Part::Model(inner) => {
                Self::told(name, &first, &masks)?;
                let given: Vec<Carried> = first.iter().map(|&(tensor, mask)| Carried::Tensor(tensor, mask)).collect();
                Ok(Made::All(self.model(inner, &given)?))
            }
            Part::Layer(layer) => {
                let Masks { taken, given } = self.masks(member, &first, !more.is_empty(), &masks)?;
                let reads = first.iter().chain(&more).map(|r| r.0).collect();
                let Some(calls) = self.calls.get_mut(layer) else {
                    return Err(Error::internal("keras: no such layer"));
                };
                calls.push(Placed { reads, masks: taken, causal: call.causal });
                Ok(Made::Layer(layer, calls.len() - 1, given, masking::is_apart(&member.entry)))
            }
            Part::Input => {
                Err(Error::data(format!("keras: {name}: expected an input, which reads nothing, got a call of it")))
            }
            Part::Mask => Err(Error::internal("keras: a mask as a layer")),
        }
    }

    /// Checks the masks that a call of a model is told of. Those inside find the masks that its inputs carry.
    fn told(name: &str, first: &[(Tensor, Mask)], masks: &[Option<Mask>]) -> Result<()> {
        if masks.len() > first.len() {
            let (wanted, got) = (first.len(), masks.len());
            return Err(Error::data(format!("keras: {name}: expected {wanted} masks at most, got {got}")));
        }
        first.iter().zip(masks).try_for_each(|(&(_, mask), &one)| masking::told(name, mask, one))
    }

    /// The masks of a call of a layer. In files of Keras 2 the layers pass them on by themselves.
    fn masks(&self, member: &Member<'a>, first: &[(Tensor, Mask)], more: bool, told: &[Option<Mask>]) -> Result<Masks> {
        if self.models.is_old() {
            return Ok(Masks { taken: Vec::new(), given: Mask::None });
        }
        masking::masks(&member.entry, &Read { name: &member.name, first, more, told, operation: member.operation })
    }
}

/// What comes from a call that is placed.
fn find(name: &str, made: &Calls, (at, call, output): Place) -> Result<Carried> {
    let found = made.get(&(at, call)).and_then(|made| made.get(output));
    found.ok_or_else(|| Error::data(format!("keras: {name}: what it reads comes from no layer of the model")))
}

/// A tensor as it is serialised.
fn serialised(name: &str, call: usize, output: usize) -> Value {
    json!({ "class_name": "__keras_tensor__", "config": { "keras_history": [name, call, output] } })
}

/// A call of a model that gives outputs of the whole, and these.
type Door = (usize, Vec<Value>);

/// The whole as it is written down.
struct Whole<'a> {
    models: Models<'a>,
    /// Which of the models it is.
    number: usize,
    /// The names of layers by number, and then of inputs.
    names: Vec<String>,
    /// The masks that layers are told of, and what makes them.
    masks: Vec<(Mask, String)>,
}

impl Whole<'_> {
    fn config(&mut self, model: &Value, calls: &[Vec<Placed>], outputs: &[Carried]) -> Result<Value> {
        let sequential = model.get("class_name").and_then(Value::as_str) == Some("Sequential");
        let mut layers = self.inputs(sequential)?;
        let given: Vec<Value> =
            self.names.iter().skip(self.models.layers.len()).map(|name| json!([name, 0, 0])).collect();
        for number in listed(&self.models, self.number) {
            let nodes = calls.get(number).map_or(&[][..], Vec::as_slice);
            let nodes = nodes.iter().map(|call| self.call(call)).collect::<Result<Vec<_>>>()?;
            let Some(layer) = self.models.layers.get_mut(number) else { continue };
            let config = layer.config.take();
            layers.push(json!({ "class_name": layer.class, "config": config, "inbound_nodes": nodes }));
        }
        let (doors, outputs) = self.outputs(sequential, outputs)?;
        layers.extend(doors);
        for (mask, name) in &self.masks {
            let Mask::Of { tensor, .. } = *mask else { continue };
            let node = json!({ "args": [self.tensor(tensor)?], "kwargs": {} });
            layers.push(json!({ "class_name": "NotEqual", "config": { "name": name }, "inbound_nodes": [node] }));
        }
        let title = model.get("config").and_then(|c| c.get("name"));
        let (input, output) = ("input_layers", "output_layers");
        Ok(json!({ "name": title, "layers": layers, input: given, output: outputs, IN_ORDER: true }))
    }

    /// A tensor by the name of its layer.
    fn tensor(&self, (layer, call, output): Tensor) -> Result<Value> {
        let name = self.names.get(layer).ok_or_else(|| Error::internal("keras: a tensor of no layer"))?;
        Ok(serialised(name, call, output))
    }

    /// The inputs as layers; that of a Sequential is `x`.
    fn inputs(&mut self, sequential: bool) -> Result<Vec<Value>> {
        let x = if sequential { Some(self.models.unique("x".to_string())?) } else { None };
        let Some(model) = self.models.models.get(self.number) else { return Ok(Vec::new()) };
        let mut layers = Vec::new();
        for &at in &model.inputs {
            let Some(member) = model.members.get(at) else { continue };
            let name = x.as_ref().unwrap_or(&member.name).clone();
            let (shape, config) = (self.shape(at), member.entry.config);
            let (sparse, ragged) = (config.get("sparse"), config.get("ragged"));
            let config = json!({ "name": name, "batch_shape": shape, "sparse": sparse, "ragged": ragged });
            layers.push(json!({ "class_name": "InputLayer", "config": config, "inbound_nodes": [] }));
            self.names.push(name);
        }
        Ok(layers)
    }

    /// The shape of an input of the whole: where it is not told, that of the input inside that it is given to.
    fn shape(&self, mut at: usize) -> &Value {
        let mut number = self.number;
        while let Some(model) = self.models.models.get(number) {
            let shape = model.members.get(at).map_or(&Value::Null, |m| shape_of(&m.entry));
            let inner = |member: &Member<'_>| {
                let Part::Model(inner) = member.part else { return None };
                let read = member.calls.iter().find_map(|c| c.first.iter().position(|p| p.0 == at))?;
                Some((inner, *self.models.models.get(inner)?.inputs.get(read)?))
            };
            match model.members.iter().find_map(inner).filter(|_| shape.is_null()) {
                // Models inside were read before.
                Some((inner, input)) if inner < number => (number, at) = (inner, input),
                _ => return shape,
            }
        }
        &Value::Null
    }

    /// A call of a layer as it is serialised.
    fn call(&mut self, call: &Placed) -> Result<Value> {
        let tensors = call.reads.iter().map(|&read| self.tensor(read)).collect::<Result<Vec<_>>>()?;
        let mut kwargs = Map::new();
        if call.causal {
            kwargs.insert("use_causal_mask".to_string(), true.into());
        }
        if call.masks.iter().any(|&mask| mask != Mask::None) {
            let told = call.masks.iter().map(|&mask| self.mask(mask)).collect::<Result<Vec<_>>>()?;
            kwargs.insert("mask".to_string(), told.into());
        }
        Ok(json!({ "args": [tensors], "kwargs": kwargs }))
    }

    /// A mask as the output of the operation that makes it.
    fn mask(&mut self, mask: Mask) -> Result<Value> {
        if mask == Mask::None {
            return Ok(Value::Null);
        }
        if let Some((_, name)) = self.masks.iter().find(|known| known.0 == mask) {
            return Ok(serialised(name, 0, 0));
        }
        let name = self.models.unique("not_equal".to_string())?;
        let tensor = serialised(&name, 0, 0);
        self.masks.push((mask, name));
        Ok(tensor)
    }

    /// What the whole gives. The outputs of a model inside are called after it, and those of a Sequential `y`: they go
    /// through layers of these names that do nothing.
    fn outputs(&mut self, sequential: bool, given: &[Carried]) -> Result<(Vec<Value>, Vec<Value>)> {
        let y = if sequential { Some(self.models.unique("y".to_string())?) } else { None };
        let Some(model) = self.models.models.get(self.number) else { return Ok((Vec::new(), Vec::new())) };
        let (mut doors, mut outputs) = (BTreeMap::<String, Vec<Door>>::new(), Vec::new());
        for (&(at, call, _), &carried) in model.outputs.iter().zip(given) {
            let Carried::Tensor(tensor, _) = carried else {
                return Err(Error::unsupported("keras: the model: a mask as one of its outputs is not supported"));
            };
            let inner = model.members.get(at).filter(|m| matches!(m.part, Part::Model(_))).map(|m| &m.name);
            let Some(name) = y.as_ref().or(inner) else {
                outputs.push(json!([self.names.get(tensor.0), tensor.1, tensor.2]));
                continue;
            };
            let calls = doors.entry(name.clone()).or_default();
            let node = calls.iter().position(|known| known.0 == call).unwrap_or(calls.len());
            if node == calls.len() {
                calls.push((call, Vec::new()));
            }
            if let Some((_, through)) = calls.get_mut(node) {
                outputs.push(json!([name, node, through.len()]));
                through.push(self.tensor(tensor)?);
            }
        }
        let door = |(name, calls): (String, Vec<Door>)| {
            let nodes: Vec<Value> =
                calls.into_iter().map(|(_, through)| json!({ "args": [through], "kwargs": {} })).collect();
            json!({ "class_name": "Identity", "config": { "name": name }, "inbound_nodes": nodes })
        };
        Ok((doors.into_iter().map(door).collect(), outputs))
    }
}

/// All layers in the order in which Keras lists their variables, those of a model inside in its place.
fn listed(models: &Models<'_>, whole: usize) -> Vec<usize> {
    fn visit(models: &Models<'_>, number: usize, all: &mut Vec<usize>) {
        let Some(model) = models.models.get(number) else { return };
        for member in model.listed.iter().filter_map(|&at| model.members.get(at)) {
            match member.part {
                Part::Layer(layer) => all.push(layer),
                Part::Model(inner) => visit(models, inner, all),
                Part::Input | Part::Mask => {}
            }
        }
    }
    let mut all = Vec::new();
    visit(models, whole, &mut all);
    let known: BTreeSet<usize> = all.iter().copied().collect();
    all.extend((0..models.layers.len()).filter(|layer| !known.contains(layer)));
    all
}

#[cfg(test)]
mod tests;
