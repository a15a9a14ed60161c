//! What `ctl` is told: tables that explain themselves.

mod flows;
mod owners;
mod stats;

pub use flows::flows;
pub(crate) use owners::{containers, pods, ports, processes, rtt};
pub(crate) use stats::stats;

fn round2(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}
