//! Which vector instructions the processor computes with.

use crate::error::{Error, Result};
use pulp::{Arch, WithSimd};
use std::sync::OnceLock;

/// The environment's choice: the widest that the processor has unless it is set.
const VARIABLE: &str = "MNEMON_SIMD";

/// What the processor has of these, by name, the widest first.
fn known() -> Vec<(&'static str, Arch)> {
    #[allow(unused_mut, reason = "there are more where the architecture has some that not every processor has")]
    let mut all = vec![("scalar", Arch::Scalar)];
    #[cfg(target_arch = "x86_64")]
    all.extend(pulp::x86::V3::try_new().map(|simd| ("avx2", Arch::V3(simd))));
    #[cfg(target_arch = "x86_64")]
    all.extend(pulp::x86::V4::try_new().map(|simd| ("avx512", Arch::V4(simd))));
    #[cfg(target_arch = "aarch64")]
    all.extend(pulp::aarch64::Neon::try_new().map(|simd| ("neon", Arch::Neon(simd))));
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    all.push(("best", Arch::new()));
    all.reverse();
    all
}

fn choose() -> std::result::Result<(&'static str, Arch), String> {
    let known = known();
    let Some(wanted) = std::env::var_os(VARIABLE) else { return Ok(known[0]) };
    let names: Vec<&str> = known.iter().map(|k| k.0).collect();
    let found = known.iter().find(|(name, _)| wanted.to_str() == Some(name)).copied();
    found.ok_or_else(|| format!("{VARIABLE}: this processor has {}, got {wanted:?}", names.join(", ")))
}

fn chosen() -> &'static std::result::Result<(&'static str, Arch), String> {
    static CHOSEN: OnceLock<std::result::Result<(&'static str, Arch), String>> = OnceLock::new();
    CHOSEN.get_or_init(choose)
}

/// The name of the instructions, or why there are none.
pub(crate) fn name() -> Result<&'static str> {
    chosen().as_ref().map(|(name, _)| *name).map_err(|e| Error::argument(e.clone()))
}

/// Runs `work` with the instructions.
#[inline(always)]
pub(super) fn dispatch<W: WithSimd>(work: W) -> W::Output {
    // A processor that is not to be had was refused when it was opened.
    chosen().as_ref().map_or(Arch::Scalar, |(_, arch)| *arch).dispatch(work)
}
