//! Networks as files of Keras 3.

use super::archive::KerasTensor;
use super::describe::object;
use super::functional::{Model, Operation, model};
use super::names::snake_case;
use super::order::order;
use super::variables::{Variable, variables};
use crate::error::{Error, Result};
use crate::io::safetensors::replace;
use crate::nn::{Input, Layer, Network, Port};
use crate::params::{ParameterSpec, Tensor};
use hdf5_pure::{AttrValue, FileBuilder, FinishedGroup, GroupBuilder};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// The version of Keras whose files these are.
pub(super) const VERSION: &str = "3.15.1";

/// Writes a `.keras` file of a network and its parameters, which Keras 3 loads as a model that gives the same; it calls
/// the model `title`. Layers in a row from `x` to `y` become a `Sequential`, all else a functional model, whose outputs
/// keep their order and are called after their layers, as Keras has it. The two biases of an LSTM become their sum.
///
/// What Keras cannot say is an error that names the layer.
pub fn write_model(path: &Path, title: &str, network: &Network, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
    let write = || {
        let model = Written::of(title, network)?;
        let metadata = json!({ "keras_version": VERSION, "date_saved": date(SystemTime::now()) });
        let members = [
            ("metadata.json", metadata.to_string().into_bytes()),
            ("config.json", model.config.to_string().into_bytes()),
            ("model.weights.h5", model.weights(network, parameters)?),
        ];
        let size = members.iter().map(|m| m.1.len()).sum();
        let mut zip = ZipWriter::new(Cursor::new(Vec::with_capacity(size)));
        let broken = |e: zip::result::ZipError| Error::internal(format!("keras: cannot make an archive: {e}"));
        for (name, bytes) in members {
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(u32::try_from(bytes.len()).is_err());
            zip.start_file(name, options).map_err(broken)?;
            zip.write_all(&bytes).map_err(|e| broken(e.into()))?;
        }
        Ok(zip.finish().map_err(broken)?.into_inner())
    };
    let bytes = write().map_err(|e: Error| e.within(path.display()))?;
    replace(path, &bytes)
}

/// Writes the parameters of a network as a `.weights.h5` file, which [`write_model`]'s model loads in Keras.
pub fn write_weights(path: &Path, network: &Network, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
    let write = || Written::of("model", network)?.weights(network, parameters);
    let bytes = write().map_err(|e: Error| e.within(path.display()))?;
    replace(path, &bytes)
}

/// A model as Keras has it.
pub(super) struct Written {
    title: String,
    pub config: Value,
    /// The class and the name of each layer that has a group of weights, in Keras's order.
    pub layers: Vec<(&'static str, String)>,
    /// How many of these Keras knows: no output follows from the rest.
    pub known: usize,
}

impl Written {
    pub fn of(title: &str, network: &Network) -> Result<Self> {
        let title = identifier(title);
        let specs: BTreeMap<String, ParameterSpec> =
            network.parameters()?.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        check_names(network)?;
        let model = model(network, &specs)?;
        match is_chain(network)? {
            true => Ok(Self::sequential(title, &model.all)),
            false => Self::functional(title, network, &model),
        }
    }

    fn sequential(title: String, all: &[Operation]) -> Self {
        // What a row of layers passes on to one another, masks too, is not said.
        let layers = all.iter().filter(|o| o.is_layer);
        let described: Vec<Value> = layers.clone().map(|o| object("keras.layers", o.class, o.config.clone())).collect();
        let shape = all.first().map_or(Value::Null, |input| input.config["batch_shape"].clone());
        let config = json!({
            "name": title, "trainable": true, "dtype": "float32", "layers": described, "build_input_shape": shape,
        });
        let layers: Vec<_> = layers.skip(1).map(|o| (o.class, o.name.clone())).collect();
        Self { title, config: object("keras", "Sequential", config), known: layers.len(), layers }
    }

    fn functional(title: String, network: &Network, model: &Model) -> Result<Self> {
        let all = &model.all;
        let places = |ports: &mut dyn Iterator<Item = Port>| ports.map(|p| model.place(p)).collect::<Result<Vec<_>>>();
        let inputs = places(&mut (0..network.inputs.len()).map(Port::Input))?;
        let outputs = places(&mut network.outputs.iter().map(|o| o.1))?;
        if outputs.is_empty() {
            return Err(Error::argument("keras: a model needs at least one output"));
        }
        // Keras takes one tensor where it was given one, and lists where it was given those.
        let listed = |places: &[(usize, usize, usize)]| match places {
            [(at, call, output)] => json!([all[*at].name, call, output]),
            many => many.iter().map(|(at, call, output)| json!([all[*at].name, call, output])).collect(),
        };
        let config = json!({
            "name": title, "trainable": true, "layers": all.iter().map(Operation::described).collect::<Vec<_>>(),
            "input_layers": listed(&inputs), "output_layers": listed(&outputs),
        });
        let called: Vec<_> = all.iter().map(|o| o.called.clone()).collect();
        let given: Vec<usize> = (0..network.inputs.len()).collect();
        let wanted: Vec<(usize, usize)> = outputs.iter().map(|&(at, call, _)| (at, call)).collect();
        // Keras knows nothing of layers that no output follows from; they keep their weights in this file all the same.
        let mut ordered = order(&called, &given, &wanted);
        let reached: BTreeSet<usize> = ordered.iter().copied().collect();
        ordered.extend((0..all.len()).filter(|at| !reached.contains(at)));
        let known = reached.iter().filter(|&&at| all[at].is_layer).count();
        let layers = ordered.iter().map(|&at| &all[at]).filter(|o| o.is_layer);
        let layers = layers.map(|o| (o.class, o.name.clone())).collect();
        let mut config = object("keras.src.models.functional", "Functional", config);
        config["registered_name"] = "Functional".into();
        Ok(Self { title, config, layers, known })
    }

    /// The HDF5 file of the parameters.
    fn weights(&self, network: &Network, parameters: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
        for spec in network.parameters()? {
            let Some(found) = parameters.get(&spec.name) else {
                return Err(Error::data(format!("expected the parameter `{}`, there is none", spec.name)));
            };
            if found.shape() != spec.shape {
                let (wanted, got) = (&spec.shape, found.shape());
                return Err(Error::shape(format!("`{}`: expected {wanted:?}, got {got:?}", spec.name)));
            }
        }
        let mut root = Group::default();
        root.at("vars").name = Some(self.title.clone());
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (class, name) in &self.layers {
            let group = root.at("layers").at(&numbered(class, &mut counts));
            group.at("vars").name = Some(name.clone());
            let Some(node) = network.nodes.iter().find(|n| &n.name == name) else { continue };
            let cells: &[(&str, &str)] = match &node.layer {
                Layer::Lstm(_) if *class == "LSTM" => &[("cell", "lstm_cell")],
                Layer::Lstm(_) => &[
                    ("forward_layer", "forward"),
                    ("forward_layer/cell", "lstm_cell"),
                    ("backward_layer", "backward"),
                    ("backward_layer/cell", "lstm_cell"),
                ],
                _ => &[],
            };
            for (path, called) in cells {
                let inner = if *called == "lstm_cell" { (*called).to_string() } else { format!("{called}_{name}") };
                group.at(path).at("vars").name = Some(inner);
            }
            for Variable { path, parameter, form } in variables(name, &node.layer) {
                let tensor =
                    parameters.get(&parameter).ok_or_else(|| Error::internal("keras: a parameter is missing"))?;
                group.put(&path, form.write(tensor).map_err(|e| e.within(&parameter))?);
            }
        }
        root.bytes()
    }
}

/// Refuses names that a backend of Keras does not take, and those that it would take for the same.
fn check_names(network: &Network) -> Result<()> {
    let layers: BTreeSet<&str> = network.nodes.iter().map(|n| n.name.as_str()).collect();
    let mut inputs = BTreeSet::new();
    for name in network.inputs.iter().map(|i| i.0.as_str()) {
        if layers.contains(name) || !inputs.insert(name) {
            return Err(Error::argument(format!("keras: {name}: expected an input with a name of its own")));
        }
    }
    let fits = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    match inputs.into_iter().chain(layers).find(|name| !fits(name)) {
        Some(name) => {
            Err(Error::argument(format!("keras: {name}: expected a name of letters, digits, `_`, `-` and `.`")))
        }
        None => Ok(()),
    }
}

/// `lstm`, `lstm_1` and so on: the next group of a class.
pub(super) fn numbered(class: &str, counts: &mut BTreeMap<String, usize>) -> String {
    let snake = snake_case(class);
    let count = counts.entry(snake.clone()).or_insert(0);
    *count += 1;
    if *count == 1 { snake } else { format!("{snake}_{}", *count - 1) }
}

/// Whether the layers are in a row, which the names of its ends say too: they are those of a Sequential that is read.
fn is_chain(network: &Network) -> Result<bool> {
    let signals = network.signals()?;
    let ends = matches!(&network.inputs[..], [(name, _)] if name == "x")
        && matches!(&network.outputs[..], [(name, Port::Node(at, 0))] if name == "y" && at + 1 == network.nodes.len());
    let mut names: Vec<&str> = network.nodes.iter().map(|n| n.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let row = network.nodes.iter().zip(&signals).enumerate().all(|(at, (node, outputs))| {
        let before = if at == 0 { Port::Input(0) } else { Port::Node(at - 1, 0) };
        node.inputs == [before] && outputs.len() == 1 && !matches!(node.layer, Layer::Merge(_) | Layer::Attention(_))
    });
    // An input of tokens has to be read by an embedding to be known as one.
    let embeds = matches!(network.nodes.first(), Some(n) if matches!(n.layer, Layer::Embedding(_)));
    let tokens = matches!(network.inputs.first(), Some((_, Input::Tokens)));
    Ok(ends && row && names.len() == network.nodes.len() && tokens == embeds)
}

/// A name that every backend of Keras takes for a model.
fn identifier(title: &str) -> String {
    let name: String =
        title.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) { name } else { format!("model{name}") }
}

/// `2024-02-29@23:59:58`, in universal time.
fn date(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        (days, month) = (days - length, month + 1);
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{:02}@{hour:02}:{minute:02}:{second:02}", days + 1)
}

/// A group of an HDF5 file.
#[derive(Debug, Default)]
pub(super) struct Group {
    name: Option<String>,
    pub attributes: Vec<(String, AttrValue)>,
    groups: BTreeMap<String, Group>,
    tensors: BTreeMap<String, KerasTensor>,
}

impl Group {
    /// The group at a path inside this one, made where there is none.
    pub fn at(&mut self, path: &str) -> &mut Self {
        path.split('/').fold(self, |group, part| group.groups.entry(part.to_string()).or_default())
    }

    /// Puts a tensor at a path; to one that is there it adds.
    pub fn put(&mut self, path: &str, tensor: KerasTensor) {
        let (group, name) = match path.rsplit_once('/') {
            Some((at, name)) => (self.at(at), name),
            None => (self, path),
        };
        match group.tensors.get_mut(name) {
            Some(sum) => sum.data.iter_mut().zip(&tensor.data).for_each(|(a, b)| *a += b),
            None => {
                group.tensors.insert(name.to_string(), tensor);
            }
        }
    }

    /// The file whose root this group is.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut file = FileBuilder::new();
        for (name, value) in &self.attributes {
            file.set_attr(name, value.clone());
        }
        for (name, group) in &self.groups {
            let finished = group.finished(file.create_group(name));
            file.add_group(finished);
        }
        file.finish().map_err(|e| Error::internal(format!("keras: cannot make an HDF5 file: {e}")))
    }

    fn finished(&self, mut builder: GroupBuilder) -> FinishedGroup {
        if let Some(name) = &self.name {
            builder.set_attr("name", AttrValue::String(name.clone()));
        }
        for (name, value) in &self.attributes {
            builder.set_attr(name, value.clone());
        }
        for (name, tensor) in &self.tensors {
            let shape: Vec<u64> = tensor.shape.iter().map(|&n| n as u64).collect();
            builder.create_dataset(name).with_f32_data(&tensor.data).with_shape(&shape);
        }
        for (name, group) in &self.groups {
            let finished = group.finished(builder.create_group(name));
            builder.add_group(finished);
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, wanted) in [
            (0, "1970-01-01@00:00:00"),
            (951_825_599, "2000-02-29@11:59:59"),
            (4_107_542_400, "2100-03-01@00:00:00"),
            (1_735_689_599, "2024-12-31@23:59:59"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), wanted);
        }
    }

    #[test]
    fn titles_become_names() {
        for (title, wanted) in
            [("state dict", "state_dict"), ("sequential_1", "sequential_1"), ("", "model"), ("ä", "model_")]
        {
            assert_eq!(identifier(title), wanted);
        }
    }

    #[test]
    fn a_group_holds_what_is_put_there_and_adds_what_is_put_twice() {
        let mut root = Group::default();
        let tensor = |shape: &[usize], data: &[f32]| KerasTensor { shape: shape.to_vec(), data: data.to_vec() };
        root.put("layers/lstm/cell/vars/2", tensor(&[2], &[1.0, 2.0]));
        root.put("layers/lstm/cell/vars/2", tensor(&[2], &[0.5, 0.25]));
        root.put("layers/attention/vars/0", tensor(&[], &[3.0]));
        root.at("layers/lstm/vars").name = Some("encoder".to_string());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.weights.h5");
        std::fs::write(&path, root.bytes().unwrap()).unwrap();
        let read = super::super::read_weights(&path).unwrap();
        let wanted = [
            ("layers/attention/vars/0".to_string(), tensor(&[], &[3.0])),
            ("layers/lstm/cell/vars/2".to_string(), tensor(&[2], &[1.5, 2.25])),
        ];
        assert_eq!(read, BTreeMap::from(wanted));
    }
}
