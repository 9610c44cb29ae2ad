//! HTTP: codecs, the pipeline, one attempt, bodies.

pub mod head;
