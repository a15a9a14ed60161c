//! A flow report as a line of JSON, with the names of the Elastic Common Schema (elastic.co/guide/en/ecs). What that has no
//! name for is below `sockeye`. `docs/json.schema.json` is the contract: a change of it that a reader has to know of makes
//! [`SCHEMA`] one more.

#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::community_id::CommunityId;
use super::people::{Encoded, People, ProcessField};
use crate::flows::report::FlowReport;
use crate::model::flow::{Counters, Proto, Side, State};
use crate::names::dns;
use crate::names::hello::Hello;
use crate::names::service::Last;
use crate::names::table::Source;

use serde_json::value::RawValue;

/// Version of the format.
pub(super) const SCHEMA: u32 = 1;
/// The version of ECS whose names these are.
const ECS: &str = "8.17.0";

/// Writes lines. Keeps what is said of processes, which is the same in many.
pub(super) struct Encoder {
    host: String,
    people: People,
}

impl Encoder {
    /// `host`: name of this host, clean text.
    pub(super) fn new(host: String) -> Self {
        Self { host, people: People::default() }
    }

    /// Appends the report, and the end of the line.
    pub(super) fn line(&mut self, report: &FlowReport, out: &mut Vec<u8>) {
        self.people.make_room();
        for identity in report.current() {
            self.people.learn(identity);
        }
        let people = Side::BOTH.map(|side| self.people.get(&report.current()[side as usize]));
        let line = Line::new(report, &self.host, people);
        // Into memory, of text and numbers: nothing of this can fail.
        let _ = serde_json::to_writer(&mut *out, &line);
        out.push(b'\n');
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: Time,
    ecs: Version,
    agent: Agent,
    host: Host<'a>,
    event: Event,
    source: End<'a>,
    destination: End<'a>,
    network: Network,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<Dns<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<Tls<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<Url<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessField<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orchestrator: Option<&'a RawValue>,
    sockeye: Own<'a>,
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

#[derive(Serialize)]
struct Agent {
    r#type: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
struct Host<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct Event {
    kind: &'static str,
    category: [&'static str; 1],
    r#type: &'static [&'static str],
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    start: Time,
    end: Time,
    /// Nanoseconds.
    duration: u64,
}

impl Event {
    fn new(report: &FlowReport) -> Self {
        let (r#type, action): (&[&str], _) = match (report.first, report.state.is_over()) {
            (true, false) => (&["connection", "start"], "flow-start"),
            (false, false) => (&["connection", "info"], "flow-update"),
            (true, true) => (&["connection", "start", "end"], "flow-end"),
            (false, true) => (&["connection", "end"], "flow-end"),
        };
        let outcome = match report.state {
            State::Connecting | State::Open | State::Closing => None,
            State::Closed | State::Idle => Some("success"),
            State::Refused | State::Unreachable | State::TimedOut | State::Aborted => Some("failure"),
            State::Reset | State::Vanished => Some("unknown"),
        };
        let (start, end) = (report.first_unix_ns, report.last_unix_ns.max(report.first_unix_ns));
        let duration = end - start;
        Self {
            kind: "event",
            category: ["network"],
            r#type,
            action,
            outcome,
            start: Time(start),
            end: Time(end),
            duration,
        }
    }
}

/// One side. Counters are those since the report before.
#[derive(Serialize)]
struct End<'a> {
    /// Where there is no doubt about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<Text<IpAddr>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    packets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat: Option<Nat>,
}

#[derive(Serialize)]
struct Nat {
    ip: Text<IpAddr>,
    port: u16,
}

impl<'a> End<'a> {
    fn new(report: &'a FlowReport, side: Side) -> Self {
        let endpoint = report.key.endpoint(side);
        let has_address = !is_nobody(report, side);
        let other = report.translated.as_deref().map(|view| view.endpoint(side)).filter(|other| *other != endpoint);
        let name = report.peer_name.as_deref().filter(|name| side == Side::Responder && name.source.is_sure());
        Self {
            domain: name.and_then(|name| name.sole()).map(|name| &**name),
            ip: has_address.then(|| Text(endpoint.addr.ip())),
            port: has_address.then_some(endpoint.port),
            bytes: (!report.bypassed).then_some(report.delta.bytes[side as usize]),
            packets: report.delta.packets[side as usize],
            nat: other.map(|other| Nat { ip: Text(other.addr.ip()), port: other.port }),
        }
    }
}

/// What was asked over a flow to a DNS server, last.
#[derive(Serialize)]
struct Dns<'a> {
    question: DnsQuestion<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_code: Option<String>,
}

#[derive(Serialize)]
struct DnsQuestion<'a> {
    name: &'a str,
    r#type: String,
}

impl<'a> Dns<'a> {
    fn new(last: &'a Last) -> Self {
        Self {
            question: DnsQuestion { name: &last.name, r#type: dns::type_name(last.rtype) },
            response_code: last.rcode.map(dns::rcode_name),
        }
    }
}

/// What a client of TLS or QUIC offers.
#[derive(Serialize)]
struct Tls<'a> {
    client: TlsClient<'a>,
}

#[derive(Serialize)]
struct TlsClient<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<&'a str>,
}

impl<'a> Tls<'a> {
    fn new(hello: &'a Hello) -> Self {
        Self { client: TlsClient { server_name: hello.name.as_deref() } }
    }
}

/// Whom a request of HTTP means.
#[derive(Serialize)]
struct Url<'a> {
    domain: &'a str,
}

impl<'a> Url<'a> {
    fn new(hello: &'a Hello) -> Option<Self> {
        Some(Self { domain: hello.name.as_deref()? })
    }
}

/// What the responder is called, and who knew it: also where there is doubt.
#[derive(Serialize)]
struct Name<'a> {
    one_of: Vec<&'a str>,
    source: &'static str,
}

/// It stands for many peers.
fn is_nobody(report: &FlowReport, side: Side) -> bool {
    report.key.is_of_other_peers() && report.key.endpoint(side).port == 0
}

#[derive(Serialize)]
struct Network {
    transport: &'static str,
    iana_number: &'static str,
    r#type: &'static str,
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    community_id: Option<CommunityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    packets: u64,
}

impl Network {
    fn new(report: &FlowReport) -> Self {
        let key = &report.key;
        let iana_number = match key.proto {
            Proto::Tcp => "6",
            Proto::Udp => "17",
        };
        let direction = match report.local {
            [true, true] => "internal",
            [true, false] => "egress",
            _ => "ingress",
        };
        let is_v4 = Side::BOTH.into_iter().all(|side| key.endpoint(side).addr.ip().is_ipv4());
        Self {
            transport: key.proto.name(),
            iana_number,
            r#type: if is_v4 { "ipv4" } else { "ipv6" },
            direction,
            community_id: (!key.is_of_other_peers()).then(|| CommunityId::new(key)),
            bytes: (!report.bypassed).then(|| report.delta.bytes.iter().sum()),
            packets: report.delta.packets.iter().sum(),
        }
    }
}

/// What ECS has no name for.
#[derive(Serialize)]
struct Own<'a> {
    schema: u32,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_counted: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    other_peers: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    responder_name: Option<Name<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    alpn: &'a [Box<str>],
    delta: Delta,
    total: Sides,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_samples: Option<Samples>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initiator: Option<Local<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    responder: Option<Local<'a>>,
}

#[derive(Serialize)]
struct Delta {
    since: Time,
    #[serde(flatten)]
    sides: Sides,
}

#[derive(Serialize)]
struct Sides {
    initiator: Sent,
    responder: Sent,
}

/// What a side has sent.
#[derive(Serialize)]
struct Sent {
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    packets: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    retransmissions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_order: Option<u32>,
}

impl Sides {
    fn new(report: &FlowReport, counters: &Counters) -> Self {
        let of_tcp = |count| (report.key.proto == Proto::Tcp).then_some(count);
        let [initiator, responder] = [0, 1].map(|side: usize| Sent {
            bytes: (!report.bypassed).then_some(counters.bytes[side]),
            packets: counters.packets[side],
            retransmissions: of_tcp(counters.retrans[side]),
            out_of_order: of_tcp(counters.out_of_order[side]),
        });
        Self { initiator, responder }
    }
}

#[derive(Serialize)]
struct Samples {
    samples: u32,
    min_us: u32,
    mean_us: u32,
    p99_us: u32,
}

/// A side that is on this host.
#[derive(Serialize)]
struct Local<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_var_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    congestion: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ProcessField<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    orchestrator: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<&'a RawValue>,
}

impl<'a> Local<'a> {
    fn new(report: &FlowReport, side: Side, who: Option<&'a Encoded>) -> Option<Self> {
        let index = side as usize;
        let rtt = report.rtt_us[index];
        report.local[index].then(|| Self {
            rtt_us: rtt.map(|(us, _)| us),
            rtt_var_us: rtt.map(|(_, us)| us),
            congestion: report.congestion[index],
            process: ProcessField::new(who, report.owners[index]),
            user: who.and_then(|who| who.user.as_deref()),
            container: who.and_then(|who| who.container.as_deref()),
            orchestrator: who.and_then(|who| who.orchestrator.as_deref()),
            package: who.and_then(|who| who.package.as_deref()),
            place: who.and_then(|who| who.place.as_deref()),
        })
    }
}

impl<'a> Line<'a> {
    fn new(report: &'a FlowReport, host: &'a str, [initiator, responder]: [Option<&'a Encoded>; 2]) -> Self {
        // Who acted: the initiator, if it is here.
        let (side, who) = if report.local[0] { (0, initiator) } else { (1, responder) };
        let event = Event::new(report);
        Self {
            timestamp: event.end,
            ecs: Version { version: ECS },
            agent: Agent { r#type: "sockeye", version: env!("CARGO_PKG_VERSION") },
            host: Host { name: host },
            event,
            source: End::new(report, Side::Initiator),
            destination: End::new(report, Side::Responder),
            network: Network::new(report),
            dns: report.dns.as_deref().map(Dns::new),
            tls: report.hello.as_deref().filter(|hello| hello.source != Source::Http).map(Tls::new),
            url: report.hello.as_deref().filter(|hello| hello.source == Source::Http).and_then(Url::new),
            process: ProcessField::new(who, report.owners[side]),
            user: who.and_then(|who| who.user.as_deref()),
            container: who.and_then(|who| who.container.as_deref()),
            orchestrator: who.and_then(|who| who.orchestrator.as_deref()),
            sockeye: Own {
                schema: SCHEMA,
                state: report.state.name(),
                reset_by: report.reset_by.map(|side| if side == Side::Initiator { "initiator" } else { "responder" }),
                not_counted: report.bypassed.then_some("sockmap"),
                other_peers: report.key.is_of_other_peers(),
                alpn: report.hello.as_deref().map_or(&[], |hello| &hello.alpn),
                responder_name: report.peer_name.as_deref().map(|name| Name {
                    one_of: name.names.iter().map(|name| &**name).collect(),
                    source: name.source.name(),
                }),
                delta: Delta { since: Time(report.since_unix_ns), sides: Sides::new(report, &report.delta) },
                total: Sides::new(report, &report.total),
                rtt_samples: report.rtt_samples.as_ref().map(|rtt| Samples {
                    samples: rtt.samples,
                    min_us: rtt.min_us,
                    mean_us: rtt.mean_us,
                    p99_us: rtt.p99_us,
                }),
                initiator: Local::new(report, Side::Initiator, initiator),
                responder: Local::new(report, Side::Responder, responder),
            },
        }
    }
}

/// Nanoseconds since the epoch, as RFC 3339 has them.
#[derive(Clone, Copy)]
struct Time(u64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Timestamp::from_nanosecond(self.0.into()).unwrap_or_default())
    }
}

/// Something as text, without memory for it.
struct Text<T>(T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
