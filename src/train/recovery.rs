//! Training that goes on where a device fails: what was kept of it last, and from when.

use super::step::LATCH;
use crate::device::{Device, DeviceKind, Session};
use crate::error::{Error, Result};
use crate::params::Tensor;
use std::time::{Duration, Instant};

/// The least time between two snapshots.
const LEAST: Duration = Duration::from_secs(10);
/// Times that a device is opened again without a snapshot since: then it is gone for good.
const REOPENED: usize = 2;
/// Of the time that training takes, one part in so many may go into snapshots.
const SHARE: u32 = 20;

/// All that training keeps on a device, as it was at a moment that `T` tells.
pub(super) struct Recovery<T> {
    last: Option<(T, Vec<(String, Tensor)>)>,
    taken: Instant,
    cost: Duration,
    /// Failures since then.
    failures: usize,
}

impl<T> Default for Recovery<T> {
    fn default() -> Self {
        Self { last: None, taken: Instant::now(), cost: Duration::ZERO, failures: 0 }
    }
}

impl<T: Clone> Recovery<T> {
    /// Takes a snapshot where one is due. The host's processor does not get lost, and none is taken there.
    pub fn keep(&mut self, session: &mut Session, moment: &T) -> Result<()> {
        let lasts = matches!(session.device().kind(), DeviceKind::Cpu | DeviceKind::Reference);
        let due = self.last.is_none() || self.taken.elapsed() > LEAST.max(self.cost * SHARE);
        if lasts || !due {
            return Ok(());
        }
        let begin = Instant::now();
        let names: Vec<String> = session.names().map(String::from).collect();
        let read = |name: String| session.get(&name).map(|tensor| (name, tensor));
        let values = names.into_iter().map(read).collect::<Result<Vec<_>>>()?;
        // After a step that was not finite nothing has changed, and where training stands is still to be found out.
        let latched =
            values.iter().find(|(name, _)| name == LATCH).is_some_and(|(_, latch)| latch != &Tensor::scalar(0.0));
        if latched {
            return Ok(());
        }
        (self.last, self.taken, self.cost) = (Some((moment.clone(), values)), Instant::now(), begin.elapsed());
        self.failures = 0;
        Ok(())
    }

    /// Where `error` is the device's, opens it again, and then the CPU, and has `go_on` go on from the last snapshot with a
    /// session there. Programs have to be loaded anew.
    pub fn elsewhere<R>(
        &mut self,
        mut error: Error,
        device: &Device,
        mut go_on: impl FnMut(Session, &T) -> Result<R>,
    ) -> Result<R> {
        let Some((moment, values)) = self.last.as_ref().filter(|_| error.is_of_the_device()) else { return Err(error) };
        self.failures += 1;
        for device in device.elsewhere().skip(usize::from(self.failures > REOPENED)) {
            let done = device.and_then(|device| {
                log::warn!("training: {error}; going on on {} from its last snapshot", device.name());
                let mut session = device.session()?;
                values.iter().try_for_each(|(name, tensor)| session.set(name, tensor))?;
                go_on(session, moment)
            });
            match done {
                Err(e) if e.is_of_the_device() => error = e,
                other => return other,
            }
        }
        Err(error)
    }
}
