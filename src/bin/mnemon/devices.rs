//! `mnemon devices`: what there is to compute on.

use crate::output::say;
use clap::Args;
use mnemon::device::{AdapterReport, Device};
use mnemon::error::Result;
use std::process::ExitCode;

/// List every adapter, what it can do, and which one `best` takes
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mnemon devices")]
pub struct Arguments {}

pub fn run(_: &Arguments) -> Result<ExitCode> {
    let adapters = Device::adapters();
    adapters.iter().for_each(show);
    if adapters.is_empty() {
        say!("no GPU adapter{}\n", if cfg!(feature = "gpu") { "" } else { ": this build has no cargo feature `gpu`" });
    }
    say!("{}\n  --device cpu\n", Device::cpu().name());
    let best = Device::best()?;
    say!("best takes: {} ({})", best.name(), best.label());
    Ok(ExitCode::SUCCESS)
}

fn show(adapter: &AdapterReport) {
    let option = if adapter.software { "software" } else { "gpu" };
    say!("{}\n  --device {option}, or \"gpu:{}\"", adapter.name, adapter.name);
    say!("  backend   {} ({})\n  driver    {}", adapter.backend, adapter.kind, adapter.driver);
    let width = adapter.limits.iter().map(|l| l.0.len()).max().unwrap_or(0);
    for (at, (name, value)) in adapter.limits.iter().enumerate() {
        say!("  {:<9} {name:<width$} {value}", if at == 0 { "limits" } else { "" });
    }
    let list = |has: bool| {
        let names: Vec<&str> = adapter.features.iter().filter(|f| f.1 == has).map(|f| f.0).collect();
        if names.is_empty() { "none".to_string() } else { names.join(", ") }
    };
    say!("  features  {}\n  lacking   {}\n", list(true), list(false));
}
