//! The one error type: a kind to match on, and a message that names the operation, what was expected and what came.

use std::fmt;

/// What went wrong, coarsely; for programs that react to errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A shape, size or type that does not fit.
    Shape,
    /// An argument or setting outside what is allowed.
    Argument,
    /// Something that is meaningful but not supported.
    Unsupported,
    /// Data that cannot be used: empty, not finite, an unknown symbol.
    Data,
    /// A file that cannot be read, written or understood.
    File,
    /// A device that is missing or lost.
    Device,
    /// Memory that a budget does not hold, or that is refused.
    Memory,
    /// Training stopped because a loss or gradient was not finite.
    NotFinite,
    /// A defect in mnemon itself.
    Internal,
}

/// An error with its kind and a message in lower case without a full stop.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    /// Whether it was known before anything was asked of a device.
    planned: bool,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// `std::result::Result` with mnemon's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with a message.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), planned: false, source: None }
    }

    /// What went wrong, coarsely.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it is the device's, or its memory's, and not that of what it was given, nor of a budget: elsewhere it may go well.
    pub fn is_of_the_device(&self) -> bool {
        self.kind == ErrorKind::Device || self.kind == ErrorKind::Memory && !self.planned
    }

    /// The same error, its message preceded by `context` (a layer, tensor or file name).
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The same error with the error that caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    pub(crate) fn shape(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Shape, message)
    }

    pub(crate) fn argument(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Argument, message)
    }

    pub(crate) fn unsupported(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub(crate) fn data(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Data, message)
    }

    pub(crate) fn device(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Device, message)
    }

    /// Memory that a plan would need and a budget or a device does not have.
    pub(crate) fn budget(message: impl fmt::Display) -> Self {
        Self { planned: true, ..Self::new(ErrorKind::Memory, message) }
    }

    pub(crate) fn memory(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Memory, message)
    }

    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An error about the file at `path`.
    pub(crate) fn file(path: &std::path::Path, message: impl fmt::Display) -> Self {
        Self::new(ErrorKind::File, format!("{}: {message}", path.display()))
    }

    /// An input or output error about the file at `path`.
    pub(crate) fn io(path: &std::path::Path, doing: &str, error: std::io::Error) -> Self {
        Self::new(ErrorKind::File, format!("{}: cannot {doing}: {error}", path.display())).caused_by(error)
    }
}
