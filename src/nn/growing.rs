//! A network while layers are added to it.

use super::axes::Axes;
use super::network::name_of;
use super::signals::{Known, Signal};
use super::{Input, Layer, Network, Node, Port};
use crate::error::Result;
use std::collections::HashMap;
use std::ops::Deref;

/// A network with what is known of its values, which is not worked out again for each layer that it gets.
#[derive(Debug, Default)]
pub(crate) struct Growing {
    network: Network,
    known: Known,
    /// How many nodes without a name of their own there are of each class.
    unnamed: HashMap<&'static str, usize>,
}

impl Deref for Growing {
    type Target = Network;

    fn deref(&self) -> &Network {
        &self.network
    }
}

impl Growing {
    /// The network.
    pub fn finish(self) -> Network {
        self.network
    }

    /// [`Network::input`].
    pub fn input(&mut self, name: &str, input: Input) -> Result<Port> {
        self.change(|network| Ok(network.input(name, input)))
    }

    /// [`Network::align`].
    pub fn align(&mut self, input: Port, earlier: Port) -> Result<()> {
        self.change(|network| network.align(input, earlier))
    }

    /// [`Network::fix_steps`].
    pub fn fix_steps(&mut self, input: Port, steps: usize) -> Result<()> {
        self.change(|network| network.fix_steps(input, steps))
    }

    /// [`Network::output`].
    pub fn output(&mut self, name: &str, port: Port) {
        self.network.output(name, port);
    }

    /// [`Network::add`].
    pub fn add(&mut self, layer: impl Into<Layer>, inputs: &[Port]) -> Result<Vec<Port>> {
        let layer = layer.into();
        let name = name_of(&layer, self.unnamed.get(layer.class()).copied().unwrap_or(0));
        self.add_named(&name, layer, inputs)
    }

    /// [`Network::add_named`].
    pub fn add_named(&mut self, name: &str, layer: Layer, inputs: &[Port]) -> Result<Vec<Port>> {
        let unnamed = layer.given_name().is_none().then(|| layer.class());
        let node = Node { name: name.to_string(), layer, inputs: inputs.to_vec() };
        let ports = self.known.add(&mut self.network, node)?;
        if let Some(class) = unnamed {
            *self.unnamed.entry(class).or_default() += 1;
        }
        Ok(ports)
    }

    /// Changes what is there already, and works out anew what its values are.
    pub fn change<R>(&mut self, f: impl FnOnce(&mut Network) -> Result<R>) -> Result<R> {
        let result = f(&mut self.network)?;
        self.known = Known::of(&self.network)?;
        Ok(result)
    }

    /// The layer added last, for a change that leaves what it gives as it is.
    pub fn last_layer(&mut self) -> Option<&mut Layer> {
        self.network.nodes.last_mut().map(|n| &mut n.layer)
    }

    /// [`Network::signal`].
    pub fn signal(&self, port: Port) -> Result<Signal> {
        self.known.signal(port)
    }

    /// [`Network::signals`].
    pub fn signals(&self) -> &[Vec<Signal>] {
        &self.known.nodes
    }

    /// The inputs.
    pub fn input_signals(&self) -> &[Signal] {
        &self.known.inputs
    }

    /// [`Network::axes`].
    pub fn axes(&self) -> &Axes {
        &self.known.axes
    }
}
