//! Configuration: sources -> resources -> compile -> attach -> publish (ARCHITECTURE, "How config flows").

pub mod compile;
pub mod names;
pub mod spec;
