//! What waits away from the device while a program runs: weights in the host's memory or in files, sums of a run in the host's
//! memory; and the way from the device to there.

use super::buffer::{Buffer, Buffers};
use super::upload::bytes_of;
use crate::error::{Error, Result};
use crate::params::Tensor;
use crate::scheduler::Program;
use crate::scheduler::footprint::Claim;
use crate::scheduler::program::Storage;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const PENDING: u8 = 0;
const ARRIVED: u8 = 1;
const FAILED: u8 = 2;

/// What a session keeps away from the device, by name.
pub trait Homes {
    /// The value, if it waits.
    fn home(&self, name: &str) -> Option<&Tensor>;

    /// The value, to change.
    fn home_mut(&mut self, name: &str) -> Option<&mut Tensor>;
}

/// A part of a value on its way to the host.
struct Sent {
    value: usize,
    /// Bytes before it.
    first: u64,
    bytes: u64,
    buffer: Buffer,
    state: Arc<AtomicU8>,
    submission: wgpu::SubmissionIndex,
}

/// What a program has away from the device.
pub(super) struct Away {
    /// Sums of a run by value.
    own: BTreeMap<usize, Tensor>,
    /// Where the device writes what is sent: free, and under way.
    free: Vec<Buffer>,
    sent: VecDeque<Sent>,
    /// Of what is brought to a device that shares the host's memory.
    _brought: Option<Claim>,
}

impl Away {
    /// For `program`.
    pub fn of(program: &Program, buffers: &Buffers) -> Result<Self> {
        let (chunk, most) = program.on_the_way();
        let mut free = Vec::new();
        if program.sends() {
            let buffer = || match program.target.unified {
                true => buffers.sent(chunk),
                false => buffers.on_host("sent", chunk),
            };
            free = (0..most.div_ceil(chunk)).map(|_| buffer()).collect::<Result<_>>()?;
        }
        let brought = if program.target.unified { most } else { 0 };
        let refused = || Error::memory(format!("device: {brought} bytes of weights on their way are beyond the limit"));
        let _brought = match brought {
            0 => None,
            bytes => Some(buffers.meter().claim(bytes).ok_or_else(refused)?),
        };
        let mut own = BTreeMap::new();
        let waits = |v: &crate::scheduler::ProgramValue| v.offloaded && v.storage == Storage::Own;
        for (at, value) in program.values.iter().enumerate().filter(|(_, v)| program.measures.stream && waits(v)) {
            let sizes = value.sizes(&program.capacity)?;
            own.insert(at, Tensor::zeros(&sizes));
        }
        Ok(Self { own, free, sent: VecDeque::new(), _brought })
    }

    /// The bytes of value `at` of `program`.
    pub fn bytes<'a>(&'a self, program: &Program, at: usize, homes: &'a dyn Homes) -> Result<&'a [u8]> {
        let value = &program.values[at];
        let name = &value.name;
        if let Some(own) = self.own.get(&at) {
            return bytes_of(own).map_err(|e| e.within(name));
        }
        let tensor = homes.home(name).ok_or_else(|| Error::internal(format!("`{name}` waits nowhere")))?;
        let bytes = bytes_of(tensor).map_err(|e| e.within(name))?;
        let first = value.first_byte();
        Ok(&bytes[first..first + program.bytes(value) as usize])
    }

    /// The submission by whose end all of `value` that was sent has arrived; nothing where none is under way.
    pub fn awaited(&self, value: usize) -> Option<wgpu::SubmissionIndex> {
        self.sent.iter().rev().find(|s| s.value == value).map(|s| s.submission.clone())
    }

    /// The first and the last submission of what is under way.
    pub fn under_way(&self) -> Option<[wgpu::SubmissionIndex; 2]> {
        self.sent.front().zip(self.sent.back()).map(|(a, b)| [a.submission.clone(), b.submission.clone()])
    }

    /// Room for a part of what is sent.
    pub fn room(&mut self) -> Option<Buffer> {
        self.free.pop()
    }

    /// Begins to give the host `bytes` of `value` from byte `first` on, which `submission` writes to `buffer`.
    pub fn send(&mut self, value: usize, [first, bytes]: [u64; 2], buffer: Buffer, submission: wgpu::SubmissionIndex) {
        let state = Arc::new(AtomicU8::new(PENDING));
        let signal = Arc::clone(&state);
        buffer.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            signal.store(if result.is_ok() { ARRIVED } else { FAILED }, Ordering::Release);
        });
        self.sent.push_back(Sent { value, first, bytes, buffer, state, submission });
    }

    /// Takes what has arrived.
    pub fn take(&mut self, program: &Program, homes: &mut dyn Homes) -> Result<()> {
        while let Some(sent) = self.sent.front() {
            match sent.state.load(Ordering::Acquire) {
                PENDING => break,
                ARRIVED => {}
                _ => return Err(Error::device("device: what was sent to the host's memory cannot be read")),
            }
            let value = &program.values[sent.value];
            let (home, before) = match self.own.get_mut(&sent.value) {
                Some(own) => (Some(own), 0),
                None => (homes.home_mut(&value.name), value.first_byte()),
            };
            let home = home.ok_or_else(|| Error::internal(format!("`{}` waits nowhere", value.name)))?;
            let to: &mut [u8] = &mut bytemuck::cast_slice_mut(home.f32s_mut()?)[before..];
            let view = sent.buffer.get_mapped_range(0..sent.bytes);
            let view = view.map_err(|e| Error::device(format!("device: reading failed: {e}")))?;
            to[sent.first as usize..(sent.first + sent.bytes) as usize].copy_from_slice(&view);
            drop(view);
            sent.buffer.unmap();
            self.free.extend(self.sent.pop_front().map(|sent| sent.buffer));
        }
        Ok(())
    }

    /// Forgets what a run that failed has left under way.
    pub fn clear(&mut self) {
        for sent in self.sent.drain(..) {
            sent.buffer.unmap();
            self.free.push(sent.buffer);
        }
    }
}
