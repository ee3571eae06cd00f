//! The command `mnemon`: a thin command line over the library.

mod bench;
mod classify;
mod compare;
mod configs;
mod convert;
mod devices;
mod evaluate;
mod forecast;
mod generate;
mod optimizer;
mod options;
mod output;
mod plan;
mod plot;
mod profile;
mod progress;
mod run;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "gpu")]
mod shaders;
mod summary;
mod tag;
mod train;
mod tune;
mod tune_memory;
mod verify;
mod words;

use clap::{Parser, Subcommand};
use mnemon::error::{Error, ErrorKind, Result};
use std::process::ExitCode;

/// LSTMs, trained and run fast on any GPU, and on the CPU
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  mnemon train src --output model.safetensors\n\n\
    MNEMON_LOG=info (or debug) says more on standard error. MNEMON_SIMD=avx512, avx2, neon or scalar\n    \
    sets the CPU device's vector instructions [default: the widest that the processor has]."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Devices(devices::Arguments),
    Train(train::Arguments),
    Classify(classify::Arguments),
    Tag(tag::Arguments),
    Evaluate(evaluate::Arguments),
    Forecast(forecast::Arguments),
    Generate(generate::Arguments),
    Plot(plot::Arguments),
    Summary(summary::Arguments),
    Run(run::Arguments),
    Compare(compare::Arguments),
    Convert(convert::Arguments),
    Verify(verify::Arguments),
    Bench(bench::Arguments),
    Plan(plan::Arguments),
    Profile(profile::Arguments),
    Tune(tune::Arguments),
    TuneMemory(tune_memory::Arguments),
    #[cfg(feature = "serve")]
    Serve(serve::Arguments),
    #[cfg(feature = "gpu")]
    Shaders(shaders::Arguments),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("MNEMON_LOG", "warn")).init();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Devices(a) => devices::run(&a),
        Command::Train(a) => train::run(&a),
        Command::Classify(a) => classify::run(&a),
        Command::Tag(a) => tag::run(&a),
        Command::Evaluate(a) => evaluate::run(&a),
        Command::Forecast(a) => forecast::run(&a),
        Command::Generate(a) => generate::run(&a),
        Command::Plot(a) => plot::run(&a),
        Command::Summary(a) => summary::run(&a),
        Command::Run(a) => run::run(&a),
        Command::Compare(a) => compare::run(&a),
        Command::Convert(a) => convert::run(&a),
        Command::Verify(a) => verify::run(&a),
        Command::Bench(a) => bench::run(&a),
        Command::Plan(a) => plan::run(&a),
        Command::Profile(a) => profile::run(&a),
        Command::Tune(a) => tune::run(&a),
        Command::TuneMemory(a) => tune_memory::run(&a),
        #[cfg(feature = "serve")]
        Command::Serve(a) => serve::run(&a),
        #[cfg(feature = "gpu")]
        Command::Shaders(a) => shaders::run(&a),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        exit_code(&error)
    })
}

/// 2 where the command line asks for what cannot be, 1 for all else.
fn exit_code(error: &Error) -> ExitCode {
    match error.kind() {
        ErrorKind::Argument | ErrorKind::Unsupported => ExitCode::from(2),
        _ => ExitCode::from(1),
    }
}

/// The contents of a file of text that the command line names.
fn read_text(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|e| Error::new(ErrorKind::File, format!("{}: cannot read: {e}", path.display())))
}
