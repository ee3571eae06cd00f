//! Models from elsewhere as files of mnemon's own, from which training goes on.

use super::Loss;
use super::save::training_part;
use crate::error::Result;
use crate::io::keras::Training;
use crate::io::{Imported, MEMORY, ModelFile};
use crate::nn::{Description, Layer, Network, Port};
use serde_json::json;

/// A model as a file of its own: as layers in a row where it is that, and as a network otherwise. The state of its
/// training comes along where its loss is known here too.
pub fn model_file(imported: &Imported) -> Result<ModelFile> {
    let mut metadata = match in_a_row(&imported.network) {
        Some(description) => json!({ "model": description }),
        None => json!({ "network": imported.network }),
    };
    let mut tensors = imported.parameters.clone();
    if let Some(memory) = &imported.memory {
        metadata[MEMORY] = json!(memory);
    }
    if let Some(training) = &imported.training {
        match loss(training) {
            Some(loss) => {
                metadata["training"] = training_part(training.optimizer.clone(), loss, training.step);
                tensors.extend(training.state.clone());
            }
            None => {
                log::warn!("how the model was being trained is left out: its loss {:?} is not known", training.loss)
            }
        }
    }
    Ok(ModelFile { metadata, tensors })
}

/// What a model of layers in a row is, under the same names.
fn in_a_row(network: &Network) -> Option<Description> {
    let ([(x, input)], [(y, Port::Node(last, 0))]) = (&network.inputs[..], &network.outputs[..]) else { return None };
    let chained = |(at, inputs): (usize, &[Port])| match (at, inputs) {
        (0, [Port::Input(0)]) => true,
        (at, [Port::Node(before, 0)]) => before + 1 == at,
        _ => false,
    };
    let in_order = network.nodes.iter().enumerate().all(|(at, node)| chained((at, &node.inputs)));
    if x != "x" || y != "y" || !in_order || last + 1 != network.nodes.len() {
        return None;
    }
    let steps = network.steps.first().map(|s| s.1);
    let layers: Vec<Layer> = network.nodes.iter().map(|n| n.layer.clone().named(&n.name)).collect();
    let chain = Network::chain(*input, steps, &layers).ok()?;
    let names = |network: &Network| -> Option<Vec<String>> {
        Some(network.parameters().ok()?.into_iter().map(|p| p.name).collect())
    };
    (names(&chain) == names(network)).then_some(Description { input: *input, steps, layers })
}

/// The loss that Keras's name is, where what it computes does not depend on more than the name says.
fn loss(training: &Training) -> Option<Loss> {
    Some(match training.loss.as_deref()? {
        "mse" | "mean_squared_error" | "MeanSquaredError" => Loss::MeanSquaredError,
        "mae" | "mean_absolute_error" | "MeanAbsoluteError" => Loss::MeanAbsoluteError,
        "huber" => Loss::Huber { delta: 1.0 },
        "binary_crossentropy" => Loss::BinaryCrossEntropy { from_logits: false },
        "categorical_crossentropy" => Loss::CategoricalCrossEntropy,
        _ => return None,
    })
}
