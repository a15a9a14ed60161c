//! ZMQ collectors: one that notes when it heard of which flow, and one that throws everything away.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::tether::{Tethered, until_input_ends};

/// When the first record of a flow came, by the address of its initiator.
pub(crate) type Arrived = HashMap<SocketAddr, Instant>;

/// A socket that hears everything, and what `sockeye --zmq` connects to.
fn subscriber() -> Result<(zmq::Socket, String)> {
    let socket = zmq::Context::new().socket(zmq::SUB).context("cannot make a ZMQ socket")?;
    socket.set_subscribe(b"")?;
    socket.set_rcvhwm(0)?;
    socket.set_rcvtimeo(100)?;
    socket.bind("tcp://127.0.0.1:*").context("cannot listen for ZMQ")?;
    let endpoint = socket.get_last_endpoint()?.map_err(|_| anyhow::anyhow!("no endpoint"))?;
    Ok((socket, format!("{endpoint}c")))
}

/// A collector in a process of its own, so that its CPU time is nobody's. It ends with this.
pub(crate) struct Sink {
    pub(crate) endpoint: String,
    _process: Tethered,
}

impl Sink {
    pub(crate) fn start() -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("sink")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the collector")?;
        let mut endpoint = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut endpoint)?;
        Ok(Self { endpoint: endpoint.trim().to_owned(), _process: Tethered(process) })
    }
}

/// The other side: throws away what it hears, until its input ends.
pub(crate) fn sink() -> Result<()> {
    let (socket, endpoint) = subscriber()?;
    println!("{endpoint}");
    let over = until_input_ends();
    let mut message = zmq::Message::new();
    while !over.load(Ordering::Relaxed) {
        let _ = socket.recv(&mut message, 0);
    }
    Ok(())
}

/// Receives on a thread of its own. Messages are only noted there, and read when all is over: the collector must not
/// take the CPU from what is measured.
pub(crate) struct Collector {
    endpoint: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, Vec<u8>)>>,
}

impl Collector {
    pub(crate) fn bind() -> Result<Self> {
        let (socket, endpoint) = subscriber()?;
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
        self.endpoint.clone()
    }

    /// Stops, and reads what came.
    pub(crate) fn finish(self) -> Result<Arrived> {
        self.stop.store(true, Ordering::Relaxed);
        let messages = self.thread.join().map_err(|_| anyhow::anyhow!("the collector died"))?;
        let mut arrived = Arrived::new();
        for (at, payload) in &messages {
            for initiator in initiators(payload).context("a message that is no TLV")? {
                arrived.entry(initiator).or_insert(*at);
            }
        }
        Ok(arrived)
    }
}

/// Initiators of the flows in a message of nDPI's TLV: two bytes, then items of a type byte, a key and a value; a byte 1
/// ends each record. `None` if it is something else.
fn initiators(payload: &[u8]) -> Option<Vec<SocketAddr>> {
    const TEXT: u8 = 11;
    const PORT: u64 = 7;
    const ADDRESS: u64 = 8;
    let (mut found, mut rest) = (Vec::new(), payload.get(2..)?);
    let (mut port, mut address) = (None, None);
    while let Some((&kind, after)) = rest.split_first() {
        rest = after;
        if kind == 1 {
            found.extend(address.take().zip(port.take()).map(|(ip, port)| SocketAddr::new(ip, port)));
            continue;
        }
        // Rows of the flow page have text for a key.
        let (key, after) = match kind >> 4 {
            TEXT => (0, rest.get(text_len(rest)?..)?),
            width => number(rest, width)?,
        };
        let value_len = match kind & 15 {
            TEXT => text_len(after)?,
            10 => 4,
            width => 1 << (width.checked_sub(2)?.min(3)),
        };
        let (value, after) = after.split_at_checked(value_len)?;
        match key {
            PORT => port = u16::try_from(number(value, kind & 15)?.0).ok(),
            ADDRESS => address = std::str::from_utf8(value.get(2..)?).ok()?.parse::<IpAddr>().ok(),
            _ => {}
        }
        rest = after;
    }
    Some(found)
}

/// Bytes of a text, its two of length included.
fn text_len(bytes: &[u8]) -> Option<usize> {
    Some(usize::try_from(number(bytes, 3)?.0).ok()? + 2)
}

/// A big-endian number of 1, 2, 4 or 8 bytes (types 2 to 5), and what follows.
fn number(bytes: &[u8], kind: u8) -> Option<(u64, &[u8])> {
    let (digits, rest) = bytes.split_at_checked(1 << kind.checked_sub(2)?.min(3))?;
    Some((digits.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_port_and_address_of_each_record() {
        let record = [0x2b, 8, 0, 9, b'1', b'2', b'7', b'.', b'1', b'.', b'0', b'.', b'1', 0x23, 7, 0x9c, 0x40, 1];
        let message = [&[1, 1][..], &record, &[0x22, 4, 6, 0xbb, 0, 1, b'k', 0, 2, b'v', b'w'], &record].concat();
        assert_eq!(initiators(&message), Some(vec!["127.1.0.1:40000".parse().expect("an address"); 2]));
        assert_eq!(initiators(&message[..9]), None);
    }
}
