//! Files that are mapped into memory: values are read from the disk where they are used, and memory that is needed for
//! something else is given back.

use crate::error::{Error, Result};
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::{File, Metadata};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes that are written at a time.
const BLOCK: usize = 1 << 20;

/// A file that is only read.
#[derive(Debug)]
pub struct Mapping {
    file: File,
    path: PathBuf,
    state: (u64, Option<SystemTime>),
    map: Mmap,
}

/// Length and time of the last change.
fn state(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

impl Mapping {
    /// Maps `file`, which `path` names.
    pub fn new(file: File, path: &Path) -> Result<Self> {
        let metadata = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        // SAFETY: the bytes are only read, as numbers of which any bits are valid, and each time only after `check` has seen that
        // the file is still as it was. Who writes into it all the same, between that and the reading, may be read in part; files
        // that mnemon writes are replaced by others, never written into.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        Ok(Self { file, path: path.to_path_buf(), state: state(&metadata), map })
    }

    /// All bytes.
    pub fn bytes(&self) -> Result<&[u8]> {
        self.check()?;
        Ok(&self.map)
    }

    /// Refuses a file that has changed since it was mapped: what it held is gone, and what lies past its end cannot be read.
    pub fn check(&self) -> Result<()> {
        let now = self.file.metadata().map_err(|e| Error::io(&self.path, "read", e))?;
        if state(&now) == self.state {
            return Ok(());
        }
        let (was, is) = (self.state.0, now.len());
        Err(Error::file(
            &self.path,
            format!("it has changed while it was in use: expected {was} bytes as they were, got {is}"),
        ))
    }

    /// `len` floats from byte `first` on.
    pub fn floats(&self, first: usize, len: usize) -> Result<&[f32]> {
        let bytes = self.bytes()?.get(first..).and_then(|bytes| bytes.get(..len.checked_mul(4)?));
        let floats = bytes.and_then(|bytes| bytemuck::try_cast_slice(bytes).ok());
        floats.ok_or_else(|| Error::file(&self.path, format!("expected {len} floats at byte {first}")))
    }

    /// A copy of `len` floats from byte `first` on, of which only what is changed is in memory.
    pub fn copy(&self, first: usize, len: usize) -> Result<MmapMut> {
        self.floats(first, len)?;
        let mut options = MmapOptions::new();
        // SAFETY: as in `new`; changes go to memory, not to the file.
        let map = unsafe { options.offset(first as u64).len(4 * len).map_copy(&self.file) };
        map.map_err(|e| Error::io(&self.path, "map", e))
    }
}

/// So many zeros in a file of their own, which nobody else sees and which is gone with them: memory for what is rarely used.
pub fn scratch(len: usize) -> Result<MmapMut> {
    let folder = std::env::temp_dir();
    let refused = |e| Error::io(&folder, "make a file of values", e);
    let mut file = tempfile::tempfile_in(&folder).map_err(refused)?;
    // Written, not only made so long: a disk that is full says so here.
    let zeros = vec![0u8; BLOCK];
    for at in (0..(4 * len).max(4)).step_by(BLOCK) {
        file.write_all(&zeros[..((4 * len).max(4) - at).min(BLOCK)]).map_err(refused)?;
    }
    // SAFETY: the file has no name, so nobody else opens it.
    unsafe { MmapMut::map_mut(&file) }.map_err(refused)
}
