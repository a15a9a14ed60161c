//! What the far end of a connection is called, read from what a client itself says at its beginning. All of it is
//! hostile input: whatever is not certain is none.

pub mod dns;
pub mod hosts;
pub mod http;
pub mod quic;
pub mod table;
pub mod tls;
