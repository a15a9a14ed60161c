//! A collector of NetFlow, for the packet probe among the peers.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

/// Counts records of `NetFlow` 5 until it is dropped.
pub(crate) struct NetFlow {
    pub(crate) port: u16,
    pub(crate) records: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl NetFlow {
    pub(crate) fn listen(server_port: u16) -> Result<Self> {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        // A probe tells of thousands of flows at once; what we drop would count against it.
        set_socket_recv_buffer_size_force(&socket, 16 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let sink = Self { port: socket.local_addr()?.port(), records: Arc::default(), stop: Arc::default() };
        let (records, stop) = (Arc::clone(&sink.records), Arc::clone(&sink.stop));
        thread::Builder::new().name("perf-netflow".into()).spawn(move || {
            let mut packet = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok(len) = socket.recv(&mut packet) {
                    records.fetch_add(records_to(&packet[..len], server_port), Ordering::Relaxed);
                }
            }
        })?;
        Ok(sink)
    }
}

impl Drop for NetFlow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// `NetFlow` 5: a header of 24 bytes, records of 48 with the destination port at 34.
fn records_to(packet: &[u8], port: u16) -> u64 {
    let records = packet.get(24..).unwrap_or_default().chunks_exact(48);
    records.filter(|record| record[34..36] == port.to_be_bytes()).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_netflow_records() {
        let mut packet = vec![0; 24 + 2 * 48];
        packet[24 + 34..24 + 36].copy_from_slice(&80u16.to_be_bytes());
        assert_eq!(records_to(&packet, 80), 1);
        assert_eq!(records_to(&packet[..10], 80), 0);
    }
}
