#![doc = include_str!("../README.md")]

pub mod config;
pub mod error;
pub mod graph;
pub mod params;
pub mod scheduler;
