#![doc = include_str!("../README.md")]

pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod error;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod graph;
pub mod io;
pub mod nn;
pub mod optim;
pub mod params;
pub mod reference;
pub mod scheduler;
pub mod train;
pub mod verify;
