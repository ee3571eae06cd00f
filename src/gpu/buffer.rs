//! The one place that makes buffers: counted, and refused clearly.

use crate::error::{Error, Result};
use crate::scheduler::footprint::{Claim, Meter};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

/// Bytes of the widest load of a kernel.
pub(super) const VECTOR: u64 = 16;

/// A buffer that is counted while somebody has it.
#[derive(Debug, Clone)]
pub(super) struct Buffer {
    inner: wgpu::Buffer,
    size: u64,
    _claim: Arc<Claim>,
}

impl Buffer {
    /// Bytes that were asked for, rounded up to four.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that may be bound: those asked for, with room for whole vectors.
    pub fn padded_size(&self) -> u64 {
        self.inner.size()
    }
}

impl Deref for Buffer {
    type Target = wgpu::Buffer;

    fn deref(&self) -> &wgpu::Buffer {
        &self.inner
    }
}

/// Makes buffers and counts what was made.
pub struct Buffers {
    device: wgpu::Device,
    made: AtomicU64,
    meter: Meter,
    pipelines: AtomicU64,
    bind_groups: AtomicU64,
}

/// The result of a future that is ready at once, as wgpu's error scopes are outside the browser.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

impl Buffers {
    pub(super) fn new(device: wgpu::Device) -> Self {
        let zero = || AtomicU64::new(0);
        Self { device, made: zero(), meter: Meter::default(), pipelines: zero(), bind_groups: zero() }
    }

    /// A buffer of `bytes` (rounded up to four, and with room for kernels that read four values at a time), or an error where
    /// the device refuses it.
    pub(super) fn create(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<Buffer> {
        self.counted(label, bytes, usage, &self.meter)
    }

    /// A buffer in the host's memory, that a device writes and the host reads; not counted with the device's.
    pub(super) fn on_host(&self, label: &str, bytes: u64) -> Result<Buffer> {
        use wgpu::BufferUsages as U;
        self.counted(label, bytes, U::MAP_READ | U::COPY_DST, &Meter::default())
    }

    /// A buffer that a device writes and the host reads, where they share memory.
    pub(super) fn sent(&self, bytes: u64) -> Result<Buffer> {
        use wgpu::BufferUsages as U;
        self.create("sent", bytes, U::MAP_READ | U::COPY_DST)
    }

    fn counted(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages, meter: &Meter) -> Result<Buffer> {
        let size = bytes.max(4).next_multiple_of(4);
        let refuse =
            |why: &str| Error::memory(format!("device: a buffer of {size} bytes for `{label}` was refused: {why}"));
        let claim = meter.claim(size).ok_or_else(|| refuse("beyond the limit"))?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let padded = size.next_multiple_of(VECTOR);
        let padded = if padded <= self.device.limits().max_buffer_size { padded } else { size };
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size: padded, usage, mapped_at_creation: false };
        let buffer = self.device.create_buffer(&descriptor);
        let refused = [ready(validation.pop()), ready(memory.pop())].into_iter().flatten().flatten().next();
        if let Some(error) = refused {
            return Err(refuse(error.to_string().lines().next().unwrap_or_default()));
        }
        self.made.fetch_add(1, Ordering::Relaxed);
        Ok(Buffer { inner: buffer, size, _claim: Arc::new(claim) })
    }

    /// A buffer that kernels read and write and that can be copied.
    pub(super) fn storage(&self, label: &str, bytes: u64) -> Result<Buffer> {
        use wgpu::BufferUsages as U;
        self.create(label, bytes, U::STORAGE | U::COPY_SRC | U::COPY_DST)
    }

    /// Counts the bytes of all buffers.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(super) fn bind_group(&self, descriptor: &wgpu::BindGroupDescriptor<'_>) -> wgpu::BindGroup {
        self.bind_groups.fetch_add(1, Ordering::Relaxed);
        self.device.create_bind_group(descriptor)
    }

    pub(super) fn count_pipeline(&self) {
        self.pipelines.fetch_add(1, Ordering::Relaxed);
    }

    /// Pipelines, bind groups and buffers made so far.
    pub(super) fn created(&self) -> [u64; 3] {
        [&self.pipelines, &self.bind_groups, &self.made].map(|n| n.load(Ordering::Relaxed))
    }
}
