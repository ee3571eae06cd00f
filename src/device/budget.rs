//! How much memory a session may hold.

use crate::scheduler::amount;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is taken where nobody says how much there is.
const UNKNOWN: u64 = 1 << 30;

/// Where a budget comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The caller said.
    Given,
    /// Half of the host's memory, or of what its control group allows.
    Host,
    /// The memory of a device, as its driver tells.
    Device,
    /// A guess, since nobody tells.
    Unknown,
}

/// Bytes that a session may hold on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The bytes.
    pub bytes: u64,
    /// Who says so.
    pub source: Source,
}

impl Budget {
    /// Half of the host's memory.
    pub(super) fn host() -> Self {
        let Ok(mut system) = sysinfo::System::new() else { return Self::unknown() };
        system.refresh_memory();
        let limit = system.cgroup_limits().map(|limits| limits.total_memory).filter(|&bytes| bytes > 0);
        let total = limit.map_or(system.total_memory(), |limit| limit.min(system.total_memory()));
        if total == 0 { Self::unknown() } else { Self { bytes: total / 2, source: Source::Host } }
    }

    /// The memory that a driver tells of.
    #[cfg(feature = "gpu")]
    pub(super) fn device(memory: Option<u64>) -> Self {
        memory.map_or_else(Self::unknown, |bytes| Self { bytes, source: Source::Device })
    }

    fn unknown() -> Self {
        log::warn!("nobody tells how much memory there is: {} are taken for all", amount(UNKNOWN));
        Self { bytes: UNKNOWN, source: Source::Unknown }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Given => "as asked",
            Source::Host => "half of the host's memory",
            Source::Device => "the device's memory",
            Source::Unknown => "a guess",
        };
        write!(f, "budget of {} ({source})", amount(self.bytes))
    }
}

/// Bytes that programs of one session hold, given back when they are dropped.
#[derive(Debug, Default)]
pub(super) struct Held {
    own: u64,
    all: Arc<AtomicU64>,
}

impl Held {
    /// `bytes` more, until the result is dropped.
    pub(super) fn with(&self, bytes: u64) -> Self {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        Self { own: bytes, all: Arc::clone(&self.all) }
    }

    /// What is held.
    pub(super) fn others(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}
