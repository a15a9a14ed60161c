//! `perf accuracy`: flows of random size and kind, made by this program with counters of its own, compared with what the
//! running agent shows. Flows that are still open are also compared with what `ss` reads from the kernel. Each round has one
//! flow of each kind in `uncommon.rs`, too, and in the end there is the crowd of names of `crowd.rs`.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use sockeye_ctl::Client;
use sockeye_ctl::protocol::{FlowsArguments, Request};

use crate::agent::Agents;
use crate::crowd;
use crate::table::{Report, Table, progress};
use crate::uncommon::{Case, Lab};

/// Flows of one round: few enough that the first of them is still shown when the last one is over.
const ROUND: u64 = 100;
/// Largest transfer in one direction, bytes.
const BYTES_MAX: u64 = 1 << 20;
/// Connections of each client that asks for names.
const NAMES: u64 = 50;
const QUICK_NAMES: u64 = 10;
/// Time for the last records and the UDP counters to arrive.
const SETTLE: Duration = Duration::from_millis(2500);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Flows in all.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    flows: u64,
    /// The same seed makes the same flows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// 100 flows.
    #[arg(long)]
    quick: bool,
}

/// splitmix64: small, seeded, the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Below a bound.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A size: all orders of magnitude are as likely, and nothing at all is, too.
    pub(crate) fn size(&mut self) -> u64 {
        let bits = self.below(u64::from(BYTES_MAX.ilog2()) + 1);
        self.below((1 << bits) + 1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Closed in order.
    Tcp,
    /// Open while it is compared.
    TcpOpen,
    /// Datagrams, each echoed.
    Udp,
}

/// What was done, by our own count.
struct Truth {
    kind: Kind,
    sent: u64,
    received: u64,
    datagrams: u64,
    /// Keeps it open.
    _stream: Option<TcpStream>,
    _socket: Option<UdpSocket>,
}

/// What differs.
#[derive(Default)]
struct Findings {
    compared: HashMap<&'static str, u64>,
    deviations: HashMap<&'static str, u64>,
    lines: Vec<String>,
}

impl Findings {
    fn compare(&mut self, what: &'static str, flow: &str, truth: &Value, shown: Option<&Value>) {
        *self.compared.entry(what).or_default() += 1;
        if shown != Some(truth) {
            *self.deviations.entry(what).or_default() += 1;
            let shown = shown.map_or_else(|| "nothing".into(), Value::to_string);
            self.lines.push(format!("{flow}: {what} is {shown}, and was {truth}"));
        }
    }
}

pub(crate) fn run(options: &Options, agents: &Agents) -> Result<Report> {
    let agent = agents.running_or_start(&[])?;
    let flows = if options.quick { ROUND } else { options.flows };
    let mut random = Random::new(options.seed);
    let mut findings = Findings::default();
    let (tcp_server, udp_server) = (tcp_server()?, udp_server()?);
    let lab = Lab::new().context("the networks with address translation cannot be made")?;
    let bar = progress("accuracy, flows", flows);
    let mut left = flows;
    while left > 0 {
        let count = left.min(ROUND);
        round(count, &mut random, [tcp_server, udp_server], &lab, agent.client(), &mut findings)?;
        left -= count;
        bar.inc(count);
    }
    bar.finish_and_clear();
    let mut table = Table::new(&["figure", "compared", "deviations"]);
    let mut kinds: Vec<_> = findings.compared.iter().collect();
    kinds.sort();
    for (what, compared) in kinds {
        table.push(vec![json!(what), json!(compared), json!(findings.deviations.get(what).unwrap_or(&0))]);
    }
    let mut notes = Vec::new();
    let mut more = Vec::new();
    let names = if options.quick { QUICK_NAMES } else { NAMES };
    match crowd::compare(names, options.seed, agent.client()).context("names of far ends")? {
        Some((table, mut lines)) => {
            more.push(("names of far ends, of 200 that one address has", table));
            findings.lines.append(&mut lines);
        }
        None => notes.push("The agent reads no DNS (--no-dns), so names were not compared.".into()),
    }
    notes.push(format!("{flows} flows, seed {}. Each deviation:", options.seed));
    let none = findings.lines.is_empty();
    notes.append(&mut findings.lines);
    if none {
        notes.push("none".into());
    }
    let report = Report { title: "accuracy", table, more, notes };
    if none { Ok(report) } else { bail!("the agent's figures differ from ours:\n{}", report.text().trim_end()) }
}

/// Makes some flows, asks the agent, compares.
fn round(
    count: u64,
    random: &mut Random,
    [tcp, udp]: [SocketAddr; 2],
    lab: &Lab,
    client: &Client,
    findings: &mut Findings,
) -> Result<()> {
    let mut truths = HashMap::new();
    for _ in 0..count {
        let (local, truth) = match random.below(4) {
            0 => talk_udp(udp, random)?,
            1 => talk_tcp(tcp, random, true)?,
            _ => talk_tcp(tcp, random, false)?,
        };
        truths.insert((local, truth.kind == Kind::Udp), truth);
    }
    let cases = lab.cases(random)?;
    thread::sleep(SETTLE);
    for case in &cases {
        compare_case(case, client, findings)?;
    }
    let kernel = Sockets::read(tcp)?;
    let mut shown = HashMap::new();
    for port in [tcp.port(), udp.port()] {
        let arguments = FlowsArguments { port: vec![port], limit: usize::MAX, ..FlowsArguments::default() };
        let answer = client.ask(&Request::Flows(arguments.into()))?;
        for row in answer.rows("flows") {
            // The round before had this port, and its flow is still there.
            if port == udp.port() && row.get("state").is_some_and(|state| state == "closed") {
                continue;
            }
            let initiator = row.get("initiator").and_then(Value::as_str).and_then(|text| text.parse().ok());
            shown.insert((initiator.context("an initiator without an address")?, port), row);
        }
    }
    for ((local, is_udp), truth) in &truths {
        let port = if *is_udp { udp.port() } else { tcp.port() };
        compare(*local, truth, shown.get(&(*local, port)), &kernel, findings);
    }
    Ok(())
}

/// A flow of an uncommon kind: it is there once, and as it has to be.
fn compare_case(case: &Case, client: &Client, findings: &mut Findings) -> Result<()> {
    let name = format!("{} {}", case.name, case.initiator);
    let arguments = FlowsArguments { port: vec![case.port], limit: usize::MAX, ..FlowsArguments::default() };
    let answer = client.ask(&Request::Flows(arguments.into()))?;
    let rows = answer.rows("flows");
    let ours = json!(case.initiator.to_string());
    let is_it = |row: &&Map<String, Value>| row["initiator"] == ours && row["protocol"] == case.protocol;
    let found: Vec<_> = rows.iter().filter(is_it).collect();
    findings.compare("flow", &name, &json!(1), Some(&json!(found.len())));
    for (what, column, value) in case.expect.iter().filter(|_| found.len() == 1) {
        findings.compare(what, &name, value, found[0].get(*column));
    }
    // Its other end must not be there as a flow of its own.
    let reversed = rows.iter().filter(|row| row.get("responder") == Some(&ours)).count();
    findings.compare("no half of a flow", &name, &json!(0), Some(&json!(reversed)));
    Ok(())
}

fn compare(
    local: SocketAddr,
    truth: &Truth,
    shown: Option<&Map<String, Value>>,
    kernel: &Sockets,
    findings: &mut Findings,
) {
    let name = format!("{:?} {local}", truth.kind);
    let Some(row) = shown else {
        findings.compare("flow", &name, &json!("there"), None);
        return;
    };
    findings.compare("flow", &name, &json!("there"), Some(&json!("there")));
    let own = json!(std::process::id());
    let mut expect = vec![
        ("bytes sent", "sent", json!(truth.sent)),
        ("bytes received", "received", json!(truth.received)),
        ("owner of the initiator", "initiator_pid", own.clone()),
        ("owner of the responder", "responder_pid", own),
    ];
    match truth.kind {
        Kind::Udp => {
            expect.push(("datagrams sent", "packets_sent", json!(truth.datagrams)));
            expect.push(("datagrams received", "packets_received", json!(truth.datagrams)));
        }
        Kind::Tcp => expect.push(("state", "state", json!("closed"))),
        Kind::TcpOpen => {
            expect.push(("state", "state", json!("open")));
            // The kernel by another way: netlink, and not our programs.
            match kernel.0.get(&local) {
                Some(ss) => {
                    expect.push(("segments sent (ss)", "packets_sent", json!(ss.segs_out)));
                    expect.push(("round-trip time (ss)", "rtt", json!(ss.rtt_us)));
                    expect.push(("its deviation (ss)", "rtt_var", json!(ss.rttvar_us)));
                }
                None => findings.compare("in ss", &name, &json!("there"), None),
            }
        }
    }
    for (what, column, value) in expect {
        findings.compare(what, &name, &value, row.get(column));
    }
}

/// Serves for ever: 16 bytes of header say how much comes and how much is wanted.
fn tcp_server() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve_one(stream));
        }
    });
    Ok(address)
}

fn serve_one(mut stream: TcpStream) -> Option<()> {
    let mut header = [0; 16];
    stream.read_exact(&mut header).ok()?;
    let (comes, wanted) = header.split_at(8);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n: u64, byte| n << 8 | u64::from(*byte));
    std::io::copy(&mut (&stream).take(number(comes)), &mut std::io::sink()).ok()?;
    std::io::copy(&mut std::io::repeat(7).take(number(wanted)), &mut stream).ok()?;
    // Until the client closes.
    let _ = stream.read(&mut [0]);
    Some(())
}

fn talk_tcp(server: SocketAddr, random: &mut Random, stays: bool) -> Result<(SocketAddr, Truth)> {
    let (sends, wants) = (random.size(), random.size());
    let mut stream = TcpStream::connect(server).context("cannot connect")?;
    let local = stream.local_addr()?;
    stream.write_all(&[sends.to_be_bytes(), wants.to_be_bytes()].concat())?;
    std::io::copy(&mut std::io::repeat(7).take(sends), &mut stream)?;
    let received = std::io::copy(&mut (&stream).take(wants), &mut std::io::sink())?;
    if !stays {
        stream.shutdown(Shutdown::Write)?;
        let _ = stream.read(&mut [0])?;
    }
    let kind = if stays { Kind::TcpOpen } else { Kind::Tcp };
    let stream = stays.then_some(stream);
    Ok((local, Truth { kind, sent: 16 + sends, received, datagrams: 0, _stream: stream, _socket: None }))
}

fn udp_server() -> Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind")?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((n, peer)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..n], peer);
        }
    });
    Ok(address)
}

fn talk_udp(server: SocketAddr, random: &mut Random) -> Result<(SocketAddr, Truth)> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(server)?;
    let datagrams = random.below(30) + 1;
    let mut bytes = 0;
    for _ in 0..datagrams {
        let size = random.below(1400) as usize;
        socket.send(&[7; 1400][..size])?;
        bytes += socket.recv(&mut [0; 2048]).context("an echo is missing")? as u64;
    }
    let local = socket.local_addr()?;
    Ok((
        local,
        Truth { kind: Kind::Udp, sent: bytes, received: bytes, datagrams, _stream: None, _socket: Some(socket) },
    ))
}

/// What `ss -ti` says of connections to a server, by their local address.
pub(crate) struct Sockets(HashMap<SocketAddr, Socket>);

struct Socket {
    segs_out: u64,
    rtt_us: u64,
    rttvar_us: u64,
}

impl Sockets {
    pub(crate) fn read(server: SocketAddr) -> Result<Self> {
        let began = Instant::now();
        let output =
            Command::new("ss").args(["-tinOH", "dst", &server.to_string()]).output().context("ss (iproute2)")?;
        let mut sockets = HashMap::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some(local) = line.split_whitespace().nth(3).and_then(|text| text.parse().ok()) else { continue };
            if let Some(socket) = Socket::parse(line) {
                sockets.insert(local, socket);
            }
        }
        anyhow::ensure!(began.elapsed() < Duration::from_secs(5), "ss is too slow for a fair comparison");
        Ok(Self(sockets))
    }

    /// Smoothed.
    pub(crate) fn round_trip_us(&self, local: SocketAddr) -> Option<u64> {
        self.0.get(&local).map(|socket| socket.rtt_us)
    }
}

impl Socket {
    /// `… rtt:0.035/0.012 … segs_out:7 …`; milliseconds with microseconds after the point.
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
        let (rtt, rttvar) = field("rtt:")?.split_once('/')?;
        let us = |ms: &str| ms.parse::<f64>().ok().map(|ms| (ms * 1000.0).round() as u64);
        Some(Self { segs_out: field("segs_out:")?.parse().ok()?, rtt_us: us(rtt)?, rttvar_us: us(rttvar)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_of_ss() {
        let line =
            "ESTAB 0 0 127.0.0.1:1 127.0.0.1:2 cubic wscale:7,7 rto:201 rtt:0.035/0.012 mss:32768 segs_out:7 segs_in:5";
        let socket = Socket::parse(line).expect("a socket");
        assert_eq!((socket.segs_out, socket.rtt_us, socket.rttvar_us), (7, 35, 12));
    }

    #[test]
    fn the_same_seed_makes_the_same_sizes() {
        let sizes = |seed| (0..50).map(|_| Random(seed).size()).collect::<Vec<_>>();
        assert_eq!(sizes(3), sizes(3));
        let mut random = Random(9);
        let sizes: Vec<u64> = (0..1000).map(|_| random.size()).collect();
        assert!(
            sizes.contains(&0) && sizes.iter().any(|s| *s > BYTES_MAX / 2) && sizes.iter().all(|s| *s <= BYTES_MAX)
        );
    }
}
