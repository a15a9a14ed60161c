//! The kernel: connections begin, carry data and end, and the programs tell of it in the way in which those of
//! `bpf/src/bpf/` do.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use sockeye_bpf::records::{CloseRecord, FlowRecord, Kind, flags};
use sockeye_bpf::scan::Scanned;
use zerocopy::FromZeros;

use super::datagrams::Datagrams;
use super::plan::{Plan, Rng, faults};
use super::ring::{Entry, SimulatedRing};
use super::tcp::{Connection, Figures, Phase, Socket, Told, placed};
use crate::model::flow::{Side, tcp_state as s};

const ECONNRESET: u8 = 104;
const ETIMEDOUT: u8 = 110;
const ECONNREFUSED: u8 = 111;
/// By so much clocks of CPUs differ at most.
pub(super) const SKEW_NS: u64 = 5_000;

/// What the programs have counted.
#[derive(Debug, Default)]
pub(super) struct Losses {
    pub(super) closes: u64,
    pub(super) udp_closes: u64,
    pub(super) datagrams: u64,
    /// Ends that nobody tracked.
    pub(super) untracked: u64,
    /// Closes by a process that were not told of.
    pub(super) shuts: u64,
}

pub(super) struct Kernel {
    pub(super) plan: Plan,
    pub(super) clock: Rc<Cell<u64>>,
    pub(super) rng: Rng,
    pub(super) rings: Vec<SimulatedRing>,
    skews: Vec<u64>,
    pub(super) overflow: BTreeMap<u64, CloseRecord>,
    overflow_max: usize,
    pub(super) connections: Vec<Connection>,
    pub(super) udp: Datagrams,
    pub(super) losses: Losses,
    /// Nothing happens while the scan looks.
    pub(super) calm: bool,
}

impl Kernel {
    pub(super) fn new(plan: Plan, clock: &Rc<Cell<u64>>) -> Self {
        let mut rng = Rng::new(plan.seed);
        let small = plan.has(faults::SMALL_RINGS);
        let cpus = 1 + rng.index(4);
        let ring_bytes = if small { 500 + rng.index(1500) } else { 1 << 20 };
        let mut skew = || SKEW_NS + if plan.has(faults::SKEW) { rng.below(SKEW_NS) } else { 0 };
        Self {
            plan,
            clock: Rc::clone(clock),
            rings: (0..cpus).map(|_| SimulatedRing::new(clock, ring_bytes)).collect(),
            skews: (0..cpus).map(|_| skew()).collect(),
            overflow: BTreeMap::new(),
            overflow_max: if small { 2 } else { 16_384 },
            connections: Vec::new(),
            udp: Datagrams::new(plan.udp, if small { 3 } else { 1000 }),
            losses: Losses::default(),
            calm: false,
            rng,
        }
    }

    /// Time goes on by a little.
    pub(super) fn pass(&mut self, at_most_ns: u64) {
        self.clock.set(self.clock.get() + 1 + self.rng.below(at_most_ns));
    }

    /// A CPU, and its clock.
    fn cpu(&mut self) -> (usize, u64) {
        let cpu = self.rng.index(self.rings.len());
        (cpu, self.clock.get() - SKEW_NS + self.skews[cpu])
    }

    /// Into the ring of a CPU, where it is not whole at once.
    pub(super) fn write(&mut self, cpu: usize, at_ns: u64, entry: Entry) -> bool {
        let slow = self.plan.has(faults::RACES) && self.rng.chance(10);
        let wait_ns = if slow { self.rng.below(300_000_000) } else { 0 };
        self.rings[cpu].write(entry, at_ns, self.clock.get() + wait_ns)
    }

    /// The same where a record that finds no room is for nobody.
    pub(super) fn offer(&mut self, entry: impl FnOnce(u64) -> Entry) -> bool {
        let (cpu, at_ns) = self.cpu();
        self.write(cpu, at_ns, entry(at_ns))
    }

    pub(super) fn has_written_all(&self) -> bool {
        self.rings.iter().all(|ring| ring.oldest_ns().is_none()) && self.overflow.is_empty()
    }

    fn socket(&mut self, number: usize, side: Side) -> &mut Socket {
        self.connections[number].socket(side)
    }

    /// Something happens: a new connection, or something on one that is there.
    pub(super) fn act(&mut self) {
        let full = self.connections.len() as u64 >= self.plan.tcp;
        if !full && self.rng.chance(30) {
            self.connect();
        } else if !self.connections.is_empty() {
            let number = self.rng.index(self.connections.len());
            self.go_on(number);
        }
        self.pass(10_000);
    }

    fn connect(&mut self) {
        let number = self.connections.len();
        let mut new = placed(number as u32, self.plan.faults, &mut self.rng);
        if self.plan.has(faults::AGAIN) && self.rng.chance(60) {
            let mut free = self.connections.iter().filter(|old| old.phase == Phase::Over && old.sockets[0].here);
            let last_of = |old: &&Connection| {
                !self
                    .connections
                    .iter()
                    .skip(old.number as usize + 1)
                    .any(|c| c.sockets[0].cookie == old.sockets[0].cookie)
            };
            if let Some(old) = free.find(last_of).filter(|_| new.sockets[0].here) {
                new.sockets[0].cookie = old.sockets[0].cookie;
            }
        }
        let socket = new.socket(Side::Initiator);
        (socket.state, socket.tracked, socket.held) = (s::SYN_SENT, true, true);
        socket.opened_ns = self.clock.get();
        socket.figures.packets_sent = 1;
        self.connections.push(new);
    }

    /// What comes next in the life of a connection.
    pub(super) fn go_on(&mut self, number: usize) {
        let dice = self.rng.below(100);
        let side = Side::BOTH[self.rng.index(2)];
        match self.connections[number].phase {
            Phase::Connecting if dice < 60 => self.establish(number),
            Phase::Connecting if dice < 80 => self.fail(number, dice),
            Phase::Open if dice < 60 => self.connections[number].transfer(side, &mut self.rng),
            Phase::Open if dice < 72 => self.read(number, side),
            Phase::Open if dice < 84 => self.shut(number, side),
            Phase::Open if dice < 88 => self.reset(number, side),
            Phase::HalfClosed(first) if dice < 40 => {
                self.connections[number].transfer(first.other(), &mut self.rng);
            }
            Phase::HalfClosed(first) if dice < 70 => self.finish(number, first),
            Phase::HalfClosed(first) if dice < 80 => {
                self.close(number, first, s::FIN_WAIT2, 0);
                self.connections[number].phase = Phase::Widowed(first.other());
            }
            Phase::HalfClosed(_) if dice < 85 => self.reset(number, side),
            Phase::LastAck(left) if dice < 5 => {
                self.close(number, left, s::LAST_ACK, 0);
                self.connections[number].phase = Phase::Over;
            }
            Phase::Widowed(left) if dice < 20 => {
                self.shut_socket(number, left, s::LAST_ACK);
                self.close(number, left, s::LAST_ACK, 0);
                self.connections[number].phase = Phase::Over;
            }
            _ => {}
        }
    }

    fn establish(&mut self, number: usize) {
        let opened_ns = self.clock.get();
        let connection = &mut self.connections[number];
        let [initiator, responder] = &mut connection.sockets;
        (responder.seq_remote, initiator.seq_remote) = (initiator.seq_local, responder.seq_local.wrapping_sub(1));
        (responder.opened_ns, responder.tracked, responder.held) = (opened_ns, true, true);
        responder.flags = flags::ROLE_RESPONDER;
        for socket in [initiator, responder] {
            socket.state = s::ESTABLISHED;
        }
        connection.phase = Phase::Open;
        connection.socket(Side::Responder).figures.packets_received = 1;
        connection.segment(Side::Responder);
        connection.segment(Side::Initiator);
    }

    fn fail(&mut self, number: usize, dice: u64) {
        let error = [0, ECONNREFUSED, ETIMEDOUT][dice as usize % 3];
        self.close(number, Side::Initiator, s::SYN_SENT, error);
        self.connections[number].phase = Phase::Over;
    }

    /// A process reads: it is the owner from now on.
    fn read(&mut self, number: usize, side: Side) {
        let passes_on = self.rng.chance(30);
        let socket = self.socket(number, side);
        if !socket.is_open() || !socket.tracked {
            return;
        }
        let same = !passes_on || socket.pid % 4 == 3;
        if !same {
            socket.pid += 1;
            socket.owner_changes += 1;
        }
        socket.flags |= flags::OWNER_CONFIRMED;
    }

    /// A process closes its end, and the other side hears of it.
    fn shut(&mut self, number: usize, side: Side) {
        self.shut_socket(number, side, s::FIN_WAIT1);
        let connection = &mut self.connections[number];
        connection.segment(side);
        connection.segment(side.other());
        connection.socket(side).state = s::FIN_WAIT2;
        connection.socket(side.other()).state = s::CLOSE_WAIT;
        connection.phase = Phase::HalfClosed(side);
    }

    /// `on_shut()` of the programs.
    fn shut_socket(&mut self, number: usize, side: Side, state: u8) {
        let socket = self.socket(number, side).clone();
        if socket.is_open() && socket.tracked {
            let mut told = None;
            let is_missed = self.plan.has(faults::MISSES) && self.rng.chance(20);
            if !is_missed
                && self.offer(|at_ns| Entry::Flow(*told.insert(socket.record(side, Kind::Scan, state, at_ns))))
                && let Some(record) = told
            {
                self.socket(number, side).tell(&record);
            } else {
                self.losses.shuts += 1;
                self.socket(number, side).told.shut_dropped = true;
            }
        }
        let socket = self.socket(number, side);
        (socket.state, socket.held) = (state, false);
        self.pass(1000);
    }

    /// The other side closes, too.
    fn finish(&mut self, number: usize, first: Side) {
        self.shut_socket(number, first.other(), s::LAST_ACK);
        self.connections[number].segment(first.other());
        self.connections[number].segment(first);
        if self.rng.chance(20) {
            self.close(number, first, s::FIN_WAIT2, 0);
            self.connections[number].phase = Phase::LastAck(first.other());
            return;
        }
        let mut ends = [(first, s::FIN_WAIT2), (first.other(), s::LAST_ACK)];
        self.rng.shuffle(&mut ends);
        for (side, state) in ends {
            self.close(number, side, state, 0);
        }
        self.connections[number].phase = Phase::Over;
    }

    fn reset(&mut self, number: usize, by: Side) {
        let left = self.connections[number].sockets.each_ref().map(|socket| socket.state);
        self.close(number, by, left[by as usize], 0);
        // It is sent after the state was told.
        self.connections[number].segment(by);
        self.close(number, by.other(), left[by.other() as usize], ECONNRESET);
        self.connections[number].phase = Phase::Over;
    }

    /// `on_close()` of the programs.
    fn close(&mut self, number: usize, side: Side, left: u8, error: u8) {
        let socket = self.socket(number, side);
        if !socket.here || socket.state == s::CLOSE {
            return;
        }
        socket.error = error;
        if socket.tracked {
            self.tell_close(number, side, left);
        } else {
            self.losses.untracked += 1;
        }
        let socket = self.socket(number, side);
        (socket.state, socket.held) = (s::CLOSE, false);
        self.pass(1000);
    }

    fn tell_close(&mut self, number: usize, side: Side, left: u8) {
        let (cpu, at_ns) = self.cpu();
        let flow = self.socket(number, side).record(side, Kind::Close, left, at_ns);
        let close = CloseRecord { flow, samples_us: [0; _] };
        if !self.write(cpu, at_ns, Entry::Close(close)) {
            let full = self.overflow.len() >= self.overflow_max || self.overflow.contains_key(&flow.cookie);
            if full {
                self.losses.closes += 1;
                self.socket(number, side).told.close_lost = true;
                return;
            }
            self.overflow.insert(flow.cookie, close);
        }
        self.socket(number, side).tell(&flow);
    }

    /// The socket scan. Things happen to a socket while it is looked at. `each` says whether it wants to know.
    pub(super) fn scan(&mut self, all: bool, mut each: impl FnMut(Scanned<'_>) -> bool) {
        for listener in &self.listeners() {
            each(Scanned::Socket(listener));
        }
        let mut order: Vec<(usize, Side)> =
            (0..self.connections.len()).flat_map(|number| Side::BOTH.map(|side| (number, side))).collect();
        self.rng.shuffle(&mut order);
        let sees_orphans = !self.plan.has(faults::BLIND_SCANS);
        for (number, side) in order {
            if !self.socket(number, side).is_scanned(sees_orphans) {
                continue;
            }
            let state = self.socket(number, side).state;
            self.race(number);
            let mark = self.socket(number, side).mark(state);
            if mark == self.socket(number, side).scanned && !all {
                each(Scanned::Same(self.socket(number, side).cookie));
                continue;
            }
            self.race(number);
            let at_ns = self.cpu().1;
            self.race(number);
            let socket = self.socket(number, side);
            let record = socket.record(side, Kind::Scan, state, at_ns);
            socket.scanned = mark;
            if each(Scanned::Socket(&record)) {
                socket.tell(&record);
            }
            self.pass(2000);
        }
    }

    fn race(&mut self, number: usize) {
        if self.plan.has(faults::RACES) && !self.calm && self.rng.chance(15) {
            self.go_on(number);
        }
    }

    /// Something listens at the ports of all responders.
    fn listeners(&self) -> [FlowRecord; 2] {
        [1, 2].map(|netns| {
            let mut r = FlowRecord::new_zeroed();
            (r.kind, r.flags, r.state) = (Kind::Listener as u8, flags::ROLE_LISTENER, s::LISTEN);
            (r.local_port, r.netns, r.cookie, r.at_ns) = (8080, netns, u64::MAX - u64::from(netns), self.clock.get());
            r
        })
    }

    /// A process ends all that is open.
    pub(super) fn end_all(&mut self) {
        for number in 0..self.connections.len() {
            while self.connections[number].phase != Phase::Over {
                self.go_on(number);
                self.pass(10_000);
            }
        }
    }

    /// The agent is gone, and another one comes: what is open then is older than it.
    pub(super) fn forget(&mut self) {
        for connection in &mut self.connections {
            for (side, socket) in Side::BOTH.into_iter().zip(&mut connection.sockets) {
                // How often they have wrapped before is known to nobody.
                let Figures { packets_sent, packets_received, .. } = &mut socket.figures;
                (*packets_sent, *packets_received) = (*packets_sent & 0xffff_ffff, *packets_received & 0xffff_ffff);
                socket.told = Told { before: socket.figures, ..Told::default() };
                (socket.tracked, socket.scanned, socket.owner_changes) = (socket.is_open() && socket.held, 0, 0);
                socket.opened_ns = 0;
                socket.flags = flags::PRE_EXISTING
                    | match (socket.state, side) {
                        (s::SYN_SENT, _) => flags::ROLE_INITIATOR | flags::OWNER_CONFIRMED,
                        (_, Side::Initiator) => flags::ROLE_UNKNOWN,
                        (_, Side::Responder) => flags::ROLE_RESPONDER,
                    };
                if connection.phase == Phase::Over {
                    socket.told.before = Figures::default();
                }
            }
        }
        self.losses = Losses::default();
        self.udp.forget();
    }
}
