//! The commands of `remora`, the one binary that a person runs, and the control plane that is one of them.

pub mod audit;
pub mod board;
pub mod ca;
pub mod cli;
pub mod client;
pub mod clock;
pub mod control;
pub mod document;
pub mod inject;
pub mod kinds;
pub mod kubernetes;
pub mod publish;
pub mod quota;
pub mod registry;
pub mod rest;
pub mod store;

mod bench;
mod check;
mod cni;
mod commands;
mod connections;
mod demo;
mod files;
mod init;
mod lines;
mod run;
mod sidecar;
