//! Runs one bootstrap file through a proxy and writes down what came back and what went through.

pub mod case;
pub mod certs;
pub mod client;
pub mod diff;
pub mod echo;
pub mod mask;
pub mod proxy;
pub mod wire;

mod echo2;
mod run;

pub use run::{Fixture, observe};
