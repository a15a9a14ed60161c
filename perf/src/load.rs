//! The traffic that overhead, soak and peers make: clients and servers on threads of this process, on loopback.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::stopwatch::{Quantiles, Stopwatch};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    TcpRr,
    TcpCrr,
    TcpBulk,
    UdpRr,
    UdpStream,
}

impl Workload {
    /// Short connections last: the agent goes on reporting them for seconds, which is not to be counted elsewhere.
    pub(crate) const ALL: [Self; 5] = [Self::TcpRr, Self::TcpBulk, Self::UdpRr, Self::UdpStream, Self::TcpCrr];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TcpRr => "TCP_RR, 1 byte each way",
            Self::TcpCrr => "TCP_CRR, connect, 1 byte each way, close",
            Self::TcpBulk => "TCP bulk, 64 KiB writes",
            Self::UdpRr => "UDP_RR, 1 byte each way",
            Self::UdpStream => "UDP stream, 64 bytes",
        }
    }

    /// Whether the client waits for an answer to each request.
    pub(crate) fn has_round_trips(self) -> bool {
        matches!(self, Self::TcpRr | Self::TcpCrr | Self::UdpRr)
    }
}

/// One run: operations a second, CPU time of both sides per operation, and how long single round trips took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) operations: u64,
    pub(crate) rate: f64,
    pub(crate) cpu_ns_per_op: f64,
    /// If the traffic has any.
    pub(crate) round_trips_us: Option<Quantiles>,
}

/// One run, and how far the CPUs were apart right before.
pub(crate) struct Measured {
    pub(crate) run: Run,
    pub(crate) line_ns: f64,
}

/// What a client did.
struct Talked {
    operations: u64,
    round_trips: Option<Stopwatch>,
}

/// Servers of all kinds of traffic, each on a thread, and their addresses.
pub(crate) struct Server {
    pub(crate) tcp: SocketAddr,
    /// Number of the next address for short connections.
    next: AtomicU32,
    sink: SocketAddr,
    udp: SocketAddr,
    /// Datagrams that arrived at the sink.
    udp_sink: (SocketAddr, Arc<AtomicU64>),
}

fn local() -> (Ipv4Addr, u16) {
    (Ipv4Addr::LOCALHOST, 0)
}

impl Server {
    pub(crate) fn start() -> Result<Self> {
        let (echo, sink) = (TcpListener::bind(local())?, TcpListener::bind(local())?);
        let (udp, udp_sink) = (UdpSocket::bind(local())?, UdpSocket::bind(local())?);
        let arrived = Arc::new(AtomicU64::new(0));
        let server = Self {
            tcp: echo.local_addr()?,
            next: AtomicU32::new(0),
            sink: sink.local_addr()?,
            udp: udp.local_addr()?,
            udp_sink: (udp_sink.local_addr()?, Arc::clone(&arrived)),
        };
        spawn(move || echo_until(&echo, &AtomicBool::new(false)))?;
        spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            for mut stream in sink.incoming().flatten() {
                while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
            }
        })?;
        spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((n, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..n], peer);
            }
        })?;
        spawn(move || {
            let mut buffer = [0; 64];
            while udp_sink.recv(&mut buffer).is_ok() {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(server)
    }

    /// The same, with short connections to an address of their own: ports that the last run has left in TIME_WAIT would
    /// be in the way, the more the shorter ago that was.
    pub(crate) fn run_afresh(&self, workload: Workload, seconds: f64) -> Result<Run> {
        if workload != Workload::TcpCrr {
            return self.run(workload, seconds);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::new(127, 3, (number / 250) as u8, (number % 250) as u8 + 1);
        let listener = TcpListener::bind((address, 0)).context("cannot listen")?;
        let (tcp, over) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let ended = Arc::clone(&over);
        let echo = spawn(move || echo_until(&listener, &ended))?;
        let run = self.run_with(tcp, workload, seconds);
        over.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(tcp));
        let _ = echo.join();
        run
    }

    /// Talks for some seconds.
    pub(crate) fn run(&self, workload: Workload, seconds: f64) -> Result<Run> {
        self.run_with(self.tcp, workload, seconds)
    }

    fn run_with(&self, tcp: SocketAddr, workload: Workload, seconds: f64) -> Result<Run> {
        let stop = Arc::new(AtomicBool::new(false));
        let (before, began) = (own_cpu_ns()?, Instant::now());
        let talking = self.talk(tcp, workload, &stop)?;
        thread::sleep(Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
        let talked = talking.join().map_err(|_| anyhow::anyhow!("a client died"))??;
        let elapsed = began.elapsed().as_secs_f64();
        let cpu_ns = (own_cpu_ns()? - before) as f64;
        let operations = talked.operations;
        Ok(Run {
            operations,
            rate: operations as f64 / elapsed,
            cpu_ns_per_op: cpu_ns / operations.max(1) as f64,
            round_trips_us: talked.round_trips.and_then(|laps| laps.quantiles()),
        })
    }

    fn talk(&self, tcp: SocketAddr, workload: Workload, stop: &Arc<AtomicBool>) -> Result<JoinHandle<Result<Talked>>> {
        let stop = Arc::clone(stop);
        let (sink, udp, (udp_sink, arrived)) = (self.sink, self.udp, self.udp_sink.clone());
        Ok(thread::Builder::new().name("perf-client".into()).spawn(move || {
            pin(0);
            let going = || !stop.load(Ordering::Relaxed);
            match workload {
                Workload::TcpRr => tcp_rr(tcp, going),
                Workload::TcpCrr => round_trips(going, || tcp_once(&mut TcpStream::connect(tcp)?)),
                Workload::TcpBulk => tcp_bulk(sink, going),
                Workload::UdpRr => udp_rr(udp, going),
                Workload::UdpStream => udp_stream(udp_sink, &arrived, going),
            }
        })?)
    }
}

/// One after the other, each timed.
fn round_trips(going: impl Fn() -> bool, mut once: impl FnMut() -> io::Result<()>) -> Result<Talked> {
    let mut stopwatch = Stopwatch::start()?;
    while going() {
        once()?;
        stopwatch.lap();
    }
    Ok(Talked { operations: stopwatch.laps(), round_trips: Some(stopwatch) })
}

fn tcp_once(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[7])?;
    stream.read_exact(&mut [0])
}

fn tcp_rr(server: SocketAddr, going: impl Fn() -> bool) -> Result<Talked> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    round_trips(going, || tcp_once(&mut stream))
}

fn tcp_bulk(sink: SocketAddr, going: impl Fn() -> bool) -> Result<Talked> {
    let mut stream = TcpStream::connect(sink)?;
    let (block, mut operations) = (vec![7; 1 << 16], 0);
    while going() {
        stream.write_all(&block)?;
        operations += 1;
    }
    Ok(Talked { operations, round_trips: None })
}

fn udp_rr(server: SocketAddr, going: impl Fn() -> bool) -> Result<Talked> {
    let socket = UdpSocket::bind(local())?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(server)?;
    round_trips(going, || {
        socket.send(&[7])?;
        socket.recv(&mut [0]).map(|_| ())
    })
}

fn udp_stream(sink: SocketAddr, arrived: &AtomicU64, going: impl Fn() -> bool) -> Result<Talked> {
    let socket = UdpSocket::bind(local())?;
    socket.connect(sink)?;
    let before = arrived.load(Ordering::Relaxed);
    while going() {
        socket.send(&[7; 64])?;
    }
    // What was sent and dropped is no operation.
    Ok(Talked { operations: arrived.load(Ordering::Relaxed) - before, round_trips: None })
}

/// Sends back what comes, a byte at a time, one connection after another.
fn echo_until(listener: &TcpListener, over: &AtomicBool) {
    for mut stream in listener.incoming().flatten() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let _ = stream.set_nodelay(true);
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name("perf-server".into()).spawn(|| {
        pin(1);
        work();
    })?;
    Ok(thread)
}

/// Keeps the calling thread on the n-th CPU, if there is one.
pub(crate) fn pin(number: usize) {
    if let Some(core) = core_affinity::get_core_ids().unwrap_or_default().get(number) {
        core_affinity::set_for_current(*core);
    }
}

/// CPU time of this process, all threads, in nanoseconds, from the scheduler: exact where clock ticks are not.
fn own_cpu_ns() -> Result<u64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).context("no CPU time")
}
