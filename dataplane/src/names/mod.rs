//! What the far end of a connection is called: by what its process has asked DNS, and by what a client itself says at its
//! beginning. All of it is hostile input: whatever is not certain is none.

pub mod dns;
pub mod hello;
pub mod hosts;
pub mod http;
pub mod quic;
pub mod service;
pub mod table;
pub mod tls;

use std::sync::Arc;

use hashbrown::HashMap;
use sockeye_bpf::records::{Kind, PayloadHead};

use crate::flows::report::FlowReport;
use crate::ingest::messages::Messages;
use crate::model::flow::{Addr, ProcKey, Proto, Side};
use crate::owners::process::ProcessTable;
use dns::Message;
use hello::Hellos;
use service::{Client, Service};
use table::{Asker, Connection, NameTable, PeerName};

/// Messages that wait for those that were sent before them and are on their way, bytes of the heads included.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// Messages that are read at a time: of more, the rest is left out, and counted.
const READ_MAX: usize = 5000;
/// Segments that hold nothing but the length of a message.
const LENGTHS_MAX: usize = 1024;
/// Parents whose names are looked at.
const ANCESTORS_MAX: usize = 8;
/// When messages were left out, what was asked then is not known: for so long no connection has a name.
const BLIND_NS: u64 = 60_000_000_000;

/// Sockets of TCP have one peer.
const NO_PEER: Addr = Addr([0; 16]);

/// All that is known of names. Owned by the control thread.
#[derive(Default)]
pub struct Names {
    /// Names by address.
    pub table: NameTable,
    /// Questions and answers.
    pub service: Service,
    /// What clients say themselves.
    pub hellos: Hellos,
    inbox: Vec<(PayloadHead, Box<[u8]>)>,
    inbox_bytes: usize,
    lengths: HashMap<(u64, u8), u16, ahash::RandomState>,
    /// Messages that were more than can be read.
    left_out: u64,
    /// The same that the kernel had counted when last looked at.
    left_out_by_kernel: u64,
    blind_ns: [u64; 2],
}

impl Names {
    /// Messages that were read by nobody, those apart that the kernel has counted.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Takes what a shard has brought. It is read when everything that was sent before has come.
    pub fn take(&mut self, messages: &Messages, now_ns: u64) {
        for message in messages.iter() {
            let bytes = size_of::<PayloadHead>() + message.message.len();
            if self.inbox_bytes + bytes > INBOX_BYTES_MAX {
                self.leave_out(1, now_ns);
                continue;
            }
            self.inbox_bytes += bytes;
            self.inbox.push((*message.head, message.message.into()));
        }
    }

    /// Reads what was sent up to a moment, in that order.
    pub fn read(&mut self, through_ns: u64, processes: &ProcessTable, now_ns: u64) {
        if self.inbox.is_empty() {
            return;
        }
        self.inbox.sort_by_key(|(head, _)| head.at_ns);
        let count = self.inbox.partition_point(|(head, _)| head.at_ns <= through_ns);
        let read: Vec<_> = self.inbox.drain(..count).collect();
        self.inbox_bytes -= read.iter().map(|(_, message)| size_of::<PayloadHead>() + message.len()).sum::<usize>();
        let excess = read.len().saturating_sub(READ_MAX);
        self.leave_out(excess as u64, now_ns);
        for (head, bytes) in read.iter().take(READ_MAX) {
            self.read_one(head, bytes, processes);
        }
    }

    fn read_one(&mut self, head: &PayloadHead, bytes: &[u8], processes: &ProcessTable) {
        if head.kind == Kind::Hello as u8 {
            if head.is_tcp == 0 {
                self.hellos.datagram((head.cookie, Addr(head.remote_addr)), bytes, head.at_ns);
            } else {
                self.hellos.segment((head.cookie, NO_PEER), bytes, head.at_ns);
            }
            return;
        }
        if head.is_tcp == 0 {
            self.read_message(head, bytes, processes);
            return;
        }
        let key = (head.cookie, head.sent);
        let mut expected = self.lengths.remove(&key);
        for message in dns::in_segment(bytes, head.bytes as usize, &mut expected) {
            self.read_message(head, message, processes);
        }
        if let Some(length) = expected {
            if self.lengths.len() >= LENGTHS_MAX {
                self.lengths.clear();
            }
            self.lengths.insert(key, length);
        }
    }

    fn read_message(&mut self, head: &PayloadHead, bytes: &[u8], processes: &ProcessTable) {
        let Some(message) = Message::parse(bytes).filter(|message| message.is_answer != (head.sent != 0)) else {
            return;
        };
        let process = ProcKey::new(head.pid, head.start_ticks, head.flags);
        let cgroup_id = processes.peek(process).map_or(0, |process| process.cgroup_id);
        let server = Addr(head.remote_addr).ip();
        let client = Client { cookie: head.cookie, process, cgroup_id, server };
        if head.sent != 0 {
            self.service.ask(&client, &message, head.at_ns);
        } else if self.service.answer(&client, &message, head.at_ns) && message.is_host && process.is_known() {
            let asker = asker_of(process, head.netns, processes);
            self.table.learn(asker, &message.name, &message.addresses, head.at_ns);
        }
    }

    fn leave_out(&mut self, count: u64, now_ns: u64) {
        if count > 0 {
            self.left_out += count;
            self.go_blind(now_ns);
        }
    }

    /// Messages were lost some time before: what was asked then may be what a connection means.
    fn go_blind(&mut self, now_ns: u64) {
        let since_ns = now_ns.saturating_sub(BLIND_NS / 6);
        if self.blind_ns[1] < since_ns {
            self.blind_ns[0] = since_ns;
        }
        self.blind_ns[1] = now_ns + BLIND_NS;
    }

    /// How many messages the kernel has left out or lost so far.
    pub fn kernel_left_out(&mut self, count: u64, now_ns: u64) {
        if count > self.left_out_by_kernel {
            self.left_out_by_kernel = count;
            self.go_blind(now_ns);
        }
    }

    /// Nothing is known, and nothing waits to be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty() && self.inbox.is_empty() && self.hellos.is_empty() && self.service.total().queries == 0
    }

    /// Names the far ends of flows that are told of for the first time, and says what was asked over those to DNS servers.
    pub fn name_reports(&mut self, reports: &mut [FlowReport], processes: &ProcessTable) -> Vec<(u32, Arc<PeerName>)> {
        let wants = |report: &&mut FlowReport| report.first && report.local[Side::Initiator as usize];
        let mut first: Vec<&mut FlowReport> = reports.iter_mut().filter(wants).collect();
        first.sort_by_key(|report| report.opening.at_ns);
        let mut named = Vec::new();
        for report in first {
            if report.key.responder.port == 53 {
                report.dns = self.service.last_of(report.opening.cookie).cloned().map(Arc::new);
            }
            let key = &report.key;
            let peer = if key.proto == Proto::Udp { key.responder.addr } else { NO_PEER };
            report.hello = self.hellos.of((report.opening.cookie, peer), report.opening.at_ns).cloned();
            let asked = self.name_of(report, processes);
            let said = report.hello.as_deref().filter(|hello| hello.is_peer);
            let said = said.and_then(|hello| Some(PeerName { names: vec![hello.name.clone()?], source: hello.source }));
            if let Some(name) = said.or(asked).map(Arc::new) {
                report.peer_name = Some(Arc::clone(&name));
                named.push((report.opening.place, name));
            }
        }
        named
    }

    fn name_of(&mut self, report: &FlowReport, processes: &ProcessTable) -> Option<PeerName> {
        let owner = report.owners[Side::Initiator as usize];
        let is_blind = (self.blind_ns[0]..self.blind_ns[1]).contains(&report.opening.at_ns);
        // When one was opened that is older than the agent, nobody knows.
        if self.table.is_empty() || report.opening.at_ns == 0 || is_blind || !owner.is_known() {
            return None;
        }
        let mut ancestors = [0; ANCESTORS_MAX];
        let process = processes.peek(owner);
        let pids =
            process.map(|process| std::iter::once(process.ppid).chain(process.ancestors.iter().map(|(_, pid)| *pid)));
        ancestors.iter_mut().zip(pids.into_iter().flatten()).for_each(|(to, pid)| *to = pid);
        let known = ancestors.iter().position(|pid| *pid == 0).unwrap_or(ANCESTORS_MAX);
        self.table.name_of(&Connection {
            asker: asker_of(owner, report.opening.netns, processes),
            ancestors: &ancestors[..known],
            address: report.key.responder.addr.ip(),
            opened_ns: report.opening.at_ns,
        })
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now_ns: u64) {
        self.table.expire(now_ns);
        self.hellos.expire(now_ns);
        self.service.expire_waiting(now_ns);
        self.service.expire_groups(now_ns);
    }
}

fn asker_of(process: ProcKey, netns: u32, processes: &ProcessTable) -> Asker {
    let workload = processes.workload(process).filter(|workload| workload.container.is_some());
    let cgroup_id = || processes.peek(process).map_or(0, |process| process.cgroup_id);
    Asker { process, container: workload.map_or(0, |_| cgroup_id()), netns }
}
