//! Plain words without state: what a flow is, what a round-trip time is, what time it is, what text is safe.

pub mod clock;
pub mod end;
pub mod flow;
pub mod history;
pub mod rate;
pub mod rtt;
pub mod text;
