//! Routing: pure matching and rewriting. No clock, no random, no I/O: what varies is passed in.
//!
//! - [`table`]: a route configuration: domains, virtual hosts, the index over their routes.
//! - [`matcher`]: what a route asks of a request.
//! - [`action`]: what is done with a request that matched: forward, redirect, answer directly.
//! - [`rewrite`], [`split`], [`header`]: path and host rewrites, weighted clusters, header mutations.
//! - [`re2`], [`text`]: regular expressions and string matchers, used by other policies as well.

pub mod action;
pub mod hash_policy;
pub mod header;
pub mod matcher;
pub mod re2;
pub mod rewrite;
pub mod split;
pub mod table;
pub mod text;

pub use action::{Action, DirectResponse, Redirect, Route, RouteAction};
pub use table::{Found, Query, RouteTable, VirtualHost};
