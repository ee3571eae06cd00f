//! A node with what has been asked of it, so that nothing that it says is passed over.

use super::host::Host;
use super::schema::{self, kind};
use super::tensor::Reader;
use super::value::Val;
use crate::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

/// A node, its inputs and the version of its operators.
pub(super) struct Node<'a> {
    pub message: &'a schema::Node,
    pub version: i64,
    inputs: &'a [Option<Val>],
    reader: &'a Reader,
    seen: RefCell<BTreeSet<&'static str>>,
    read: Cell<usize>,
}

impl<'a> Node<'a> {
    pub fn new(message: &'a schema::Node, version: i64, inputs: &'a [Option<Val>], reader: &'a Reader) -> Self {
        Self { message, version, inputs, reader, seen: RefCell::default(), read: Cell::new(0) }
    }

    pub fn op(&self) -> &'a str {
        &self.message.op_type
    }

    /// How many inputs are named.
    pub fn len(&self) -> usize {
        self.message.input.len()
    }

    /// Whether output number `at` is wanted.
    pub fn gives(&self, at: usize) -> bool {
        self.message.output.get(at).is_some_and(|name| !name.is_empty())
    }

    /// An input that may be left out.
    pub fn maybe(&self, at: usize) -> Option<&'a Val> {
        self.read.set(self.read.get().max(at + 1));
        self.inputs.get(at).and_then(Option::as_ref)
    }

    pub fn input(&self, at: usize) -> Result<&'a Val> {
        self.maybe(at).ok_or_else(|| Error::data(format!("input {at} is missing")))
    }

    /// What file names input `at`.
    pub fn name(&self, at: usize) -> &'a str {
        self.message.input.get(at).map_or("", String::as_str)
    }

    fn attribute(&self, name: &'static str, wanted: i32) -> Result<Option<&'a schema::Attribute>> {
        self.seen.borrow_mut().insert(name);
        let Some(found) = self.message.attribute.iter().find(|a| a.name == name) else { return Ok(None) };
        if !found.ref_attr_name.is_empty() {
            let reference = &found.ref_attr_name;
            return Err(Error::data(format!(
                "attribute `{name}` is that of a function, `{reference}`, outside of one"
            )));
        }
        if found.kind != wanted && found.kind != 0 {
            return Err(Error::data(format!("attribute `{name}`: expected kind {wanted}, got {}", found.kind)));
        }
        Ok(Some(found))
    }

    pub fn int(&self, name: &'static str) -> Result<Option<i64>> {
        Ok(self.attribute(name, kind::INT)?.map(|a| a.i))
    }

    pub fn float(&self, name: &'static str) -> Result<Option<f32>> {
        Ok(self.attribute(name, kind::FLOAT)?.map(|a| a.f))
    }

    pub fn ints(&self, name: &'static str) -> Result<Option<&'a [i64]>> {
        Ok(self.attribute(name, kind::INTS)?.map(|a| a.ints.as_slice()))
    }

    pub fn floats(&self, name: &'static str) -> Result<Option<&'a [f32]>> {
        Ok(self.attribute(name, kind::FLOATS)?.map(|a| a.floats.as_slice()))
    }

    pub fn text(&self, name: &'static str) -> Result<Option<&'a str>> {
        self.attribute(name, kind::STRING)?.map(|a| text(&a.s)).transpose()
    }

    pub fn texts(&self, name: &'static str) -> Result<Option<Vec<&'a str>>> {
        let found = self.attribute(name, kind::STRINGS)?;
        found.map(|a| a.strings.iter().map(|s| text(s)).collect()).transpose()
    }

    pub fn tensor(&self, name: &'static str) -> Result<Option<Host>> {
        let found = self.attribute(name, kind::TENSOR)?;
        found.and_then(|a| a.t.as_ref()).map(|t| self.reader.host(t)).transpose()
    }

    pub fn graph(&self, name: &'static str) -> Result<Option<&'a schema::Graph>> {
        Ok(self.attribute(name, kind::GRAPH)?.and_then(|a| a.g.as_deref()))
    }

    /// Refuses what nothing has asked for.
    pub fn check(&self) -> Result<()> {
        let seen = self.seen.borrow();
        if let Some(other) = self.message.attribute.iter().find(|a| !seen.contains(a.name.as_str())) {
            return Err(Error::unsupported(format!("attribute `{}` is not supported", other.name)));
        }
        match self.message.input.iter().skip(self.read.get()).find(|name| !name.is_empty()) {
            Some(name) => Err(Error::unsupported(format!("input `{name}` is not supported"))),
            None => Ok(()),
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Error::data("a text that is not UTF-8"))
}
