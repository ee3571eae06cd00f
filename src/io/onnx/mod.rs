//! ONNX: graphs of exported LSTM models as networks, and networks as graphs.
//!
//! A graph computes on tensors whose axes mean nothing to it. Here each axis is followed: which one runs over sequences,
//! which over steps, which over the features of a row. What only moves axes about (transposes, reshapes, squeezes) then
//! costs nothing, what computes shapes is computed while the file is read, and what is left are layers. An operator, an
//! attribute or a form that is not known is an error that names its node; nothing is passed over.

mod arithmetic;
mod attention;
mod builder;
mod composed;
mod constants;
mod edges;
mod einsum;
mod facts;
mod given;
mod host;
mod int;
mod layout;
mod lower;
mod moves;
mod node;
mod numbers;
mod order;
mod own;
mod pieces;
mod products;
mod recurrent;
mod reductions;
mod roles;
mod schema;
mod spread;
mod tensor;
mod value;
mod wire;
mod write;
mod write_lstm;
mod write_memory;
mod write_steps;
mod write_windows;

pub use edges::{Edges, InputEdge, OutputEdge, Role};
pub use layout::Atom;
pub use write::write_model;

use super::Imported;
use crate::error::{Error, Result};
use crate::params::Tensor;
use prost::Message;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;

/// The largest file that is read, which is what a message can hold.
const LIMIT: u64 = 2 << 30;

/// Reads an ONNX file. `given` are the inputs of a run, by name: a file may take its weights from inputs, and where its
/// shapes cannot be followed for any sizes they are for those of `given`. Without it, weights from inputs are zero, and
/// [`Edges::parameters`] names them.
pub fn read_model(path: &Path, given: Option<&BTreeMap<String, Tensor>>) -> Result<Imported> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?.len();
    if size > LIMIT {
        return Err(Error::file(path, format!("expected at most {LIMIT} bytes, got {size}")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    from_bytes(path, Bytes::from(bytes), given).map_err(|e| e.within(path.display()))
}

fn from_bytes(path: &Path, bytes: Bytes, given: Option<&BTreeMap<String, Tensor>>) -> Result<Imported> {
    let size = bytes.len() as u64;
    wire::check(&bytes)?;
    let model =
        schema::Model::decode(bytes).map_err(|e| Error::data(format!("expected an ONNX model: {e}")).caused_by(e))?;
    let own = own::read(&model, size);
    // A graph has the states of its network as inputs and outputs.
    match own {
        Some(imported) if !own::is_stateful(&imported.network) => Ok(imported),
        own => roles::read(&model, &tensor::Reader::beside(path), size, given).or_else(|e| own.ok_or(e)),
    }
}
