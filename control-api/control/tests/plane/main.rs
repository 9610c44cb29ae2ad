//! A whole control plane on free ports, asked as people and proxies ask it.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod ads;
mod ca;
#[path = "../common/etcd.rs"]
mod common;
mod documents;
mod gate;
mod hostile;
mod instances;
mod process;
mod registry;
mod replicas;
mod support;
