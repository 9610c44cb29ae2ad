//! The certificate authority, asked as agents and people ask it.

mod client;
mod nodes;
mod review;
mod tokens;
mod trust;
