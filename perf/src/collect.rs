//! A ZMQ collector that notes when it heard of which flow.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// When the first record of a flow came, by the address of its initiator.
pub(crate) type Arrived = HashMap<SocketAddr, Instant>;

/// Receives on a thread of its own. Messages are only noted there, and read when all is over: the collector must not
/// take the CPU from what is measured.
pub(crate) struct Collector {
    endpoint: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, Vec<u8>)>>,
}

impl Collector {
    pub(crate) fn bind() -> Result<Self> {
        let socket = zmq::Context::new().socket(zmq::SUB).context("cannot make a ZMQ socket")?;
        socket.set_subscribe(b"")?;
        socket.set_rcvhwm(0)?;
        socket.set_rcvtimeo(100)?;
        socket.bind("tcp://127.0.0.1:*").context("cannot listen for ZMQ")?;
        let endpoint = socket.get_last_endpoint()?.map_err(|_| anyhow::anyhow!("no endpoint"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = thread::Builder::new().name("perf-collector".into()).spawn(move || {
            let mut messages = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                if let Ok(mut parts) = socket.recv_multipart(0)
                    && parts.len() == 2
                    && parts[0].starts_with(b"flow\0")
                {
                    messages.push((Instant::now(), parts.swap_remove(1)));
                }
            }
            messages
        })?;
        Ok(Self { endpoint, stop, thread })
    }

    /// For `sockeye --zmq`: it connects.
    pub(crate) fn endpoint(&self) -> String {
        format!("{}c", self.endpoint)
    }

    /// Stops, and reads what came.
    pub(crate) fn finish(self) -> Result<Arrived> {
        self.stop.store(true, Ordering::Relaxed);
        let messages = self.thread.join().map_err(|_| anyhow::anyhow!("the collector died"))?;
        let mut arrived = Arrived::new();
        for (at, payload) in &messages {
            let message: Value = serde_json::from_slice(payload).context("a message that is no JSON")?;
            let flows = message.as_array().map_or_else(|| std::slice::from_ref(&message), Vec::as_slice);
            for initiator in flows.iter().filter_map(initiator) {
                arrived.entry(initiator).or_insert(*at);
            }
        }
        Ok(arrived)
    }
}

fn initiator(flow: &Value) -> Option<SocketAddr> {
    let addr: IpAddr = flow.get("IPV4_SRC_ADDR")?.as_str()?.parse().ok()?;
    Some(SocketAddr::new(addr, u16::try_from(flow.get("L4_SRC_PORT")?.as_u64()?).ok()?))
}
