//! The walk over all sockets looks at connections while other CPUs work on them: whatever the moment, it must tell the
//! same of what never changes in a connection's life.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sockeye_bpf::kernel::{Kernel, KernelOptions};
use sockeye_bpf::records::{FlowRecord, Kind};
use sockeye_bpf::scan::Scanned;
use sockeye_tests::slowness;

/// States in which the peer's initial sequence number is not known yet.
const SYN_STATES: [u8; 2] = [2, 3];

fn echo(mut stream: TcpStream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("a connection");
    stream.set_nodelay(true).expect("an open socket");
    stream
}

/// Asks for an echo so many times, or until `stop`.
fn ask(mut stream: &TcpStream, times: usize, stop: &AtomicBool) {
    let mut byte = [7];
    for _ in 0..times {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        stream.write_all(&byte).expect("sent");
        stream.read_exact(&mut byte).expect("an echo");
    }
}

/// What never changes: both ends (local, remote), and the sequence numbers at which the connection began, of the peer where
/// it is known.
#[derive(Debug, Clone, Copy)]
struct Names {
    ends: [(IpAddr, u16); 2],
    seq_local: u32,
    seq_remote: Option<u32>,
}

impl Names {
    fn of(record: &FlowRecord) -> Names {
        let addr = |bytes| Ipv6Addr::from(bytes).to_canonical();
        Names {
            ends: [(addr(record.local_addr), record.local_port), (addr(record.remote_addr), record.remote_port)],
            seq_local: record.seq_local,
            seq_remote: (!SYN_STATES.contains(&record.state)).then_some(record.seq_remote),
        }
    }

    /// The same connection, as far as both tell.
    fn agree(&self, other: &Names) -> bool {
        let peers = self.seq_remote.zip(other.seq_remote);
        self.ends == other.ends && self.seq_local == other.seq_local && peers.is_none_or(|(a, b)| a == b)
    }
}

/// What walks have said of the connections of one port.
#[derive(Default)]
struct Walks {
    count: u32,
    /// By socket cookie.
    seen: HashMap<u64, Names>,
    /// Connections that had another name before, and walks that failed.
    wrong: Vec<String>,
}

impl Walks {
    fn walk(&mut self, kernel: &mut Kernel, port: u16) {
        self.count += 1;
        let walked = kernel.scanner().sockets(false, |scanned| {
            let Scanned::Socket(record) = scanned else { return };
            if record.kind == Kind::Scan as u8 && [record.local_port, record.remote_port].contains(&port) {
                self.compare(record);
            }
        });
        // No panic, which would leave the other threads at work.
        if let Err(err) = walked {
            self.wrong.push(format!("{err}: {err:?}"));
        }
    }

    fn compare(&mut self, record: &FlowRecord) {
        let now = Names::of(record);
        let before = self.seen.entry(record.cookie).or_insert(now);
        if !before.agree(&now) {
            self.wrong.push(format!("state {}: {before:?}, and now {now:?}", record.state));
        }
        before.seq_remote = before.seq_remote.or(now.seq_remote);
    }
}

#[test]
fn a_connection_has_the_same_name_in_every_walk() {
    let (mut kernel, _rings) = Kernel::start(&KernelOptions::default()).expect("the kernel side");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = listener.local_addr().expect("an address");
    let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut walks = Walks::default();
    thread::scope(|servers| {
        servers.spawn(|| {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let stream = stream.expect("a connection");
                servers.spawn(|| echo(stream));
            }
        });
        thread::scope(|clients| {
            // Short ones, for the moments of a handshake, and long ones that are always busy.
            clients.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    ask(&connect(server), 1, &stop);
                }
            });
            (0..2).for_each(|_| {
                clients.spawn(|| ask(&connect(server), usize::MAX, &stop));
            });
            let until = Instant::now() + Duration::from_secs(10) * slowness();
            while Instant::now() < until && walks.wrong.is_empty() {
                walks.walk(&mut kernel, server.port());
            }
            stop.store(true, Ordering::Relaxed);
        });
        over.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(server)); // wakes the server
    });
    let (count, sockets) = (walks.count, walks.seen.len());
    assert!(walks.wrong.is_empty(), "after {count} walks and {sockets} sockets: {:?}", walks.wrong);
    assert!(count > 100 && sockets > 100, "{count} walks, {sockets} sockets");
}
