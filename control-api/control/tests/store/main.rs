//! What every store must do, run against each of them; and what only one of them can suffer.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "../common/etcd.rs"]
mod common;
mod conformance;
mod etcd;
mod redb;
