//! Figures for Prometheus. Control counts by label set while it makes its reports, and hands out a copy when it is asked;
//! a thread of its own makes text of that and serves it over HTTP.

pub mod accounts;
mod clients;
mod declared;
mod encode;
pub mod far_ends;
mod health;
mod http;
pub mod labels;
#[cfg(test)]
mod pages;
mod process;
pub mod resolving;
pub mod series;
pub mod server;
pub mod snapshot;
mod tables;
mod waiting;

/// Reads the head of a request, as far as it is there, and chooses the format that it wants. Returns whether it is whole.
///
/// # Errors
/// What is answered if it is none.
pub(crate) fn read_head(head: &[u8]) -> Result<bool, String> {
    let request = http::parse(head).map_err(|response| response.body.to_string())?;
    Ok(request.map(|request| encode::Format::wanted(&request.accept)).is_some())
}
