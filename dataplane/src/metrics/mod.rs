//! Figures for Prometheus. Control counts by label set while it makes its reports, and hands out a copy when it is asked;
//! a thread of its own makes text of that and serves it over HTTP.

pub mod accounts;
mod clients;
mod declared;
mod encode;
mod health;
mod http;
#[cfg(test)]
mod pages;
mod process;
pub mod series;
pub mod server;
pub mod snapshot;
mod tables;
