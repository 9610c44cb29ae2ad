//! Configuration: sources -> resources -> compile -> attach -> publish (ARCHITECTURE, "How config flows").

pub mod compile;
pub mod manager;
pub mod names;
pub mod secrets;
pub mod snapshot;
pub mod source;
pub mod spec;
