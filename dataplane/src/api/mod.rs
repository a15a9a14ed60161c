//! What `ctl` is told: the control socket, and one handler for each query, which reads what it needs and answers with tables
//! that explain themselves.

pub mod events;
pub mod flows;
pub(crate) mod owners;
pub mod server;
pub(crate) mod stats;

use serde_json::json;
use sockeye_ctl::protocol::{Table, Unit};

/// How many rows there are, and how many of them are in the answer.
fn summary(matching: usize, shown: usize) -> Table {
    let columns = [("matching", Unit::Count, "all that match"), ("shown", Unit::Count, "those in this answer")];
    let mut table = Table::new("summary", "How many match, and how many are shown.", &columns);
    table.push([json!(matching), json!(shown)]);
    table
}

fn round2(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}
