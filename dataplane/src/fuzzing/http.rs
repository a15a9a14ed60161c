//! What clients send to the port that serves metrics.

/// The head of a request, whole or not. What is answered to one that is not understood is one short line.
pub fn http_request(data: &[u8]) {
    if let Err(why) = crate::metrics::read_head(data) {
        assert!(why.len() < 1000 && why.trim_end().lines().count() == 1, "{why:?}");
    }
}
