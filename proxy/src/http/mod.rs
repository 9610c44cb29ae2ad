//! HTTP: codecs, the pipeline, one attempt, bodies.

pub mod ahead;
pub mod attempt;
pub mod authority;
pub mod authz;
pub mod body;
pub mod context;
pub mod downstream;
pub mod filters;
pub mod forward;
pub mod forwarded;
pub mod guard;
pub mod h1;
pub mod h2;
pub mod head;
pub mod headers;
pub mod interim;
pub mod local_reply;
pub mod path;
pub mod pipeline;
pub mod pump;
pub mod recheck;
pub mod replay;
pub mod response;
pub mod tunnel;
pub mod values;
pub mod watchdog;
