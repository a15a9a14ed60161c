//! The control socket, and one handler for each query, which reads what it needs and answers with tables
//! that explain themselves.

pub(crate) mod dns;
pub mod events;
mod filter;
mod flows;
mod groups;
mod losses;
mod order;
pub(crate) mod overview;
pub(crate) mod owners;
pub mod pass;
pub mod peers;
pub(crate) mod ports;
mod privileges;
pub(crate) mod questions;
pub(crate) mod rtt;
pub mod scrape;
pub mod server;
pub(crate) mod stats;
mod subscribers;
mod text;
mod who;
pub(crate) mod workloads;

use sockeye_ctl::{Table, rows};

rows! {
    /// How many match, and how many are shown.
    struct Summary: "summary" {
        /// all that match
        matching: Count = usize,
        /// those in this answer
        shown: Count = usize,
    }
}

/// How many rows there are, and how many of them are in the answer.
fn summary(matching: usize, shown: usize) -> Table {
    Table::of([Summary { matching, shown }])
}

fn round2(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}
