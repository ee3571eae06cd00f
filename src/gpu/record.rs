//! Recording one run: dispatches with their parameters, copies and clears, encoded into few submissions.

use super::adapter::Context;
use super::buffer::Buffer;
use super::pipeline::Pipeline;
use super::profile::{DISPATCHES, Profiler, Stamps};
use crate::error::Result;
use crate::scheduler::strategy::PARAMETER_SLOTS;
use std::sync::Arc;

/// A part of a buffer.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub buffer: Buffer,
    pub offset: u64,
    pub bytes: u64,
}

/// A pipeline with what it binds.
pub(super) struct Launch {
    pub pipeline: Arc<Pipeline>,
    pub bind_group: wgpu::BindGroup,
}

enum Command<'a> {
    Dispatch { launch: &'a Launch, slot: usize, x: u32, y: u32 },
    Copy { from: View, to: View },
    Clear { view: View },
}

/// Dispatches of a run's first submission where there are more: few, so that the device begins soon. An estimate.
const FIRST_DISPATCHES: usize = 64;

/// Dispatches of each further one: a submission costs as much as some ten dispatches. An estimate.
const NEXT_DISPATCHES: usize = 1024;

/// The commands of one run.
pub(super) struct Recorder<'a> {
    context: &'a Context,
    buffer: &'a Buffer,
    submitted: (Option<wgpu::SubmissionIndex>, usize),
    commands: Vec<Command<'a>>,
    params: Vec<u8>,
    slot_bytes: usize,
    slots: usize,
    /// Dispatches after which what is recorded is submitted, so that the device works while the host goes on recording.
    early: usize,
    most: u32,
    profiler: Option<&'a mut Profiler>,
}

impl<'a> Recorder<'a> {
    /// Parameters go through `buffer`; what is recorded is noted by `profiler`.
    pub fn new(context: &'a Context, buffer: &'a Buffer, profiler: Option<&'a mut Profiler>) -> Self {
        Self {
            context,
            buffer,
            submitted: (None, 0),
            commands: Vec::new(),
            params: Vec::new(),
            slot_bytes: context.target().limits.uniform as usize,
            slots: 0,
            early: FIRST_DISPATCHES,
            most: context.workgroups(),
            profiler,
        }
    }

    /// Runs `launch` over `groups` workgroups, folded into two dimensions where one is too short.
    pub fn dispatch<P: bytemuck::Pod>(&mut self, launch: &'a Launch, params: &P, groups: usize) {
        if groups == 0 {
            return;
        }
        let most = self.most as usize;
        let (x, y) = if groups <= most { (groups, 1) } else { (most, groups.div_ceil(most)) };
        let bytes = bytemuck::bytes_of(params);
        debug_assert_eq!(bytes.len() as u64, launch.pipeline.params);
        self.params.extend_from_slice(bytes);
        self.params.resize((self.slots + 1) * self.slot_bytes, 0);
        self.commands.push(Command::Dispatch { launch, slot: self.slots, x: x as u32, y: y as u32 });
        self.slots += 1;
        if let Some(profiler) = &mut self.profiler {
            profiler.dispatch(launch.pipeline.label);
        }
        if self.slots >= self.early {
            self.flush();
            self.early = NEXT_DISPATCHES;
        }
    }

    /// Whether nothing that is recorded will run.
    pub fn is_dry(&self) -> bool {
        self.profiler.as_ref().is_some_and(|profiler| profiler.dry)
    }

    /// Says for which step the next commands are.
    pub fn step(&mut self, number: usize) {
        if let Some(profiler) = &mut self.profiler {
            profiler.step = Some(number);
        }
    }

    /// Copies `from` to the start of `to`.
    pub fn copy(&mut self, from: View, to: View) {
        if from.bytes > 0 {
            self.commands.push(Command::Copy { from, to });
        }
    }

    /// Writes zeros.
    pub fn clear(&mut self, view: View) {
        if view.bytes > 0 {
            self.commands.push(Command::Clear { view });
        }
    }

    /// The device.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// The last submission, and how many there were.
    pub fn submitted(&self) -> (Option<wgpu::SubmissionIndex>, usize) {
        self.submitted.clone()
    }

    /// Encodes and submits everything so far.
    pub fn submit(&mut self) -> Result<()> {
        self.flush();
        self.context.check()
    }

    fn flush(&mut self) {
        let (commands, params) = (std::mem::take(&mut self.commands), std::mem::take(&mut self.params));
        self.slots = 0;
        let mut first = 0;
        if let Some(profiler) = &mut self.profiler {
            let dispatches = commands.iter().filter(|c| matches!(c, Command::Dispatch { .. })).count();
            profiler.profile.copies += commands.len() - dispatches;
            first = profiler.profile.device.len() - dispatches;
            if profiler.dry {
                return;
            }
        }
        let timed = self.profiler.is_some() && self.context.has_timestamps();
        let most = if timed { PARAMETER_SLOTS.min(DISPATCHES) } else { PARAMETER_SLOTS };
        let mut rest = commands.as_slice();
        let mut slot = 0;
        while !rest.is_empty() {
            let mut dispatches = 0;
            let here = rest.iter().position(|c| {
                dispatches += usize::from(matches!(c, Command::Dispatch { .. }));
                dispatches > most
            });
            dispatches = dispatches.min(most);
            let (now, later) = rest.split_at(here.unwrap_or(rest.len()));
            rest = later;
            let stamps = (timed && dispatches > 0).then(|| Stamps::new(self.context, first, dispatches));
            if dispatches > 0 {
                let bytes = &params[slot * self.slot_bytes..(slot + dispatches) * self.slot_bytes];
                self.context.queue.write_buffer(self.buffer, 0, bytes);
            }
            let submission = encode(self.context, now, (slot, self.slot_bytes), stamps.as_ref());
            self.submitted = (Some(submission), self.submitted.1 + 1);
            first += dispatches;
            slot += dispatches;
            if let Some(profiler) = &mut self.profiler {
                profiler.stamps.extend(stamps);
                profiler.profile.submissions += 1;
            }
        }
    }
}

/// Encodes and submits `commands`, whose parameters begin at the buffer's start with those of slot `first`. Dispatches share
/// a pass, unless each is timed.
fn encode(
    context: &Context,
    commands: &[Command<'_>],
    (first, slot_bytes): (usize, usize),
    stamps: Option<&Stamps>,
) -> wgpu::SubmissionIndex {
    let mut encoder = context.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("run") });
    let (mut at, mut dispatched) = (0, 0);
    while at < commands.len() {
        match &commands[at] {
            Command::Copy { from, to } => {
                let bytes = from.bytes.min(to.bytes);
                encoder.copy_buffer_to_buffer(&from.buffer, from.offset, &to.buffer, to.offset, bytes);
                at += 1;
            }
            Command::Clear { view } => {
                encoder.clear_buffer(&view.buffer, view.offset, Some(view.bytes));
                at += 1;
            }
            Command::Dispatch { .. } => {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: stamps.map(|stamps| stamps.writes(dispatched)),
                });
                let mut current: Option<*const Pipeline> = None;
                while let Some(Command::Dispatch { launch, slot, x, y }) = commands.get(at) {
                    let pipeline = Arc::as_ptr(&launch.pipeline);
                    if current != Some(pipeline) {
                        pass.set_pipeline(&launch.pipeline.pipeline);
                        current = Some(pipeline);
                    }
                    pass.set_bind_group(0, &launch.bind_group, &[((slot - first) * slot_bytes) as u32]);
                    pass.dispatch_workgroups(*x, *y, 1);
                    at += 1;
                    dispatched += 1;
                    if stamps.is_some() {
                        break;
                    }
                }
            }
        }
    }
    stamps.iter().for_each(|stamps| stamps.resolve(&mut encoder));
    context.queue.submit([encoder.finish()])
}
