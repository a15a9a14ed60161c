//! What ntopng is told of a flow: information elements, written to whatever encodes them.
//!
//! Ids are those of IPFIX (RFC 7012) below 57344 and ntop's own (base 57472) above.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use crate::flows::report::{FlowReport, Identity};
use crate::model::flow::{Addr, Counters, Proto, Side, State};
use crate::model::rtt::RttSummary;
use crate::names::hello::Hello;
use crate::names::table::Source;
use crate::owners::process::Process;
use crate::owners::workload::Workload;

/// An information element: its number, and the name under which ntopng's JSON parser knows it (empty = by number only).
pub(super) struct Element(pub(super) u32, pub(super) &'static str);

/// Takes elements. Text that is empty is left out: ntopng ignores it.
pub(super) trait Sink {
    fn uint(&mut self, element: &Element, value: u64);
    fn float(&mut self, element: &Element, value: f32);
    fn text(&mut self, element: &Element, text: &str);
    /// Under a name that ntopng does not know: it shows such text in a row of that name.
    fn row(&mut self, label: &str, text: &str);
}

const IN_BYTES: Element = Element(1, "IN_BYTES");
const IN_PKTS: Element = Element(2, "IN_PKTS");
const PROTOCOL: Element = Element(4, "PROTOCOL");
const L4_SRC_PORT: Element = Element(7, "L4_SRC_PORT");
const IPV4_SRC_ADDR: Element = Element(8, "IPV4_SRC_ADDR");
const L4_DST_PORT: Element = Element(11, "L4_DST_PORT");
const IPV4_DST_ADDR: Element = Element(12, "IPV4_DST_ADDR");
const LAST_SWITCHED: Element = Element(21, "LAST_SWITCHED");
const FIRST_SWITCHED: Element = Element(22, "FIRST_SWITCHED");
const OUT_BYTES: Element = Element(23, "OUT_BYTES");
const OUT_PKTS: Element = Element(24, "OUT_PKTS");
const IPV6_SRC_ADDR: Element = Element(27, "IPV6_SRC_ADDR");
const IPV6_DST_ADDR: Element = Element(28, "IPV6_DST_ADDR");
const IP_PROTOCOL_VERSION: Element = Element(60, "IP_PROTOCOL_VERSION");
const FLOW_END_REASON: Element = Element(136, "FLOW_END_REASON");
const CLIENT_TCP_FLAGS: Element = Element(57550, "");
const SERVER_TCP_FLAGS: Element = Element(57551, "");
const RETRANSMITTED_IN_PKTS: Element = Element(57581, "RETRANSMITTED_IN_PKTS");
const RETRANSMITTED_OUT_PKTS: Element = Element(57582, "RETRANSMITTED_OUT_PKTS");
const OOORDER_IN_PKTS: Element = Element(57583, "OOORDER_IN_PKTS");
const OOORDER_OUT_PKTS: Element = Element(57584, "OOORDER_OUT_PKTS");
const CLIENT_NW_LATENCY_MS: Element = Element(57595, "CLIENT_NW_LATENCY_MS");
const SERVER_NW_LATENCY_MS: Element = Element(57596, "SERVER_NW_LATENCY_MS");
const TCP_WIN_MAX_IN: Element = Element(57888, "");
const TCP_WIN_MAX_OUT: Element = Element(57892, "");
const TLS_SERVER_NAME: Element = Element(57660, "TLS_SERVER_NAME");
const HTTP_SITE: Element = Element(57833, "HTTP_SITE");
const DNS_QUERY: Element = Element(57677, "DNS_QUERY");
const DNS_QUERY_TYPE: Element = Element(57679, "DNS_QUERY_TYPE");
const DNS_RET_CODE: Element = Element(57680, "DNS_RET_CODE");
const NPROBE_IPV4_ADDRESS: Element = Element(57943, "NPROBE_IPV4_ADDRESS");
const L7_PROTO: Element = Element(57590, "L7_PROTO");
const L7_PROTO_RISK: Element = Element(57981, "L7_PROTO_RISK");
const FLOW_SOURCE: Element = Element(58051, "");

/// nDPI's risk "TCP Connection Issues" (`NDPI_TCP_ISSUES`), a bit of [`L7_PROTO_RISK`].
const RISK_TCP_ISSUES: u64 = 1 << 50;
/// A flag of TCP.
const SYN: u8 = 0x02;
/// [`FLOW_SOURCE`]: ntopng computes the throughput from the record's interval, and not by its own clock.
const SOURCE_INTERVALS: u64 = 1;

/// Elements of a process, for the side that connected and for the side that accepted.
struct ProcessElements {
    pid: Element,
    name: Element,
    uid: Element,
    user: Element,
    parent_pid: Element,
    parent_name: Element,
    parent_uid: Element,
    parent_user: Element,
    parent_package: Element,
    cmdline: Element,
    package: Element,
    container: Element,
    memory: Element,
    memory_peak: Element,
    rows: Labels,
}

/// Labels of the rows of one side.
struct Labels {
    cmdline: &'static str,
    ancestry: &'static str,
    ids: &'static str,
    unit: &'static str,
    image: &'static str,
    runtime: &'static str,
    container_id: &'static str,
    pod: &'static str,
    namespace: &'static str,
    pod_uid: &'static str,
    workload: &'static str,
    congestion: &'static str,
}

macro_rules! labels {
    ($side:literal) => {
        Labels {
            cmdline: concat!($side, " Command Line"),
            ancestry: concat!($side, " Ancestry"),
            ids: concat!($side, " UID / GID"),
            unit: concat!($side, " Systemd Unit"),
            image: concat!($side, " Container Image"),
            runtime: concat!($side, " Container Runtime"),
            container_id: concat!($side, " Container ID"),
            pod: concat!($side, " Kubernetes Pod"),
            namespace: concat!($side, " Namespace"),
            pod_uid: concat!($side, " Pod UID"),
            workload: concat!($side, " Workload"),
            congestion: concat!($side, " Congestion Control"),
        }
    };
}

const PROCESS: [ProcessElements; 2] = [
    ProcessElements {
        pid: Element(57640, "SRC_PROC_PID"),
        name: Element(57641, "SRC_PROC_NAME"),
        uid: Element(57897, "SRC_PROC_UID"),
        user: Element(57844, "SRC_PROC_USER_NAME"),
        parent_pid: Element(57845, "SRC_FATHER_PROC_PID"),
        parent_name: Element(57846, "SRC_FATHER_PROC_NAME"),
        parent_uid: Element(58036, "SRC_FATHER_PROC_UID"),
        parent_user: Element(58037, "SRC_FATHER_PROC_USER_NAME"),
        parent_package: Element(58033, "SRC_FATHER_PROC_PKG_NAME"),
        cmdline: Element(58028, "SRC_PROC_CMDLINE"),
        package: Element(58012, "SRC_PROC_PKG_NAME"),
        container: Element(58030, "SRC_PROC_CONTAINER_ID"),
        memory: Element(57855, ""),
        memory_peak: Element(57856, ""),
        rows: labels!("Client"),
    },
    ProcessElements {
        pid: Element(57847, "DST_PROC_PID"),
        name: Element(57848, "DST_PROC_NAME"),
        uid: Element(57898, "DST_PROC_UID"),
        user: Element(57849, "DST_PROC_USER_NAME"),
        parent_pid: Element(57850, "DST_FATHER_PROC_PID"),
        parent_name: Element(57851, "DST_FATHER_PROC_NAME"),
        parent_uid: Element(58039, "DST_FATHER_PROC_UID"),
        parent_user: Element(58040, "DST_FATHER_PROC_USER_NAME"),
        parent_package: Element(58035, "DST_FATHER_PROC_PKG_NAME"),
        cmdline: Element(58029, "DST_PROC_CMDLINE"),
        package: Element(58013, "DST_PROC_PKG_NAME"),
        container: Element(58031, "DST_PROC_CONTAINER_ID"),
        memory: Element(57859, ""),
        memory_peak: Element(57860, ""),
        rows: labels!("Server"),
    },
];

/// Who reports, and what of a flow goes into one record.
pub(super) struct Part<'a> {
    /// The IPv4 address of the agent; empty if it has none that others could know it by.
    pub(super) probe: &'a str,
    pub(super) counters: &'a Counters,
    /// Seconds since the epoch between which the counters were counted.
    pub(super) interval_s: [u64; 2],
    /// The counters of loss and order, which ntopng adds up in any case.
    pub(super) delta: &'a Counters,
}

/// Writes the elements of a record that are of the flow itself.
pub(super) fn write_flow(report: &FlowReport, part: &Part<'_>, sink: &mut impl Sink) {
    write_interval(report, part, sink);
    write_conversation(report, part, sink);
}

/// What was said of the flow besides who, when and how much.
fn write_conversation(report: &FlowReport, part: &Part<'_>, sink: &mut impl Sink) {
    if report.key.proto == Proto::Tcp {
        tcp_elements(report, part.delta, sink);
    }
    if let Some(name) = &report.peer_name {
        sink.row("Server Name", &format!("{name} (by {})", name.source.name()));
    }
    if let Some(hello) = &report.hello {
        site(hello, sink);
        sink.row("ALPN", &hello.alpn.join(" "));
    }
    if let Some(dns) = &report.dns {
        sink.text(&DNS_QUERY, &dns.name);
        sink.uint(&DNS_QUERY_TYPE, dns.rtype.into());
        if let Some(rcode) = dns.rcode {
            sink.uint(&DNS_RET_CODE, rcode.into());
        }
    }
    if let Some(translated) = &report.translated {
        sink.row("Translated To", &format!("{} → {}", translated.initiator, translated.responder));
    }
    if report.bypassed {
        sink.row("Bytes", "not counted: programs carry them past TCP (sockmap)");
    }
    if report.state.is_over() {
        sink.text(&FLOW_END_REASON, report.state.name());
    }
}

/// Writes the elements of a record that tells of the protocol above TCP or UDP: ntopng does not look at it in a record with
/// a process. It takes rows from the first record, so they are there as well.
pub(super) fn write_protocol(report: &FlowReport, part: &Part<'_>, protocol: &str, sink: &mut impl Sink) {
    write_interval(report, part, sink);
    if report.key.proto == Proto::Tcp {
        sink.uint(&CLIENT_TCP_FLAGS, SYN.into());
    }
    sink.text(&L7_PROTO, protocol);
    if let Some(hello) = &report.hello {
        site(hello, sink);
    }
    let mut rows = Rows(sink);
    write_conversation(report, part, &mut rows);
    for (side, identity) in Side::BOTH.into_iter().zip(&report.identity) {
        write_identity(side, identity, &mut rows);
    }
}

/// Of all that is written, rows alone.
struct Rows<'a, S>(&'a mut S);

impl<S: Sink> Sink for Rows<'_, S> {
    fn uint(&mut self, _: &Element, _: u64) {}

    fn float(&mut self, _: &Element, _: f32) {}

    fn text(&mut self, _: &Element, _: &str) {}

    fn row(&mut self, label: &str, text: &str) {
        self.0.row(label, text);
    }
}

fn site(hello: &Hello, sink: &mut impl Sink) {
    let element = if hello.source == Source::Http { &HTTP_SITE } else { &TLS_SERVER_NAME };
    sink.text(element, hello.name.as_deref().unwrap_or_default());
}

/// Which flow, when, and how much.
fn write_interval(report: &FlowReport, part: &Part<'_>, sink: &mut impl Sink) {
    let key = &report.key;
    let (src, dst) = (key.initiator.addr.ip(), key.responder.addr.ip());
    // A socket bound to an IPv6 address can only talk IPv6, so both are of one family.
    let v4 = src.is_ipv4() && dst.is_ipv4();
    let addresses = if v4 { [&IPV4_SRC_ADDR, &IPV4_DST_ADDR] } else { [&IPV6_SRC_ADDR, &IPV6_DST_ADDR] };
    sink.text(addresses[0], &address_text(key.initiator.addr, v4));
    sink.text(addresses[1], &address_text(key.responder.addr, v4));
    sink.uint(&L4_SRC_PORT, key.initiator.port.into());
    sink.uint(&L4_DST_PORT, key.responder.port.into());
    sink.uint(&PROTOCOL, key.proto.number().into());
    sink.uint(&IP_PROTOCOL_VERSION, if v4 { 4 } else { 6 });
    let [since_s, until_s] = part.interval_s;
    sink.uint(&FIRST_SWITCHED, since_s);
    sink.uint(&LAST_SWITCHED, until_s.max(since_s));
    sink.uint(&FLOW_SOURCE, SOURCE_INTERVALS);
    sink.uint(&IN_BYTES, part.counters.bytes[0]);
    sink.uint(&IN_PKTS, part.counters.packets[0]);
    sink.uint(&OUT_BYTES, part.counters.bytes[1]);
    sink.uint(&OUT_PKTS, part.counters.packets[1]);
    sink.text(&NPROBE_IPV4_ADDRESS, part.probe);
}

/// Writes the elements of who is behind one side.
pub(super) fn write_identity(side: Side, identity: &Identity, sink: &mut impl Sink) {
    let elements = &PROCESS[side as usize];
    if let Some(process) = &identity.process {
        process_elements(elements, process, sink);
    }
    if let Some(workload) = &identity.workload {
        workload_elements(elements, workload, sink);
    }
}

/// Whole seconds since the epoch.
pub(super) fn seconds(unix_ns: u64) -> u64 {
    unix_ns / 1_000_000_000
}

/// The address of an agent as text, if there is an element for it, and it tells agents apart.
pub(super) fn probe_text(probe: IpAddr) -> String {
    if probe.is_ipv4() && !probe.is_loopback() { probe.to_string() } else { String::new() }
}

/// IPv4-mapped text is not understood by ntopng, and `Ipv6Addr` prints it for the odd flow that mixes both.
fn address_text(addr: Addr, v4: bool) -> String {
    if !v4 {
        return Ipv6Addr::from(addr.0).to_string();
    }
    let mut text = String::with_capacity(15);
    for (i, byte) in addr.0[12..].iter().enumerate() {
        if i > 0 {
            text.push('.');
        }
        text.push_str(itoa::Buffer::new().format(*byte));
    }
    text
}

fn tcp_elements(report: &FlowReport, delta: &Counters, sink: &mut impl Sink) {
    let [client, server] = tcp_flags(report);
    sink.uint(&CLIENT_TCP_FLAGS, client.into());
    sink.uint(&SERVER_TCP_FLAGS, server.into());
    for (element, value) in [
        (&RETRANSMITTED_IN_PKTS, u64::from(delta.retrans[0])),
        (&RETRANSMITTED_OUT_PKTS, delta.retrans[1].into()),
        (&OOORDER_IN_PKTS, delta.out_of_order[0].into()),
        (&OOORDER_OUT_PKTS, delta.out_of_order[1].into()),
        (&TCP_WIN_MAX_IN, report.window_max[0].into()),
        (&TCP_WIN_MAX_OUT, report.window_max[1].into()),
    ] {
        if value > 0 {
            sink.uint(element, value);
        }
    }
    // ntopng adds the two halves up. Measured at one end, the round trip belongs to the other side.
    match report.rtt_us {
        [Some((us, _)), _] => sink.float(&SERVER_NW_LATENCY_MS, us as f32 / 1000.0),
        [None, Some((us, _))] => sink.float(&CLIENT_NW_LATENCY_MS, us as f32 / 1000.0),
        [None, None] => {}
    }
    if matches!(report.state, State::Refused | State::TimedOut | State::Unreachable) {
        sink.uint(&L7_PROTO_RISK, RISK_TCP_ISSUES);
    }
    if let Some(rtt) = &report.rtt_samples {
        sink.row("TCP RTT", &rtt_text(rtt));
    }
    for (side, name) in Side::BOTH.into_iter().zip(report.congestion) {
        if let Some(name) = name {
            sink.row(PROCESS[side as usize].rows.congestion, name);
        }
    }
}

/// `min 0.031 ms / average 0.045 ms / p99 0.120 ms (12 samples)`. Without `format!`, which takes a microsecond for
/// it: each short connection has one.
fn rtt_text(rtt: &RttSummary) -> String {
    let mut text = String::with_capacity(64);
    let mut digits = itoa::Buffer::new();
    for (name, us) in [("min ", rtt.min_us), (" ms / average ", rtt.mean_us), (" ms / p99 ", rtt.p99_us)] {
        text.push_str(name);
        text.push_str(digits.format(us / 1000));
        text.push('.');
        // The leading one keeps the zeros behind it.
        text.push_str(&digits.format(1000 + us % 1000)[1..]);
    }
    text.push_str(" ms (");
    text.push_str(digits.format(rtt.samples));
    text.push_str(if rtt.samples == 1 { " sample)" } else { " samples)" });
    text
}

/// The flags that each side has sent so far, from which ntopng derives the state.
fn tcp_flags(report: &FlowReport) -> [u8; 2] {
    const FIN: u8 = 0x01;
    const RST: u8 = 0x04;
    const PSH_ACK: u8 = 0x18;
    const ACK: u8 = 0x10;
    const OPEN: u8 = SYN | PSH_ACK;
    match report.state {
        State::Connecting | State::Unreachable | State::TimedOut | State::Aborted if report.total.packets[1] == 0 => {
            [SYN, 0]
        }
        State::Refused => [SYN, RST | ACK],
        State::Closed => [OPEN | FIN, OPEN | FIN],
        State::Reset => match report.reset_by {
            Some(Side::Responder) => [OPEN, OPEN | RST],
            _ => [OPEN | RST, OPEN],
        },
        _ => [OPEN, OPEN],
    }
}

/// Writes what makes ntopng take a record as one of a process, and nothing that it has heard already.
pub(super) fn write_mark(side: Side, identity: &Identity, sink: &mut impl Sink) {
    let elements = &PROCESS[side as usize];
    if let Some(process) = &identity.process {
        sink.uint(&elements.pid, process.key.pid.into());
        sink.text(&elements.name, process.path_or_name());
    }
}

fn process_elements(elements: &ProcessElements, process: &Process, sink: &mut impl Sink) {
    sink.uint(&elements.pid, process.key.pid.into());
    sink.text(&elements.name, process.path_or_name());
    sink.uint(&elements.uid, process.uid.into());
    sink.text(&elements.user, process.user.as_deref().unwrap_or_default());
    sink.text(&elements.cmdline, &process.cmdline);
    sink.text(&elements.package, process.package.as_deref().unwrap_or_default());
    if process.ppid > 0 {
        sink.uint(&elements.parent_pid, process.ppid.into());
        sink.text(&elements.parent_name, &process.parent_name);
        sink.uint(&elements.parent_uid, process.parent_uid.into());
        sink.text(&elements.parent_user, process.parent_user.as_deref().unwrap_or_default());
        sink.text(&elements.parent_package, process.parent_package.as_deref().unwrap_or_default());
    }
    if let Some(memory) = process.memory {
        sink.uint(&elements.memory, memory.resident_kib);
        sink.uint(&elements.memory_peak, memory.peak_kib);
    }
    let named = |id: u32, name: Option<&str>| name.map_or(id.to_string(), |name| format!("{id} ({name})"));
    let (user, group) = (named(process.uid, process.user.as_deref()), named(process.gid, process.group.as_deref()));
    sink.row(elements.rows.cmdline, &process.cmdline);
    sink.row(elements.rows.ancestry, &ancestry(process));
    sink.row(elements.rows.ids, &format!("{user} / {group}"));
}

/// `systemd(1) > sshd(812) > bash(4000)`: the parents, the first process first.
fn ancestry(process: &Process) -> String {
    let mut text = String::new();
    if process.ppid > 0 {
        for (name, pid) in process.ancestors.iter().rev() {
            let _ = write!(text, "{name}({pid}) > ");
        }
        let _ = write!(text, "{}({})", process.parent_name, process.ppid);
    }
    text
}

/// ntopng has one field for a container, and none for pods and services: the rest goes into rows.
fn workload_elements(elements: &ProcessElements, workload: &Workload, sink: &mut impl Sink) {
    sink.text(&elements.container, &workload.label().unwrap_or_default());
    let (container, pod) = (workload.container.as_ref(), workload.pod.as_ref());
    // A unit has a row already.
    let controller = workload.controller().filter(|_| container.is_some()).map(|controller| controller.to_string());
    let of_pod = |field: fn(&crate::owners::workload::Pod) -> &str| pod.map_or("", field);
    let rows = &elements.rows;
    for (label, text) in [
        (rows.unit, workload.unit.as_deref().unwrap_or_default()),
        (rows.image, container.map_or("", |container| &container.image)),
        (rows.runtime, container.map_or("", |container| container.runtime.name())),
        (rows.container_id, container.map_or("", |container| &container.id)),
        (rows.pod, of_pod(|pod| &pod.name)),
        (rows.namespace, of_pod(|pod| &pod.namespace)),
        (rows.pod_uid, of_pod(|pod| &pod.uid)),
        (rows.workload, controller.as_deref().unwrap_or_default()),
    ] {
        sink.row(label, text);
    }
}
