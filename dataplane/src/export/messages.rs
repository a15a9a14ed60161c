//! The `event` message beside the flows: that and how the agent lives.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use uuid::{Builder, Uuid};

use super::ExportStats;
use crate::model::clock::unix_ns;
use crate::model::text::{clean, neutral, truncate};

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Address that the host uses towards the outside.
    pub ip: IpAddr,
    /// Name of the host, at most 31 bytes.
    pub host: String,
    /// 32 hex digits, stable across restarts.
    pub uuid: String,
    /// Stable, never 0.
    pub id: u32,
    /// Operating system.
    pub os: String,
}

impl Probe {
    /// Reads it from the host.
    #[must_use]
    pub fn of_this_host() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
        let host = read("/proc/sys/kernel/hostname");
        let machine = [read("/etc/machine-id"), read("/proc/sys/kernel/random/boot_id"), host.clone()]
            .into_iter()
            .find(|id| !id.is_empty())
            .unwrap_or_default();
        Self::new(host_address(), &host, &machine, format!("Linux {}", read("/proc/sys/kernel/osrelease")))
    }

    /// With given values. The machine's own id is confidential and must be hashed with a key before it leaves the host
    /// (machine-id(5)). As `sd_id128_get_machine_app_specific` does, so that `systemd-id128` can tell the same id:
    /// HMAC-SHA256 of our own id with the machine's as the key.
    #[must_use]
    pub fn new(ip: IpAddr, host: &str, machine: &str, os: String) -> Self {
        let uuid = keyed(machine);
        let mut host = neutral(&clean(host.as_bytes())).into_owned();
        truncate(&mut host, 31);
        Self { ip, host, uuid: uuid.simple().to_string(), id: number(uuid), os }
    }

    /// The id of one exporter: two of them may reach the same collector. No key is needed here: the id that it is made of is
    /// told anyway.
    #[must_use]
    pub fn source_id(&self, endpoint: &str) -> u32 {
        number(Uuid::new_v5(&NAMESPACE, format!("{}{endpoint}", self.uuid).as_bytes()))
    }
}

/// Of everything that sockeye names; chosen at random once.
const NAMESPACE: Uuid = Uuid::from_u128(0x5c1e_7f0a_92d4_4b63_8e15_a0c9_37f2_d6b8);

/// A host without a machine id has the id of its boot or its name in that place, which may be of any length.
fn keyed(machine: &str) -> Uuid {
    let id = Uuid::try_parse(machine);
    let key = id.as_ref().map_or(machine.as_bytes(), |id| id.as_bytes());
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("a key of HMAC has any length");
    mac.update(NAMESPACE.as_bytes());
    let hash: [u8; 32] = mac.finalize().into_bytes().into();
    Builder::from_random_bytes(std::array::from_fn(|i| hash[i])).into_uuid()
}

/// 32 bits of it, never 0.
fn number(uuid: Uuid) -> u32 {
    let (high, low) = uuid.as_u64_pair();
    let hash = high ^ low;
    ((hash ^ hash >> 32) as u32).max(1)
}

/// The source address towards a documentation address (RFC 5737), to which nothing is sent; without a way there, the first
/// address that other hosts may know, IPv4 before IPv6.
fn host_address() -> IpAddr {
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr()))
        .map(|addr| addr.ip());
    let all = || super::listening::of_this_host().map(|(_, all)| all).unwrap_or_default();
    let known = |ip: &IpAddr| !ip.is_loopback() && !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    routed.ok().filter(known).or_else(|| all().into_iter().find(known)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Figures of the agent for `event` messages, written by control.
#[derive(Debug, Default)]
pub struct AgentFigures {
    /// Bytes of all reports.
    pub bytes: AtomicU64,
    /// Packets of all reports.
    pub packets: AtomicU64,
    /// Records lost between kernel and export.
    pub lost: AtomicU64,
    /// Flows not entered because the table was full.
    pub too_many_flows: AtomicU64,
    /// Exporters of the agent. This and what follows is written when the configuration is read.
    pub exporters: AtomicU64,
    /// Active timeout, seconds.
    pub lifetime_s: AtomicU64,
    /// Idle timeout, seconds.
    pub idle_s: AtomicU64,
}

/// What an exporter needs to say by itself that the agent lives: ntopng forgets one that is silent for ten seconds, whatever
/// control is busy with.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    /// Who we are.
    pub probe: Probe,
    /// Figures of the agent.
    pub agent: Arc<AgentFigures>,
}

impl Heartbeat {
    /// The `event` of this moment.
    #[must_use]
    pub fn event(&self, stats: &ExportStats) -> String {
        let figures = EventFigures {
            unix_s: unix_ns() / 1_000_000_000,
            bytes: ExportStats::get(&self.agent.bytes),
            packets: ExportStats::get(&self.agent.packets),
            lost: ExportStats::get(&self.agent.lost),
            queue_full: ExportStats::get(&stats.dropped),
            too_many_flows: ExportStats::get(&self.agent.too_many_flows),
            exported: ExportStats::get(&stats.records),
            exporters: ExportStats::get(&self.agent.exporters),
            lifetime_s: ExportStats::get(&self.agent.lifetime_s),
            idle_s: ExportStats::get(&self.agent.idle_s),
        };
        event(&self.probe, &figures)
    }
}

/// Figures of an `event`.
#[derive(Debug, Clone, Copy, Default)]
struct EventFigures {
    /// Seconds since the epoch.
    unix_s: u64,
    /// Bytes of all exported flows.
    bytes: u64,
    /// Packets of all exported flows.
    packets: u64,
    /// Records lost between kernel and export.
    lost: u64,
    /// Reports dropped because a queue was full.
    queue_full: u64,
    /// Flows not entered because the table was full.
    too_many_flows: u64,
    /// Records sent by this exporter.
    exported: u64,
    /// Exporters of the agent.
    exporters: u64,
    /// Active timeout, seconds.
    lifetime_s: u64,
    /// Idle timeout, seconds.
    idle_s: u64,
}

/// The `event` message. Without all three timeouts ntopng drops flows from its live view after 10 s.
fn event(probe: &Probe, f: &EventFigures) -> String {
    json!({
        "time": f.unix_s,
        "bytes": f.bytes,
        "packets": f.packets,
        "packet_drops": f.lost,
        "mode": "packet_collection",
        "iface": {"name": probe.host, "speed": 1000, "ip": probe.ip.to_string()},
        "probe": {
            "ip": probe.ip.to_string(),
            "public_ip": "",
            "uuid": probe.uuid,
            "unique_source_id": probe.id,
            "version": concat!("sockeye ", env!("CARGO_PKG_VERSION")),
            "osname": neutral(&probe.os),
            "license": "Apache-2.0 OR MIT",
            "edition": "community",
            "maintenance": "",
        },
        "avg": {"bps": 0, "pps": 0},
        "timeout": {"lifetime": f.lifetime_s, "idle": f.idle_s, "collected_lifetime": f.lifetime_s},
        "drops": {
            "export_queue_full": f.queue_full,
            "too_many_flows": f.too_many_flows,
            "elk_flow_drops": 0,
            "sflow_pkt_sample_drops": 0,
            "flow_collection_drops": 0,
            "flow_collection_udp_socket_drops": 0,
        },
        "zmq": {
            "num_flow_exports": f.exported,
            "num_zmq_exporters": f.exporters,
            "num_exporters": f.exporters,
        },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn source_ids_are_stable_distinct_and_never_zero() {
        let probe = |machine| Probe::new(Ipv4Addr::LOCALHOST.into(), "host", machine, String::new());
        let (a, again, b) = (probe("a"), probe("a"), probe("b"));
        assert_eq!((a.id, a.source_id("x")), (again.id, again.source_id("x")));
        assert_ne!(a.id, b.id);
        assert_ne!(a.source_id("x"), a.source_id("y"));
        assert_ne!(number(Uuid::nil()), 0);
        assert!(a.uuid.len() <= 35);
    }

    /// Computed with Python's hmac and hashlib, which tell of any machine what systemd does:
    /// `systemd-id128 machine-id --app-specific=5c1e7f0a92d44b638e15a0c937f2d6b8`.
    #[test]
    fn the_machine_id_is_a_key_and_does_not_leave_the_host() {
        let probe = |machine| Probe::new(Ipv4Addr::LOCALHOST.into(), "host", machine, String::new());
        let (machine, named) = (probe("5d3b1c8e0f2a4796b1c3d5e7f9081726"), probe("host"));
        assert_eq!((machine.uuid.as_str(), machine.id), ("329143bf25ee430f9a5b77496661fcf9", 3_947_203_328));
        assert_eq!((named.uuid.as_str(), named.id), ("6a80d3a9b814447aa7e15d190b00b55b", 2_121_629_585));
    }

    #[test]
    fn event_has_all_timeouts() {
        let probe = Probe::new(Ipv4Addr::LOCALHOST.into(), &"h".repeat(70), "m", String::new());
        let text = event(&probe, &EventFigures { lifetime_s: 60, idle_s: 30, ..Default::default() });
        let event: Value = serde_json::from_str(&text).unwrap();
        for name in ["lifetime", "idle", "collected_lifetime"] {
            assert!(event["timeout"][name].as_u64().unwrap() > 0, "{name}");
        }
        assert!(event["iface"]["name"].as_str().unwrap().len() < 32);
    }
}
