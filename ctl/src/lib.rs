//! The control protocol of sockeye, and a client for it.
//!
//! One JSON object per line, one line each way, over a Unix socket:
//!
//! ```text
//! -> {"version":2,"request":"stats","arguments":{}}
//! <- {"version":2,"error":null,"answer":{"tables":[...]}}
//! ```
//!
//! Answers describe themselves: each column of a [`Table`] carries its name, unit and meaning, so that a client can
//! print what it has never heard of.

pub mod arguments;
pub mod client;
pub mod declare;
pub mod exit;
pub mod grid;
pub mod human;
pub mod order;
pub mod pages;
pub mod protocol;
pub mod render;
pub mod subscription;
mod tables;

pub use client::{Client, ClientError};
pub use protocol::{Answer, Column, FlowsArguments, Request, RequestError, Response, Table, Unit, VERSION};

/// Where the agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/sockeye/ctl.sock";
