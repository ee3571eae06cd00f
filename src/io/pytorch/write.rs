//! The parameters of a network by the names that PyTorch's modules have for them.

use super::super::model::check;
use crate::config::{Activation, Bias, Cell, Direction};
use crate::error::{Error, Result};
use crate::nn::{Dense, Layer, Lstm, MergeMode, Network, Node, Port};
use crate::params::Tensor;
use std::collections::BTreeMap;

/// The parameters of a network as the state dict of PyTorch modules with the names of its layers: `nn.Embedding`,
/// `nn.LSTM`, `nn.Linear`, `nn.LayerNorm`, `nn.Conv1d`. LSTM layers of which each alone reads the outputs of the one
/// before are one `nn.LSTM` of so many layers, called after the first. Parameters that PyTorch wants and that have no
/// effect here are added: a second bias of zeros, a gain of ones. Refuses what these modules cannot compute or have
/// no parameter for.
pub fn state_dict(network: &Network, parameters: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    check(network, parameters, &BTreeMap::new()).map_err(|e| e.within("state dict"))?;
    let stacks = stacks(network)?;
    let mut all = BTreeMap::new();
    for node in &network.nodes {
        let inside = format!("{}.", node.name);
        let own = parameters.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&inside)?, tensor)));
        for (role, tensor) in own {
            match (&node.layer, stacks.get(node.name.as_str())) {
                (Layer::Lstm(lstm), Some((stack, number))) => {
                    let name = format!("{stack}.{}", role.replacen("_l0", &format!("_l{number}"), 1));
                    if lstm.bias == Bias::One && role.starts_with("bias_ih") {
                        all.insert(name.replacen("bias_ih", "bias_hh", 1), Tensor::zeros(tensor.shape()));
                    }
                    all.insert(name, tensor.clone());
                }
                (Layer::Conv1D(_), _) if role == "weight" => {
                    all.insert(format!("{inside}{role}"), taps_last(tensor)?);
                }
                (Layer::LayerNormalization(layer), _) => {
                    if !layer.scale {
                        all.insert(format!("{inside}weight"), Tensor::new(tensor.shape(), vec![1.0; tensor.len()])?);
                    }
                    all.insert(format!("{inside}{role}"), tensor.clone());
                }
                (Layer::Embedding(_) | Layer::Dense(_) | Layer::Conv1D(_), _) => {
                    all.insert(format!("{inside}{role}"), tensor.clone());
                }
                (other, _) => {
                    let refused =
                        format!("no module of PyTorch is a layer of the class {} with `{role}`", other.class());
                    return Err(Error::unsupported(refused).within(&node.name));
                }
            }
        }
        if let Layer::Dense(Dense { tied: Some(table), .. }) = &node.layer {
            let weight = parameters.get(&format!("{table}.weight"));
            all.extend(weight.map(|weight| (format!("{inside}weight"), weight.clone())));
        }
    }
    Ok(all)
}

/// A kernel `[filters, taps, inputs]` as `[filters, inputs, taps]`.
fn taps_last(kernel: &Tensor) -> Result<Tensor> {
    let mut array = kernel.to_array()?;
    if array.ndim() != 3 {
        return Err(Error::internal(format!("state dict: a kernel of shape {:?}", kernel.shape())));
    }
    array.swap_axes(1, 2);
    Ok(Tensor::from_array(array.view()))
}

/// The `nn.LSTM` that each LSTM layer is part of, by the layer's name: its name, and the layer's number in it.
fn stacks(network: &Network) -> Result<BTreeMap<&str, (&str, usize)>> {
    let mut places: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    for node in &network.nodes {
        let Layer::Lstm(lstm) = &node.layer else { continue };
        check_lstm(lstm).map_err(|e| e.within(&node.name))?;
        let below = below(network, node, lstm).and_then(|below| places.get(below.name.as_str()));
        let place = below.map_or((node.name.as_str(), 0), |&(stack, number)| (stack, number + 1));
        places.insert(&node.name, place);
    }
    Ok(places)
}

/// The LSTM layer that `node` follows in one `nn.LSTM`: it alone reads all of that one's outputs, and the two are
/// alike. Dropout in between is the module's own.
fn below<'a>(network: &'a Network, node: &Node, lstm: &Lstm) -> Option<&'a Node> {
    let once = |name: &str| network.nodes.iter().filter(|n| n.name == name).count() == 1;
    let mut port = *node.inputs.first()?;
    loop {
        let Port::Node(at, 0) = port else { return None };
        let from = network.nodes.get(at)?;
        let read = network.nodes.iter().flat_map(|n| &n.inputs).chain(network.outputs.iter().map(|o| &o.1));
        if read.filter(|&&p| p == port).count() != 1 {
            return None;
        }
        match &from.layer {
            Layer::Dropout(_) => port = *from.inputs.first()?,
            Layer::Lstm(other) => {
                let parts = |l: &Lstm| (l.units, l.direction, l.projection, l.bias);
                let one = other.return_sequences && parts(other) == parts(lstm);
                return (one && once(&node.name) && once(&from.name)).then_some(from);
            }
            _ => return None,
        }
    }
}

/// Refuses a layer that computes what `nn.LSTM` does not. What only training does is no matter.
fn check_lstm(lstm: &Lstm) -> Result<()> {
    let (cell, plain) = (lstm.step(), Cell::default());
    let backwards = lstm.go_backwards || lstm.direction == Direction::Reverse;
    let curves = |c: &Cell| -> [Activation; 3] { [c.gate, c.candidate, c.output] };
    let refused = [
        ("layer that only goes back in time", backwards),
        ("two directions that are merged", lstm.direction == Direction::Both && lstm.merge != MergeMode::Concat),
        ("activations besides sigmoid and tanh", curves(&cell) != curves(&plain)),
        ("peepholes", cell.peepholes),
        ("layer normalisation in its cell", cell.layer_norm.is_some()),
        ("limits of its cell or its gates", cell.clip.is_some() || cell.cell_clip.is_some()),
        ("coupled gates", cell.coupled),
        // At inference its probability takes the place of its masks.
        ("zoneout", cell.zoneout_h != 0.0 || cell.zoneout_c != 0.0),
    ];
    match refused.iter().find(|r| r.1) {
        Some((what, _)) => Err(Error::unsupported(format!("PyTorch's nn.LSTM has no {what}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::io::samples::parameters;
    use crate::io::{pytorch, write_tensors};
    use crate::nn::{Attention, Conv1D, Dropout, Embedding, Input, LayerNormalization};

    fn names(network: &Network) -> Vec<String> {
        state_dict(network, &parameters(network)).unwrap().into_keys().collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut network = Network::default();
        let tokens = network.input("tokens", Input::Tokens);
        let mut at = network.add(Embedding::new(11, 6).name("table"), &[tokens]).unwrap()[0];
        for name in ["below", "above"] {
            let both = Lstm::new(5).direction(Direction::Both).return_sequences(true).bias(Bias::Two).name(name);
            at = network.add(both, &[at]).unwrap()[0];
        }
        let y = network.add(Dense::new(7).name("scores"), &[at]).unwrap()[0];
        network.output("logits", y);
        let parameters = parameters(&network);
        let folder = std::env::temp_dir().join(format!("mnemon-state-dict-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state.safetensors");
        write_tensors(&path, state_dict(&network, &parameters).unwrap()).unwrap();

        let back = pytorch::read_model(&path, &pytorch::Config::default()).unwrap();
        check(&back.network, &back.parameters, &back.sources).unwrap();
        assert_eq!(back.sources["bidirectional_1.weight_hh_l0_reverse"], "below.weight_hh_l1_reverse");
        let renamed = |name: &str| {
            let names = [("table.", "embedding."), ("below.", "bidirectional."), ("above.", "bidirectional_1.")];
            let all = names.into_iter().chain([("scores.", "dense.")]);
            all.fold(name.to_string(), |name, (from, to)| name.replacen(from, to, 1))
        };
        assert_eq!(back.parameters, parameters.iter().map(|(n, t)| (renamed(n), t.clone())).collect());
        let layer = |network: &Network, at: usize| match &network.nodes[at].layer {
            Layer::Lstm(lstm) => (lstm.config(1), lstm.merge),
            other => panic!("{other:?}"),
        };
        assert!([1, 2].iter().all(|&at| layer(&back.network, at) == layer(&network, at)));
    }

    #[test]
    fn one_bias_and_a_bias_without_a_gain_get_what_pytorch_wants() {
        let mut network = Network::default();
        let x = network.input("x", Input::Features(3));
        let h = network.add(Lstm::new(2).return_sequences(true), &[x]).unwrap();
        network.add(LayerNormalization { scale: false, ..LayerNormalization::default() }, &h).unwrap();
        let parameters = parameters(&network);
        let all = state_dict(&network, &parameters).unwrap();
        assert_eq!(all["lstm.bias_ih_l0"], parameters["lstm.bias_ih_l0"]);
        assert_eq!(all["lstm.bias_hh_l0"], Tensor::zeros(&[8]));
        assert_eq!(all["layer_normalization.weight"].f32s().unwrap(), [1.0; 2]);
        assert_eq!(all.len(), parameters.len() + 2);
    }

    #[test]
    fn tied_weights_are_written_twice_and_kernels_by_their_inputs() {
        let mut network = Network::default();
        let tokens = network.input("tokens", Input::Tokens);
        let e = network.add(Embedding::new(7, 3), &[tokens]).unwrap();
        let c = network.add(Conv1D::new(3, 2), &e).unwrap();
        network.add(Dense::new(7).tied("embedding"), &c).unwrap();
        let parameters = parameters(&network);
        let all = state_dict(&network, &parameters).unwrap();
        assert_eq!(all["dense.weight"], parameters["embedding.weight"]);
        let (ours, theirs) = (&parameters["conv1d.weight"], &all["conv1d.weight"]);
        assert_eq!((ours.shape(), theirs.shape()), (&[3, 2, 3][..], &[3, 3, 2][..]));
        let (ours, theirs) = (ours.to_array().unwrap(), theirs.to_array().unwrap());
        assert!(ours.indexed_iter().all(|(at, &v)| theirs[[at[0], at[2], at[1]]] == v));
    }

    #[test]
    fn layers_are_one_module_where_pytorch_can_say_so() {
        let build = |second: Lstm, between: Option<Layer>, seen: bool| {
            let mut network = Network::default();
            let x = network.input("x", Input::Features(4));
            let h = network.add(Lstm::new(4).return_sequences(true).return_state(true), &[x]).unwrap();
            network.output("h", h[1]);
            let read = between.map_or(h[0], |layer| network.add(layer, &[h[0]]).unwrap()[0]);
            network.add(second, &[read]).unwrap();
            if seen {
                network.output("y", h[0]);
            }
            names(&network).iter().any(|name| name == "lstm.weight_ih_l1")
        };
        assert!(build(Lstm::new(4), None, false));
        assert!(build(Lstm::new(4), Some(Dropout::new(0.5).into()), false));
        assert!(!build(Lstm::new(4), None, true), "the outputs between are seen");
        assert!(!build(Lstm::new(4), Some(Dense::new(4).into()), false));
        assert!(!build(Lstm::new(3), None, false));
        assert!(!build(Lstm::new(4).direction(Direction::Both), None, false));
        assert!(!build(Lstm::new(4).projection(Some(2)), None, false));
        assert!(!build(Lstm::new(4).bias(Bias::None), None, false));
    }

    #[test]
    fn what_pytorch_cannot_say_is_refused_by_name() {
        let cell = |cell: Cell| Layer::from(Lstm::new(2).cell(cell).name("mine"));
        let both = Lstm::new(2).direction(Direction::Both).merge(MergeMode::Sum);
        for (layer, wanted) in [
            (cell(Cell { peepholes: true, ..Cell::default() }), "peepholes"),
            (cell(Cell { layer_norm: Some(1e-3), ..Cell::default() }), "layer normalisation"),
            (cell(Cell { clip: Some(1.0), ..Cell::default() }), "limits"),
            (cell(Cell { cell_clip: Some(1.0), ..Cell::default() }), "limits"),
            (cell(Cell { coupled: true, ..Cell::default() }), "coupled"),
            (Lstm::new(2).name("mine").zoneout(0.1, 0.0).into(), "zoneout"),
            (Lstm::new(2).name("mine").activation(Activation::Relu).into(), "sigmoid and tanh"),
            (Lstm::new(2).name("mine").go_backwards(true).into(), "back in time"),
            (Lstm::new(2).name("mine").direction(Direction::Reverse).into(), "back in time"),
            (both.name("mine").into(), "merged"),
        ] {
            let network = Network::chain(Input::Features(3), None, &[layer]).unwrap();
            let error = state_dict(&network, &parameters(&network)).unwrap_err();
            let text = error.to_string();
            assert!(error.kind() == ErrorKind::Unsupported && text.starts_with("mine: "), "{text}");
            assert!(text.contains(wanted), "{text}");
        }
        let training = Cell { recurrent_dropout: 0.5, gradient_clip: Some(1.0), ..Cell::default() };
        let network = Network::chain(Input::Features(3), None, &[cell(training)]).unwrap();
        assert_eq!(names(&network).len(), 4);

        let mut network = Network::default();
        let x = network.input("x", Input::Features(3));
        network.add(Attention::additive(), &[x, x]).unwrap();
        let error = state_dict(&network, &parameters(&network)).unwrap_err();
        assert!(
            error.to_string().starts_with("additive_attention: ") && error.to_string().contains("scale"),
            "{error}"
        );

        let network = Network::chain(Input::Features(3), None, &[Lstm::new(2).into()]).unwrap();
        let mut wrong = parameters(&network);
        wrong.insert("lstm.bias_ih_l0".to_string(), Tensor::zeros(&[7]));
        assert_eq!(state_dict(&network, &wrong).unwrap_err().kind(), ErrorKind::Shape);
        wrong.remove("lstm.bias_ih_l0");
        assert!(state_dict(&network, &wrong).unwrap_err().to_string().contains("expected the parameter"));
    }
}
