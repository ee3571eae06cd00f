//! Where the weights of models inside a model go. A model in HDF5 has one list of them for each of its own layers. That
//! of a model in it has the weights of all layers inside, model by model and layer by layer, but those that are trained
//! come first.

use super::super::archive::KerasArchive;
use super::super::config::{Object, layer};
use super::super::entry::Entry;
use super::super::inner::{Level, Member, Models, Part, is_model};
use super::super::variables::variables;
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The two layers of a Bidirectional, and how the names of what is theirs begin.
const DIRECTIONS: [(&str, &str); 2] = [("forward_layer/", "forward_"), ("backward_layer/", "backward_")];

/// A weight of a layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    /// The group of the layer in a `.keras` file, and the place of the weight in that.
    pub group: String,
    pub path: String,
    /// Its number among all in the order of their layers.
    pub number: usize,
    /// What the model that has the layer calls it.
    layer: String,
}

/// Weights in the order of their layers, by whether they are trained.
#[derive(Default)]
struct Slots {
    trained: Vec<Slot>,
    fixed: Vec<Slot>,
}

impl Slots {
    /// All that a layer or model with this configuration has.
    fn under(mut self, config: Object<'_>, old: bool) -> Self {
        // To Keras 2 nothing is trained in what is not; to Keras 3 each weight by itself is or is not.
        if old && !is_trained(config) {
            self.trained.append(&mut self.fixed);
            self.fixed = std::mem::take(&mut self.trained);
        }
        self
    }

    /// In the order in which the file lists those of a layer of the whole.
    fn listed(self, config: Object<'_>, old: bool) -> Vec<Slot> {
        let Self { mut trained, fixed } = self;
        trained.extend(fixed);
        // Keras 3 tells them apart only where any may be trained.
        if !old && !is_trained(config) {
            trained.sort_by_key(|slot| slot.number);
        }
        trained
    }
}

fn is_trained(config: Object<'_>) -> bool {
    config.get("trainable") != &Value::Bool(false)
}

/// Where the weights of each model among the layers of the whole go, in the order of its list, by its name.
pub(super) fn places(archive: &KerasArchive, old: bool) -> Result<BTreeMap<String, Vec<Slot>>> {
    let class = |value: &Value| value.get("class_name").and_then(Value::as_str).is_some_and(is_model);
    let layers = archive.config.get("config").and_then(|c| c.get("layers")).and_then(Value::as_array);
    let mut places = BTreeMap::new();
    if !class(&archive.config) || !layers.is_some_and(|layers| layers.iter().any(class)) {
        return Ok(places);
    }
    let mut models = Models::new(archive);
    let whole = models.read(&archive.config, &Level::whole())?;
    for member in models.models.get(whole).into_iter().flat_map(|model| &model.members) {
        if matches!(member.part, Part::Model(_)) {
            let slots = slots(&models, member, old, &mut 0)?.listed(member.entry.config, old);
            places.insert(member.entry.name.to_string(), slots);
        }
    }
    Ok(places)
}

/// Where the weights of a Bidirectional go, whose group is this, in the order of its list.
pub(super) fn directions(entry: &Entry<'_>, group: &str, old: bool) -> Result<Vec<Slot>> {
    Ok(of_layer(entry, entry.name, group, old, &mut 0)?.listed(entry.config, old))
}

/// The weights of a member of a model; models lie only so deep in one another, or none was read. `count` is how many
/// there were before.
fn slots(models: &Models<'_>, member: &Member<'_>, old: bool, count: &mut usize) -> Result<Slots> {
    match member.part {
        Part::Input | Part::Mask => Ok(Slots::default()),
        Part::Layer(number) => {
            let group = models.layers.get(number).and_then(|layer| layer.group.as_deref());
            // Operations have none.
            let Some(group) = group else { return Ok(Slots::default()) };
            of_layer(&member.entry, &member.name, group, old, count)
        }
        Part::Model(number) => {
            let mut all = Slots::default();
            for member in models.models.get(number).into_iter().flat_map(|model| &model.members) {
                let Slots { trained, fixed } = slots(models, member, old, count)?;
                all.trained.extend(trained);
                all.fixed.extend(fixed);
            }
            Ok(all.under(member.entry.config, old))
        }
    }
}

/// The weights of a layer that errors call `place`.
fn of_layer(entry: &Entry<'_>, place: &str, group: &str, old: bool, count: &mut usize) -> Result<Slots> {
    let config = Object { value: entry.config.value, place };
    let mut all = Slots::default();
    let Some(known) = layer(entry.class, config)? else { return Ok(all) };
    for variable in variables("", &known) {
        let (inner, path) = match entry.class {
            "TimeDistributed" => (config.get("layer"), format!("layer/{}", variable.path)),
            "Bidirectional" => {
                let [_, (backward, _)] = DIRECTIONS;
                let other =
                    Some(config.get("backward_layer")).filter(|o| o.is_object() && variable.path.starts_with(backward));
                (other.unwrap_or(config.get("layer")), variable.path)
            }
            _ => (&Value::Null, variable.path),
        };
        let inner = inner.get("config").map_or(config, |value| Object { value, place });
        let slot = Slot { group: group.to_string(), path, number: *count, layer: entry.name.to_string() };
        *count += 1;
        if is_trained(inner) { all.trained.push(slot) } else { all.fixed.push(slot) }
    }
    Ok(all.under(config, old))
}

/// Refuses the list of weights of a layer called `name` of the whole that is longer or shorter than what it is for, or
/// that by the names in it has another order: a configuration does not always tell what was trained.
pub(super) fn check(name: &str, slots: &[Slot], listed: &[String]) -> Result<()> {
    if slots.len() != listed.len() {
        let (wanted, got) = (slots.len(), listed.len());
        return Err(Error::data(format!("keras: {name}: expected a list of {wanted} weights, got one of {got}")));
    }
    let layers: BTreeSet<&str> = slots.iter().map(|slot| slot.layer.as_str()).collect();
    for (slot, weight) in slots.iter().zip(listed) {
        let has = |is: &dyn Fn(&str) -> bool| weight.split('/').any(is);
        let of_another = !has(&|part| part == slot.layer) && has(&|part| layers.contains(part));
        let own = DIRECTIONS.iter().find(|direction| slot.path.starts_with(direction.0));
        let other_way = own.is_some_and(|own| {
            !has(&|part| part.starts_with(own.1)) && has(&|part| DIRECTIONS.iter().any(|d| part.starts_with(d.1)))
        });
        if of_another || other_way {
            let expected = format!("`{}` of `{}` in its list of weights", slot.path, slot.layer);
            let error = format!("keras: {name}: expected {expected}, got `{weight}`");
            return Err(Error::unsupported(format!("{error}: the file does not tell which are trained")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
