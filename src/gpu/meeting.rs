//! How many workgroups of a device run at a time and can meet, found out by letting them: `wgpu` tells no such number.

use super::adapter::Context;
use super::kernels::{kernel, params, word};
use super::pipeline::{Kernel, Pipelines};
use crate::error::{Error, Result};
use crate::scheduler::recurrence::{PATIENCE, REGISTER_THREADS, SOFTWARE_PATIENCE};

params!(Params { groups: u32, rounds: u32 });

pub(super) static KERNEL: Kernel = kernel!(
    "meeting",
    "main",
    Params,
    [Params, Write, Absent, Absent, Absent, Absent, Absent, Absent, Absent, Absent, Write]
);

/// More workgroups than any strategy asks for.
const MOST: usize = 1024;
/// Meetings that all have to succeed.
const ROUNDS: u32 = 32;

/// The most workgroups that were seen to meet at every round and to read what the others had written: 0 where two do not, or
/// the backend is none of those on which that is known to work. Blocks.
pub(super) fn resident(context: &Context) -> Result<usize> {
    if !context.is_vulkan() {
        return Ok(0);
    }
    let mut pipelines = Pipelines::default();
    let mut all_meet = |groups| all_meet(context, &mut pipelines, groups);
    // Doubled as long as they meet, then halved towards the last number that did.
    let (mut meet, mut step) = (1, 1);
    while meet + step <= MOST && all_meet(meet + step)? {
        meet += step;
        step *= 2;
    }
    while step > 1 {
        step /= 2;
        if meet + step <= MOST && all_meet(meet + step)? {
            meet += step;
        }
    }
    Ok(if meet > 1 { meet } else { 0 })
}

/// Whether `groups` workgroups, each as large as one of *grid* may be, meet at every round and see what the others wrote.
fn all_meet(context: &Context, pipelines: &mut Pipelines, groups: usize) -> Result<bool> {
    let limits = context.target().limits;
    let threads = limits.invocations.min(REGISTER_THREADS);
    // The word `together` needs a place too.
    let words = limits.workgroup / 4 - 4;
    let patience = if context.is_software() { SOFTWARE_PATIENCE } else { PATIENCE };
    let constants = vec![("THREADS", threads as f32), ("WORDS", words as f32), ("PATIENCE", patience as f32)];
    let pipeline = pipelines.get(context, &KERNEL, "", None, &constants)?;
    let storage = |label, bytes| context.buffers.storage(label, bytes);
    let (seen, meeting) = (storage("seen", 4 * (1 + 2 * groups) as u64)?, storage("meeting", 4)?);
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let params = context.buffers.create("params", 16, usage)?;
    context.queue.write_buffer(&params, 0, bytemuck::bytes_of(&Params { groups: word(groups), rounds: ROUNDS }));
    let result = context.buffers.create("result", 8, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?;
    let entries = [(0, &params), (1, &seen), (10, &meeting)].map(|(binding, buffer)| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size: None }),
    });
    let descriptor = wgpu::BindGroupDescriptor { label: Some("meeting"), layout: &pipeline.layout, entries: &entries };
    let bind_group = context.buffers.bind_group(&descriptor);
    let mut encoder = context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &bind_group, &[0]);
        pass.dispatch_workgroups(word(groups), 1, 1);
    }
    encoder.copy_buffer_to_buffer(&seen, 0, &result, 0, 4);
    encoder.copy_buffer_to_buffer(&meeting, 0, &result, 4, 4);
    let submission = context.queue.submit([encoder.finish()]);
    result.slice(..).map_async(wgpu::MapMode::Read, |_| {});
    context.block(Some(submission))?;
    let unmapped = |e| Error::device(format!("device: what workgroups saw cannot be read: {e}"));
    let bytes = result.slice(..).get_mapped_range().map_err(unmapped)?;
    let [wrong, came] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i])));
    // A word that says that somebody has left is no such number.
    Ok(wrong == 0 && came as usize == groups * ROUNDS as usize)
}
