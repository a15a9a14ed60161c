//! `perf accuracy`, names of far ends: many names of one address, as at a CDN, and clients that ask for them and connect, by
//! themselves or by children. No name is better than a wrong one.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use sockeye::model::clock::boot_ns;
use sockeye_ctl::Client;
use sockeye_ctl::protocol::{DnsArguments, DnsBy, FlowsArguments, Request};

use crate::accuracy::Random;
use crate::table::Table;
use crate::tether::tethered;
use crate::uncommon::{run, within};

/// The address that all names have, and the resolver.
const CDN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 8);
const RESOLVER: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Names that are asked for.
const NAMES: u64 = 200;
/// Processes that ask for many of them, at the same time.
const CLIENTS: u64 = 8;
/// A client does something else before it connects, for so long at most.
const THINKS_US: u64 = 20_000;
/// Time for the last records to arrive.
const SETTLE: Duration = Duration::from_millis(2500);
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct ClientOptions {
    /// Connect to this address, print from which port, and end.
    #[arg(long)]
    connect: Option<SocketAddr>,
    /// Of the server.
    #[arg(long, default_value_t = 0)]
    port: u16,
    #[arg(long, default_value_t = 1)]
    count: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ask once, and let a child connect.
    #[arg(long)]
    once: bool,
}

/// Who connects.
const KINDS: [(&str, &str); 3] = [
    ("own", "a process that has asked for many names"),
    ("child", "a child of a process that has asked for many names"),
    ("sole", "a child of a process that has asked for one name"),
];

/// A connection by its client's own account.
struct Truth {
    local: SocketAddr,
    name: String,
    kind: usize,
    answered_ns: u64,
    connecting_ns: u64,
}

/// How the connections of one kind are shown.
#[derive(Default, Clone, Copy)]
struct Score {
    connections: u64,
    right: u64,
    one_of_two: u64,
    wrong: u64,
    last_answer_right: u64,
}

/// A namespace with a resolver and a server. It ends with this.
struct Place {
    name: String,
    etc: PathBuf,
    port: u16,
    resolver: Option<Child>,
}

impl Place {
    /// Needs root, iproute2 and dnsmasq.
    fn new() -> Result<Self> {
        let name = format!("seperf{}n", std::process::id());
        let etc = PathBuf::from("/etc/netns").join(&name);
        let mut place = Self { name, etc, port: 0, resolver: None };
        run("ip", &format!("netns add {}", place.name))?;
        run("ip", &format!("-n {} link set lo up", place.name))?;
        run("ip", &format!("-n {} address add {CDN}/32 dev lo", place.name))?;
        // ip netns exec shows it to programs as /etc/resolv.conf.
        fs::create_dir_all(&place.etc)?;
        fs::write(place.etc.join("resolv.conf"), format!("nameserver {RESOLVER}\n"))?;
        place.port = place.serve()?;
        let mut resolver = tethered("ip");
        resolver.args(["netns", "exec", &place.name, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"]);
        resolver.args(["--no-resolv", "--no-hosts", "--pid-file=", "--bind-interfaces", "--user=root"]);
        resolver.args([format!("--listen-address={RESOLVER}"), format!("--address=/crowd.example/{CDN}")]);
        place.resolver = Some(resolver.stdin(Stdio::null()).spawn().context("cannot start setpriv (util-linux)")?);
        place.await_resolver()?;
        Ok(place)
    }

    /// A server in the namespace, which closes when its client does.
    fn serve(&self) -> Result<u16> {
        let listener = within(&self.name, || Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        let port = listener.local_addr()?.port();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
            }
        });
        Ok(port)
    }

    /// It may be missing, too.
    fn await_resolver(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.resolver.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("dnsmasq has ended ({status}); it is in the package dnsmasq-base");
            }
            let mut asks = self.command(&["getent", "ahostsv4", "n0.crowd.example"]);
            if asks.stdout(Stdio::null()).status()?.success() {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "dnsmasq does not answer");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(program).stdin(Stdio::null());
        command
    }

    fn start(&self, args: &[&str]) -> Result<Child> {
        let this = std::env::current_exe().context("where am I?")?;
        let this = this.to_str().context("the path of this program is no text")?;
        let port = self.port.to_string();
        let args = [&[this, "crowd-client", "--port", &port], args].concat();
        self.command(&args).stdout(Stdio::piped()).spawn().context("cannot run ip (iproute2)")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(resolver) = &mut self.resolver {
            let _ = resolver.kill();
            let _ = resolver.wait();
        }
        let _ = run("ip", &format!("netns del {}", self.name));
        let _ = fs::remove_dir_all(&self.etc);
    }
}

/// The table, and each connection that has a wrong name or none where it must have one. `count`: connections of each client.
/// `None`: the agent reads no DNS.
pub(crate) fn compare(count: u64, seed: u64, client: &Client) -> Result<Option<(Table, Vec<String>)>> {
    let place = Place::new()?;
    let truths = connect(&place, count, seed)?;
    thread::sleep(SETTLE);
    let asked = client.ask(&Request::Dns(DnsArguments { by: DnsBy::Host, ..DnsArguments::default() }))?.rows("dns");
    if asked.is_empty() {
        return Ok(None);
    }
    let arguments =
        FlowsArguments { port: vec![place.port], closed: true, limit: usize::MAX, ..FlowsArguments::default() };
    let mut shown = HashMap::new();
    for row in client.ask(&Request::Flows(arguments.into()))?.rows("flows") {
        let initiator = row.get("initiator").and_then(Value::as_str).and_then(|text| text.parse::<SocketAddr>().ok());
        shown.insert(initiator.context("an initiator without an address")?, row);
    }
    let mut findings = Vec::new();
    let mut scores = [Score::default(); KINDS.len()];
    for truth in &truths {
        let name = shown.get(&truth.local).map(|row| row.get("responder_name").and_then(Value::as_str));
        let Some(name) = name else {
            findings.push(format!("{}: the flow to {} is missing", truth.local, truth.name));
            continue;
        };
        let wrong = scores[truth.kind].wrong;
        scores[truth.kind].add(truth, name, last_answer(truth, &truths));
        if scores[truth.kind].wrong > wrong {
            findings.push(format!("{}: it is {}, and not {name:?}", truth.local, truth.name));
        }
    }
    findings.extend(too_few(&scores));
    Ok(Some((table(&scores), findings)))
}

/// Everybody asks and connects.
fn connect(place: &Place, count: u64, seed: u64) -> Result<Vec<Truth>> {
    let count_text = count.to_string();
    let clients = (0..CLIENTS)
        .map(|number| place.start(&["--count", &count_text, "--seed", &(seed * 1000 + number).to_string()]))
        .collect::<Result<Vec<_>>>()?;
    let mut truths = Vec::new();
    for number in 0..count {
        let sole = place.start(&["--once", "--seed", &(seed * 1000 + CLIENTS + number).to_string()])?;
        accounts(sole, &mut truths)?;
    }
    for client in clients {
        accounts(client, &mut truths)?;
    }
    Ok(truths)
}

/// What a client has done.
fn accounts(mut client: Child, truths: &mut Vec<Truth>) -> Result<()> {
    for line in BufReader::new(client.stdout.take().context("no pipe")?).lines() {
        let said: Value = serde_json::from_str(&line?).context("a client's account")?;
        let kind = KINDS.iter().position(|(kind, _)| said["kind"] == *kind).context("a kind")?;
        let ns = |key: &str| said[key].as_u64().context("a moment");
        truths.push(Truth {
            local: said["local"].as_str().unwrap_or_default().parse().context("an address")?,
            name: said["name"].as_str().unwrap_or_default().to_owned(),
            kind,
            answered_ns: ns("answered_ns")?,
            connecting_ns: ns("connecting_ns")?,
        });
    }
    ensure!(client.wait()?.success(), "a client has failed");
    Ok(())
}

/// What the address was last said to be before a connection.
fn last_answer<'a>(truth: &Truth, all: &'a [Truth]) -> Option<&'a str> {
    let before = all.iter().filter(|other| other.answered_ns <= truth.connecting_ns);
    before.max_by_key(|other| other.answered_ns).map(|other| other.name.as_str())
}

impl Score {
    fn add(&mut self, truth: &Truth, name: Option<&str>, last_answer: Option<&str>) {
        self.connections += 1;
        self.last_answer_right += u64::from(last_answer == Some(&truth.name));
        let Some(name) = name else { return };
        let of_it = if name == truth.name {
            &mut self.right
        } else if name.split(" or ").any(|one| one == truth.name) {
            &mut self.one_of_two
        } else {
            &mut self.wrong
        };
        *of_it += 1;
    }
}

/// As many are named right as have asked themselves, and each child whose parent has asked for one name only.
fn too_few(scores: &[Score]) -> Vec<String> {
    let [own, _, sole] = scores else { return Vec::new() };
    let right: u64 = scores.iter().map(|score| score.right).sum();
    let least = own.connections + sole.connections;
    let few = (right < least).then(|| format!("{right} connections are named right, and {least} had to be"));
    let (named, of) = (sole.right, sole.connections);
    let unnamed = (named < of).then(|| format!("{}: {named} of {of} are named right", KINDS[2].1));
    few.into_iter().chain(unnamed).collect()
}

fn table(scores: &[Score]) -> Table {
    let columns = [
        "who connects",
        "connections",
        "named right",
        "one of two",
        "not named",
        "named wrong",
        "right by the last answer",
    ];
    let mut table = Table::new(&columns);
    for ((_, what), score) in KINDS.iter().zip(scores) {
        let unnamed = score.connections - score.right - score.one_of_two - score.wrong;
        let figures = [score.connections, score.right, score.one_of_two, unnamed, score.wrong, score.last_answer_right];
        table.push(std::iter::once(json!(what)).chain(figures.map(|figure| json!(figure))).collect());
    }
    table
}

/// What [`connect`] starts.
pub(crate) fn be_client(options: &ClientOptions) -> Result<()> {
    if let Some(address) = options.connect {
        println!("{}", fetch(address)?);
        return Ok(());
    }
    let mut random = Random::new(options.seed);
    for _ in 0..options.count {
        let name = format!("n{}.crowd.example", random.below(NAMES));
        let address = (name.as_str(), options.port).to_socket_addrs()?.next().context("no address")?;
        let answered_ns = boot_ns();
        let kind = if options.once {
            "sole"
        } else if random.below(10) < 3 {
            "child"
        } else {
            "own"
        };
        thread::sleep(Duration::from_micros(random.below(THINKS_US)));
        let connecting_ns = boot_ns();
        let local = if kind == "own" { fetch(address)? } else { fetch_by_child(address)? };
        println!(
            "{}",
            json!({"local": local, "name": name, "kind": kind, "answered_ns": answered_ns, "connecting_ns": connecting_ns})
        );
    }
    Ok(())
}

/// Connects, and returns from where.
fn fetch(address: SocketAddr) -> Result<SocketAddr> {
    let mut stream = TcpStream::connect(address)?;
    let local = stream.local_addr()?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(local)
}

fn fetch_by_child(address: SocketAddr) -> Result<SocketAddr> {
    let child = Command::new("/proc/self/exe").args(["crowd-client", "--connect", &address.to_string()]).output()?;
    Ok(String::from_utf8(child.stdout)?.trim().parse()?)
}
