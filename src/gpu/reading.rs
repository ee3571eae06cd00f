//! Values on their way to the host.

use super::adapter::Context;
use super::buffer::Buffer;
use super::record::View;
use crate::error::{Error, Result};
use crate::params::{DType, Tensor};
use crate::scheduler::footprint::STAGING;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

#[derive(Default)]
struct Mapping {
    done: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// Staging buffers that are read again and again.
#[derive(Default)]
pub(super) struct Staging {
    free: Mutex<Vec<Buffer>>,
    /// The largest that programs have reserved; larger ones are not kept.
    largest: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Staging {
    /// A free buffer of at least `bytes`, made if there is none.
    fn take(&self, context: &Context, bytes: u64) -> Result<Buffer> {
        let mut free = lock(&self.free);
        let fit = (0..free.len()).filter(|&i| free[i].size() >= bytes).min_by_key(|&i| free[i].size());
        if let Some(at) = fit.filter(|&i| free[i].size() <= 4 * bytes.max(4096)) {
            return Ok(free.swap_remove(at));
        }
        drop(free);
        use wgpu::BufferUsages as U;
        context.buffers.create("staging", bytes.max(STAGING), U::MAP_READ | U::COPY_DST)
    }

    /// Makes sure that a buffer of `bytes` is there for when it is needed.
    pub(super) fn reserve(&self, context: &Context, bytes: u64) -> Result<()> {
        self.largest.fetch_max(bytes.max(STAGING), Ordering::Relaxed);
        let buffer = self.take(context, bytes)?;
        self.give(buffer);
        Ok(())
    }

    fn give(&self, buffer: Buffer) {
        let mut free = lock(&self.free);
        if free.len() < 16 && buffer.size() <= self.largest.load(Ordering::Relaxed).max(4096) {
            free.push(buffer);
        }
    }
}

/// A tensor on its way to the host: a future, or something to wait for.
pub struct Reading {
    context: Arc<Context>,
    staging: Arc<Staging>,
    buffer: Option<Buffer>,
    mapping: Arc<Mutex<Mapping>>,
    shape: Vec<usize>,
    dtype: DType,
}

impl Reading {
    /// Begins to read `views`, one after the other, as a tensor of `shape`.
    pub(super) fn begin(
        context: &Arc<Context>,
        staging: &Arc<Staging>,
        views: &[View],
        shape: &[usize],
        dtype: DType,
    ) -> Result<Self> {
        context.check()?;
        let bytes = 4 * shape.iter().product::<usize>() as u64;
        let buffer = staging.take(context, bytes)?;
        let mut encoder =
            context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("read") });
        let mut at = 0;
        for view in views {
            let part = view.bytes.min(bytes - at);
            if part > 0 {
                encoder.copy_buffer_to_buffer(&view.buffer, view.offset, &buffer, at, part);
            }
            at += part;
        }
        context.queue.submit([encoder.finish()]);
        let mapping = Arc::new(Mutex::new(Mapping::default()));
        let signal = Arc::clone(&mapping);
        buffer.map_async(wgpu::MapMode::Read, 0..bytes.max(4), move |result| {
            let mut mapping = lock(&signal);
            mapping.done = Some(result);
            if let Some(waker) = mapping.waker.take() {
                waker.wake();
            }
        });
        Ok(Self {
            context: Arc::clone(context),
            staging: Arc::clone(staging),
            buffer: Some(buffer),
            mapping,
            shape: shape.to_vec(),
            dtype,
        })
    }

    /// Whether the values have arrived. Never waits.
    pub fn is_ready(&mut self) -> bool {
        let _ = self.context.device.poll(wgpu::PollType::Poll);
        lock(&self.mapping).done.is_some()
    }

    /// The device that it reads from.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The tensor, once the values have arrived.
    pub fn take(&mut self) -> Result<Tensor> {
        match lock(&self.mapping).done.take() {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(Error::device(format!("device: reading failed: {e}"))),
            None => return Err(Error::internal("device: the values have not arrived")),
        }
        let Some(buffer) = self.buffer.take() else { return Err(Error::internal("device: values were read twice")) };
        let len: usize = self.shape.iter().product();
        let tensor = {
            let view = buffer
                .get_mapped_range(0..(4 * len as u64).max(4))
                .map_err(|e| Error::device(format!("device: reading failed: {e}")))?;
            let words = view[..4 * len].chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            match self.dtype {
                DType::F32 => Tensor::new(&self.shape, words.map(f32::from_bits).collect())?,
                DType::U32 => Tensor::from_u32(&self.shape, words.collect())?,
            }
        };
        buffer.unmap();
        self.staging.give(buffer);
        Ok(tensor)
    }
}

impl Future for Reading {
    type Output = Result<Tensor>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        if self.is_ready() {
            return Poll::Ready(self.take());
        }
        lock(&self.mapping).waker = Some(cx.waker().clone());
        // Outside the browser nobody calls back unless the device is polled, so ask to be polled again.
        #[cfg(not(target_arch = "wasm32"))]
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
