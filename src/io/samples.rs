//! What the tests of readers and writers share.

use crate::nn::Network;
use crate::params::Tensor;
use std::collections::BTreeMap;

/// Parameters of a network, each value another one.
pub fn parameters(network: &Network) -> BTreeMap<String, Tensor> {
    let mut next = 0.0;
    let mut tensor = |shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|_| {
            next += 0.25;
            next
        });
        Tensor::new(shape, values.collect()).unwrap()
    };
    network.parameters().unwrap().into_iter().map(|spec| (spec.name, tensor(&spec.shape))).collect()
}
