//! What a large mesh costs: the control plane that serves it ([`plane`]), and a proxy that is given all of it ([`proxy`]).

pub mod plane;
pub mod proxy;

mod results;
mod samples;
pub(crate) mod watch;

pub use results::{Column, Found, Results};
