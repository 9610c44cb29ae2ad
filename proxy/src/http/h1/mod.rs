//! HTTP/1.0 and 1.1 (RFC 9112): our own codec over httparse. docs/decisions/0002 says why.

pub mod client;
pub mod conn;
pub mod decode;
pub mod encode;
pub mod framing;
pub mod parse;
pub mod server;
