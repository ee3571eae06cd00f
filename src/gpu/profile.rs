//! What one run dispatches and how long each dispatch takes, by timestamps where the adapter has them.

use super::adapter::Context;
use crate::error::{Error, Result};
use crate::scheduler::profile::{Profile, Span};

/// Timestamps of one query set: the most that wgpu allows, two a dispatch.
pub(super) const DISPATCHES: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;

/// The timestamps of some dispatches, on their way to the host.
pub(super) struct Stamps {
    pub set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readable: wgpu::Buffer,
    /// The number of the first dispatch among the run's.
    first: usize,
    dispatches: usize,
}

impl Stamps {
    /// Room for the stamps of `dispatches` dispatches.
    pub fn new(context: &Context, first: usize, dispatches: usize) -> Self {
        let count = 2 * dispatches as u32;
        let set = context.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("profile"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let buffer = |usage| {
            let size = 8 * u64::from(count);
            let descriptor = wgpu::BufferDescriptor { label: Some("profile"), size, usage, mapped_at_creation: false };
            context.device.create_buffer(&descriptor)
        };
        use wgpu::BufferUsages as U;
        let (resolved, readable) = (buffer(U::QUERY_RESOLVE | U::COPY_SRC), buffer(U::MAP_READ | U::COPY_DST));
        Self { set, resolved, readable, first, dispatches }
    }

    /// What dispatch number `at` of these writes.
    pub fn writes(&self, at: usize) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(2 * at as u32),
            end_of_pass_write_index: Some(2 * at as u32 + 1),
        }
    }

    /// Brings them where the host can read them.
    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.set, 0..2 * self.dispatches as u32, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readable, 0, self.readable.size());
    }
}

/// What is noted while a run is recorded.
#[derive(Default)]
pub(super) struct Profiler {
    /// Whether commands are only counted and nothing runs.
    pub dry: bool,
    pub profile: Profile,
    /// The step that is being recorded.
    pub step: Option<usize>,
    pub stamps: Vec<Stamps>,
}

impl Profiler {
    /// Notes a dispatch.
    pub fn dispatch(&mut self, kernel: &str) {
        self.profile.device.push(Span { step: self.step, what: kernel.to_string(), time: None });
    }

    /// Asks for the timestamps, which can be read once the device is done.
    pub fn begin_read(&self) {
        for stamps in &self.stamps {
            stamps.readable.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        }
    }

    /// What the run did; for after the device is done.
    pub fn finish(mut self, context: &Context) -> Result<Profile> {
        // Nanoseconds a tick.
        let period = f64::from(context.queue.get_timestamp_period()) * 1e-9;
        let mut origin = None;
        for stamps in &self.stamps {
            let mapped = stamps.readable.slice(..).get_mapped_range();
            let mapped = mapped.map_err(|e| Error::device(format!("profile: timestamps cannot be read: {e}")))?;
            let ticks: &[u64] = bytemuck::cast_slice(&mapped);
            let origin = *origin.get_or_insert(ticks[0]);
            let spans = &mut self.profile.device[stamps.first..stamps.first + stamps.dispatches];
            for (span, ticks) in spans.iter_mut().zip(ticks.chunks_exact(2)) {
                let seconds = |tick: u64| tick.wrapping_sub(origin) as f64 * period;
                span.time = Some([seconds(ticks[0]), seconds(ticks[1].max(ticks[0]))]);
            }
        }
        Ok(self.profile)
    }
}
