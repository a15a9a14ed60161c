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

use std::collections::VecDeque;

use hashbrown::HashMap;
use sockeye_bpf::records::{Kind, PayloadHead, PayloadRecord};

use crate::model::flow::{Addr, ProcKey};
use dns::Message;
use hello::Hellos;
use service::{Client, Service};
use table::{Asker, NameTable};

/// Messages that wait for those that were sent before them and are on their way, bytes of the heads included.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// Messages that are read at a time: of more, the rest is left out, and counted.
const READ_MAX: usize = 5000;
/// Answers wait so long for connections that were made before them, and so many of them.
const ANSWERS_WAIT_NS: u64 = 3_000_000_000;
const ANSWERS_WAIT_MAX: usize = 8192;
/// Segments that hold nothing but the length of a message.
const LENGTHS_MAX: usize = 1024;
/// When messages were left out, what was asked then is not known: for so long no connection has a name.
const BLIND_NS: u64 = 60_000_000_000;

/// Sockets of TCP have one peer.
pub const NO_PEER: Addr = Addr([0; 16]);

/// Where a process lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Its cgroup, 0 = not known.
    pub cgroup_id: u64,
    /// That is one of a container.
    pub is_container: bool,
}

impl Place {
    /// Somebody who lives there, as who may ask.
    #[must_use]
    pub fn asker(self, process: ProcKey, netns: u32) -> Asker {
        Asker { process, container: if self.is_container { self.cgroup_id } else { 0 }, netns }
    }
}

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
    /// Answers that were read and are not in the table yet, in the order in which they came.
    answers: VecDeque<(Asker, Message, u64)>,
    /// What was sent up to this moment has been read.
    read_through_ns: u64,
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
    pub fn take<'a>(&mut self, messages: impl Iterator<Item = PayloadRecord<'a>>, now_ns: u64) {
        for message in messages {
            let bytes = size_of::<PayloadHead>() + message.message.len();
            if self.inbox_bytes + bytes > INBOX_BYTES_MAX {
                self.leave_out(1, now_ns);
                continue;
            }
            self.inbox_bytes += bytes;
            self.inbox.push((*message.head, message.message.into()));
        }
    }

    /// Reads what was sent up to a moment, in that order, for [`Self::learn`]. `place` says where a process lives.
    pub fn read(&mut self, through_ns: u64, now_ns: u64, place: &impl Fn(ProcKey) -> Place) {
        self.read_through_ns = through_ns.min(now_ns);
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
            self.read_one(head, bytes, place);
        }
    }

    fn read_one(&mut self, head: &PayloadHead, bytes: &[u8], place: &impl Fn(ProcKey) -> Place) {
        if head.kind == Kind::Hello as u8 {
            if head.is_tcp == 0 {
                self.hellos.datagram((head.cookie, Addr(head.remote_addr)), bytes, head.at_ns);
            } else {
                self.hellos.segment((head.cookie, NO_PEER), bytes, head.at_ns);
            }
            return;
        }
        if head.is_tcp == 0 {
            self.read_message(head, bytes, place);
            return;
        }
        let key = (head.cookie, head.sent);
        let mut expected = self.lengths.remove(&key);
        for message in dns::in_segment(bytes, head.bytes as usize, &mut expected) {
            self.read_message(head, message, place);
        }
        if let Some(length) = expected {
            if self.lengths.len() >= LENGTHS_MAX {
                self.lengths.clear();
            }
            self.lengths.insert(key, length);
        }
    }

    fn read_message(&mut self, head: &PayloadHead, bytes: &[u8], place: &impl Fn(ProcKey) -> Place) {
        let Some(message) = Message::parse(bytes).filter(|message| message.is_answer != (head.sent != 0)) else {
            return;
        };
        let process = ProcKey::new(head.pid, head.start_ticks, head.flags);
        let place = place(process);
        let server = Addr(head.remote_addr).ip();
        let client = Client { cookie: head.cookie, process, cgroup_id: place.cgroup_id, server };
        if head.sent != 0 {
            self.service.ask(&client, &message, head.at_ns);
        } else if self.service.answer(&client, &message, head.at_ns) && message.is_host && process.is_known() {
            self.answers.push_back((place.asker(process, head.netns), message, head.at_ns));
        }
    }

    /// Learns what was told up to a moment. Call it for each connection with the moment at which it was made: of a process that
    /// asks for the same names again and again, the table knows the last few times only.
    pub fn learn(&mut self, through_ns: u64) {
        while self.answers.len() > ANSWERS_WAIT_MAX || self.answers.front().is_some_and(|told| told.2 <= through_ns) {
            let Some((asker, message, at_ns)) = self.answers.pop_front() else { break };
            self.table.learn(asker, &message.name, &message.addresses, at_ns);
        }
    }

    /// Learns what no connection waits for any more. Not by the clock: where the agent gets little CPU, what is known of
    /// connections is behind it as well.
    pub fn learn_rest(&mut self) {
        self.learn(self.read_through_ns.saturating_sub(ANSWERS_WAIT_NS));
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

    /// What was asked before this moment may not have been read: nobody knows what a connection of then means.
    #[must_use]
    pub fn is_blind(&self, opened_ns: u64) -> bool {
        (self.blind_ns[0]..self.blind_ns[1]).contains(&opened_ns)
    }

    /// Nothing is known, and nothing waits to be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let waits = !self.inbox.is_empty() || !self.answers.is_empty();
        self.table.is_empty() && !waits && self.hellos.is_empty() && self.service.total().queries == 0
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now_ns: u64) {
        self.table.expire(now_ns);
        self.hellos.expire(now_ns);
        self.service.expire_waiting(now_ns);
        self.service.expire_groups(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections of then may not have been told of: the workers are behind.
    #[test]
    fn answers_wait_for_the_workers_and_not_for_the_clock() {
        const S: u64 = 1_000_000_000;
        let message = Message {
            id: 1,
            is_answer: true,
            rcode: 0,
            truncated: false,
            name: "example.org".into(),
            is_host: true,
            rtype: 1,
            addresses: vec![([203, 0, 113, 7].into(), 60)],
        };
        let asker = Place::default().asker(ProcKey { pid: 1, start_ticks: 1, exec: 0 }, 1);
        let mut names = Names { answers: [(asker, message, 100 * S)].into(), ..Names::default() };
        let place = |_| Place::default();
        names.read(102 * S, 110 * S, &place);
        names.learn_rest();
        assert_eq!((names.answers.len(), names.table.len()), (1, 0));
        names.read(103 * S, 110 * S, &place);
        names.learn_rest();
        assert_eq!((names.answers.len(), names.table.len()), (0, 1));
    }
}
