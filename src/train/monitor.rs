//! Watches the latch of steps that were not finite, without waiting for the device at each step.

use super::step::LATCH;
use crate::device::{Reading, Session};
use crate::error::{Error, ErrorKind, Result};

/// Steps between looks at the latch; untuned. A later look loses nothing but the time of steps that changed nothing.
const EVERY: u32 = 16;

#[derive(Default)]
pub(super) struct Monitor {
    pending: Option<Reading>,
    steps: u32,
}

/// The step that a latch holds.
fn bad_step(reading: Reading) -> Result<Option<u32>> {
    let latch = reading.wait()?.f32s()?[0];
    Ok((latch != 0.0).then(|| (latch as u32).saturating_sub(1)))
}

impl Monitor {
    /// Called after each step: the step that was not finite, if an earlier look has found one.
    pub(super) fn after_step(&mut self, session: &mut Session) -> Result<Option<u32>> {
        self.steps += 1;
        let due = self.steps.is_multiple_of(EVERY);
        let ready = self.pending.as_mut().is_some_and(Reading::is_ready);
        if (ready || due)
            && let Some(reading) = self.pending.take()
            && let Some(step) = bad_step(reading)?
        {
            return Ok(Some(step));
        }
        if due {
            self.pending = Some(session.begin_get(LATCH)?);
        }
        Ok(None)
    }

    /// [`Self::now`], where training has begun at all.
    pub(super) fn now_if_latched(&mut self, session: &mut Session) -> Result<Option<u32>> {
        if session.names().any(|name| name == LATCH) { self.now(session) } else { Ok(None) }
    }

    /// The step that was not finite, if there was one. Waits for the device.
    pub(super) fn now(&mut self, session: &mut Session) -> Result<Option<u32>> {
        self.pending = None;
        bad_step(session.begin_get(LATCH)?)
    }
}

/// The error of a step that was not finite.
pub(super) fn not_finite(step: u32) -> Error {
    Error::new(
        ErrorKind::NotFinite,
        format!(
            "training: the loss or its gradient is not finite at step {}; training stopped, the parameters are those \
             before that step (try a lower learning rate or clipping)",
            step + 1
        ),
    )
}
