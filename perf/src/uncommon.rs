//! `perf accuracy`, kinds of traffic that are easily told of wrongly: translated addresses, daemons, UDP servers with a socket
//! per client, groups, servers that linger. Each with counters of its own, in network namespaces of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::accuracy::{Random, Sockets};

/// Addresses of the routed networks: a client, a router that translates, a server.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 71, 0, 2);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 71, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 72, 0, 2);
/// Where clients think that the service is.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 7, 7, 7);
/// Who a daemon becomes (`nobody` on Debian).
const DAEMON_ID: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(5);

/// One flow, and how it has to be shown.
pub(crate) struct Case {
    /// For people.
    pub(crate) name: &'static str,
    /// Of the responder, as the initiator knows it.
    pub(crate) port: u16,
    pub(crate) protocol: &'static str,
    pub(crate) initiator: SocketAddr,
    /// What, the column, and what was.
    pub(crate) expect: Vec<(&'static str, &'static str, Value)>,
    /// Sockets that stay open until it is compared.
    _kept: Vec<OwnedFd>,
}

impl Case {
    /// A flow whose ends are both of this process.
    fn own(name: &'static str, protocol: &'static str, initiator: SocketAddr, responder: SocketAddr) -> Self {
        let own = json!(std::process::id());
        let expect = vec![
            ("responder", "responder", json!(responder.to_string())),
            ("owner of the initiator", "initiator_pid", own.clone()),
            ("owner of the responder", "responder_pid", own),
        ];
        Self { name, port: responder.port(), protocol, initiator, expect, _kept: Vec::new() }
    }

    fn bytes(mut self, sent: u64, received: u64) -> Self {
        self.expect.push(("bytes sent", "sent", json!(sent)));
        self.expect.push(("bytes received", "received", json!(received)));
        self
    }

    fn with(mut self, what: &'static str, column: &'static str, value: Value) -> Self {
        self.expect.push((what, column, value));
        self
    }

    fn keep(mut self, sockets: impl IntoIterator<Item = OwnedFd>) -> Self {
        self._kept.extend(sockets);
        self
    }
}

/// The namespaces, deleted in the end.
pub(crate) struct Lab {
    names: [String; 3],
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, args: &str) -> Result<()> {
    let status =
        Command::new(program).args(args.split(' ')).status().with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} {args}: {status}");
    Ok(())
}

/// Runs something on a thread in a namespace.
pub(crate) fn within<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(format!("/run/netns/{name}"))?;
    thread::scope(|scope| {
        let there = scope.spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        there.join().map_err(|_| anyhow::anyhow!("a thread has died"))?
    })
}

/// In the router: a service behind a translated address, whose server does not see its clients. In the client's own namespace: a
/// UDP service of its neighbour in the same namespace, and one of the server.
const RULES: [(usize, &str); 2] = [
    (
        0,
        "table ip nat {
            chain output { type nat hook output priority -100;
                ip daddr 10.96.0.80 udp dport 53 dnat to 10.71.0.2:5353
                ip daddr 10.96.0.80 udp dport 54 dnat to 10.72.0.2:5354
            }
        }",
    ),
    (
        1,
        "table ip nat {
            chain prerouting { type nat hook prerouting priority -100; ip daddr 10.96.0.80 tcp dport 80 dnat to 10.72.0.2:8000; }
            chain postrouting { type nat hook postrouting priority 100; ip daddr 10.72.0.2 tcp dport 8000 masquerade random; }
        }",
    ),
];

impl Lab {
    /// Needs root, iproute2 and nftables.
    pub(crate) fn new() -> Result<Self> {
        let names = ["c", "r", "s"].map(|role| format!("seperf{}{role}", std::process::id()));
        let lab = Self { names };
        let [client, router, server] = &lab.names;
        for name in &lab.names {
            run("ip", &format!("netns add {name}"))?;
            run("ip", &format!("-n {name} link set lo up"))?;
        }
        for (inner, [from, to], number) in
            [(client, [CLIENT, ROUTER], 1), (server, [SERVER, Ipv4Addr::new(10, 72, 0, 1)], 2)]
        {
            run("ip", &format!("-n {inner} link add e0 type veth peer name e{number} netns {router}"))?;
            for (name, address, device) in [(inner, from, "e0".to_owned()), (router, to, format!("e{number}"))] {
                run("ip", &format!("-n {name} addr add {address}/24 broadcast + dev {device}"))?;
                run("ip", &format!("-n {name} link set {device} up"))?;
            }
            run("ip", &format!("-n {inner} route add default via {to}"))?;
        }
        lab.within(1, || Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
        for (number, rules) in RULES {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{}", lab.names[number])).args(["nft", "-f", "-"]);
            let mut child = command.stdin(Stdio::piped()).spawn().context("cannot run nsenter and nft (nftables)")?;
            child.stdin.take().context("no pipe")?.write_all(rules.as_bytes())?;
            ensure!(child.wait()?.success(), "nft refused the rules");
        }
        Ok(lab)
    }

    fn within<T: Send>(&self, number: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.names[number], work)
    }

    /// One of each kind.
    pub(crate) fn cases(&self, random: &mut Random) -> Result<Vec<Case>> {
        let mut cases = vec![
            self.translated_tcp(random)?,
            self.translated_udp(random, 53, SocketAddrV4::new(CLIENT, 5353), 0)?,
            self.translated_udp(random, 54, SocketAddrV4::new(SERVER, 5354), 2)?,
            per_client(random)?,
            lingering(random)?,
        ];
        cases.push(self.group(random)?);
        cases.extend(daemon()?);
        Ok(cases)
    }

    /// Through a router that translates the destination, and the source too.
    fn translated_tcp(&self, random: &mut Random) -> Result<Case> {
        let (sends, wants) = (random.size() + 1, random.size() + 1);
        let listener = self.within(2, || Ok(TcpListener::bind((SERVER, 8000))?))?;
        let server = thread::spawn(move || -> Result<TcpStream> {
            let mut stream = listener.accept()?.0;
            std::io::copy(&mut (&stream).take(sends), &mut std::io::sink())?;
            std::io::copy(&mut std::io::repeat(7).take(wants), &mut stream)?;
            Ok(stream)
        });
        let mut stream = self.within(0, || Ok(TcpStream::connect((SERVICE, 80))?))?;
        std::io::copy(&mut std::io::repeat(7).take(sends), &mut stream)?;
        std::io::copy(&mut (&stream).take(wants), &mut std::io::sink())?;
        let served = server.join().map_err(|_| anyhow::anyhow!("the server has died"))??;
        let case = Case::own("tcp, translated", "tcp", stream.local_addr()?, SocketAddr::from((SERVICE, 80)));
        let server = format!("{SERVER}:8000");
        Ok(case
            .bytes(sends, wants)
            .with("translated responder", "translated_responder", json!(server))
            .with("translated initiator", "translated_initiator", json!(served.peer_addr()?.to_string()))
            .keep([stream.into(), served.into()]))
    }

    /// Translated in the client's own namespace, to a server in this or another one.
    fn translated_udp(&self, random: &mut Random, port: u16, at: SocketAddrV4, namespace: usize) -> Result<Case> {
        let server = self.within(namespace, || Ok(UdpSocket::bind(at)?))?;
        let client = self.within(0, || Ok(UdpSocket::bind((CLIENT, 0))?))?;
        let service = SocketAddr::from((SERVICE, port));
        if random.below(2) == 0 {
            client.connect(service)?;
        }
        let (mut sent, mut received) = (0, 0);
        for _ in 0..=random.below(20) {
            let (question, answer) = (random.below(1000), random.below(1000));
            let (there, back) = turn(&client, &server, service, [question as usize, answer as usize])?;
            sent += there;
            received += back;
        }
        Ok(Case::own("udp, translated", "udp", client.local_addr()?, service)
            .bytes(sent, received)
            .with("translated responder", "translated_responder", json!(at.to_string()))
            .keep([client.into(), server.into()]))
    }

    /// Datagrams to a group, received three times in two namespaces.
    fn group(&self, random: &mut Random) -> Result<Case> {
        let port = 45_000 + random.below(10_000) as u16;
        let mut receivers = Vec::new();
        for (namespace, interface) in [(0, CLIENT), (1, ROUTER), (1, ROUTER)] {
            receivers.push(self.within(namespace, || {
                let socket = shared(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
                socket.join_multicast_v4(&GROUP, &interface)?;
                Ok(socket)
            })?);
        }
        let sender = self.within(0, || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.set_multicast_if_v4(&CLIENT)?;
            socket.bind(&SocketAddrV4::new(CLIENT, 0).into())?;
            Ok(UdpSocket::from(socket))
        })?;
        let mut sent = 0;
        for _ in 0..=random.below(20) {
            let bytes = random.below(1400) as usize;
            sent += sender.send_to(&[7; 1400][..bytes], (GROUP, port))? as u64;
            for receiver in &receivers {
                ensure!(receiver.recv(&mut [0; 2048])? == bytes, "a receiver of the group got something else");
            }
        }
        let sockets = receivers.into_iter().map(OwnedFd::from).chain([sender.try_clone()?.into()]);
        let sockets: Vec<_> = sockets.collect();
        Ok(Case::own("udp, group", "udp", sender.local_addr()?, SocketAddr::from((GROUP, port)))
            .bytes(sent, 0)
            .keep(sockets))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run("ip", &format!("netns del {name}"));
        }
    }
}

/// A UDP socket on a port that others have, too.
fn shared(at: SocketAddrV4) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&at.into())?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A question and its answer. Returns the bytes of both.
fn turn(client: &UdpSocket, server: &UdpSocket, to: SocketAddr, [question, answer]: [usize; 2]) -> Result<(u64, u64)> {
    client.set_read_timeout(Some(PATIENCE))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let data = [7; 1024];
    let sent = match client.peer_addr() {
        Ok(_) => client.send(&data[..question])?,
        Err(_) => client.send_to(&data[..question], to)?,
    };
    let (_, from) = server.recv_from(&mut [0; 2048]).context("a question is missing")?;
    let back = match server.peer_addr() {
        Ok(_) => server.send(&data[..answer])?,
        Err(_) => server.send_to(&data[..answer], from)?,
    };
    client.recv(&mut [0; 2048]).context("an answer is missing")?;
    Ok((sent as u64, back as u64))
}

/// A server that opens a socket for its client, as those of QUIC and DTLS do.
fn per_client(random: &mut Random) -> Result<Case> {
    let all = shared(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    let SocketAddr::V4(address) = all.local_addr()? else { anyhow::bail!("no IPv4 address") };
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    client.connect(address)?;
    let (mut sent, mut received) = turn(&client, &all, address.into(), [1, 1])?;
    let one = shared(address)?;
    one.connect(client.local_addr()?)?;
    for _ in 0..random.below(20) {
        let (there, back) =
            turn(&client, &one, address.into(), [random.below(1000) as usize, random.below(1000) as usize])?;
        sent += there;
        received += back;
    }
    Ok(Case::own("udp, socket per client", "udp", client.local_addr()?, address.into()).bytes(sent, received).keep([
        client.into(),
        all.into(),
        one.into(),
    ]))
}

/// A server that takes its time to close: the client's FIN is acknowledged by a timer.
fn lingering(random: &mut Random) -> Result<Case> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let (sends, wants) = (random.below(1000) + 1, random.below(1000) + 1);
    thread::spawn(move || -> Result<()> {
        let mut stream = listener.accept()?.0;
        std::io::copy(&mut (&stream).take(sends), &mut std::io::sink())?;
        std::io::copy(&mut std::io::repeat(7).take(wants), &mut stream)?;
        thread::sleep(Duration::from_millis(300));
        Ok(())
    });
    let mut stream = TcpStream::connect(address)?;
    std::io::copy(&mut std::io::repeat(7).take(sends), &mut stream)?;
    std::io::copy(&mut (&stream).take(wants), &mut std::io::sink())?;
    let local = stream.local_addr()?;
    let before_close = Sockets::read(address)?.round_trip_us(local).context("ss does not show a connection")?;
    Ok(Case::own("tcp, server lingers", "tcp", local, address).bytes(sends, wants).with(
        "round-trip time before the close (ss)",
        "rtt",
        json!(before_close),
    ))
}

/// A daemon: its sockets are made by root, and served by a child of another user. The parent is gone.
fn daemon() -> Result<Vec<Case>> {
    let mut parent = Command::new(std::env::current_exe()?).arg("daemon").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(parent.stdout.take().context("no pipe")?).read_line(&mut line)?;
    parent.wait()?;
    let (port, pid) = line.trim().split_once(' ').context("the daemon says nothing")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse()?));
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&[7; 100])?;
    stream.read_exact(&mut [0; 50])?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&[7; 20], address)?;
    socket.recv(&mut [0; 100]).context("the daemon does not answer")?;
    let (by_tcp, by_udp) = (stream.local_addr()?, socket.local_addr()?);
    // The daemon ends with its connection, after the comparison.
    let kept = [vec![stream.into()], vec![socket.into()]];
    let flows = [("tcp, daemon", "tcp", by_tcp, 100, 50), ("udp, daemon", "udp", by_udp, 20, 10)];
    let pid: u32 = pid.parse()?;
    let case = |((name, protocol, local, sent, received), kept): (_, Vec<OwnedFd>)| {
        let mut case = Case::own(name, protocol, local, address).bytes(sent, received).keep(kept);
        case.expect.retain(|(_, column, _)| *column != "responder_pid");
        case.with("owner of the responder", "responder_pid", json!(pid))
    };
    Ok(flows.into_iter().zip(kept).map(case).collect())
}

#[derive(Debug, Args)]
pub(crate) struct DaemonOptions {
    /// It is the child, and has the sockets as standard input and output.
    #[arg(long)]
    serve: bool,
}

/// What [`daemon`] starts: the parent makes the sockets, hands them to a child and says who that is.
pub(crate) fn be_daemon(options: &DaemonOptions) -> Result<()> {
    if options.serve {
        return serve();
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
    // Not by its path: who it is then may not be allowed to go there.
    let mut child = Command::new("/proc/self/exe");
    child.args(["daemon", "--serve"]).uid(DAEMON_ID).gid(DAEMON_ID);
    let child = child.stdin(OwnedFd::from(listener)).stdout(OwnedFd::from(socket)).spawn()?;
    println!("{port} {}", child.id());
    Ok(())
}

fn serve() -> Result<()> {
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let socket = UdpSocket::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let (mut stream, _) = listener.accept()?;
    stream.read_exact(&mut [0; 100])?;
    stream.write_all(&[7; 50])?;
    let (_, peer) = socket.recv_from(&mut [0; 100])?;
    socket.send_to(&[7; 10], peer)?;
    let _ = stream.read(&mut [0]);
    Ok(())
}
