//! DNS as a service: who asks which server for what, how long the answer takes, and which do not come.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::dns::Message;
use crate::model::flow::ProcKey;
use crate::model::rtt::RttStats;

/// A question without an answer for so long had none: resolvers of programs ask again after 5 s.
const TIMEOUT_NS: u64 = 5_000_000_000;
/// Questions that wait for their answer.
const WAITING_MAX: usize = 16_384;
/// What the sockets that were used last have asked is known, of so many.
const LAST_MAX: usize = 16_384;
/// Groups of each kind with figures of their own.
pub const GROUPS_MAX: usize = 1024;
/// A process that has asked nothing for so long is left out where there is no room.
const QUIET_NS: u64 = 600_000_000_000;

/// Pairs of process and server whose figures wait to be taken; of more, nobody is said to have asked anybody.
const FRESH_MAX: usize = 4096;

/// Verdicts of servers that are counted one by one; others are together.
pub const RCODES: [(u8, &str); 4] = [(0, "noerror"), (3, "nxdomain"), (2, "servfail"), (5, "refused")];

/// What was asked and answered.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Questions; one that is asked again is another one.
    pub queries: u64,
    /// Answers.
    pub answers: u64,
    /// Of them, by verdict, in the order of [`RCODES`], and others.
    pub rcodes: [u64; RCODES.len() + 1],
    /// Answers that did not fit and were asked for again over TCP.
    pub truncated: u64,
    /// Questions that were asked again before there was an answer.
    pub retried: u64,
    /// Questions without an answer within 5 s.
    pub timeouts: u64,
    /// From question to answer, microseconds.
    pub latency: RttStats,
    /// When the last question was asked.
    last_ns: u64,
}

impl Figures {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.queries += other.queries;
        self.answers += other.answers;
        self.rcodes.iter_mut().zip(other.rcodes).for_each(|(sum, count)| *sum += count);
        self.truncated += other.truncated;
        self.retried += other.retried;
        self.timeouts += other.timeouts;
        self.latency.add(&other.latency);
        self.last_ns = self.last_ns.max(other.last_ns);
    }
}

/// What figures are of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// A process.
    Process(ProcKey),
    /// What lives in a cgroup, by its id; 0 = not known.
    Place(u64),
    /// A server.
    Server(IpAddr),
    /// What is asked for.
    Name(Arc<str>),
}

/// Kinds of groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupKind {
    /// [`Group::Process`].
    Process,
    /// [`Group::Place`].
    Place,
    /// [`Group::Server`].
    Server,
    /// [`Group::Name`].
    Name,
}

impl GroupKind {
    const ALL: [Self; 4] = [Self::Process, Self::Place, Self::Server, Self::Name];
}

impl Group {
    /// What it is a group of.
    #[must_use]
    pub fn kind(&self) -> GroupKind {
        match self {
            Self::Process(_) => GroupKind::Process,
            Self::Place(_) => GroupKind::Place,
            Self::Server(_) => GroupKind::Server,
            Self::Name(_) => GroupKind::Name,
        }
    }
}

/// Who asks whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Of its socket.
    pub cookie: u64,
    /// The process.
    pub process: ProcKey,
    /// Its cgroup, 0 = not known.
    pub cgroup_id: u64,
    /// The server.
    pub server: IpAddr,
}

#[derive(Debug)]
struct Waiting {
    at_ns: u64,
    client: Client,
    name: Arc<str>,
    rtype: u16,
}

/// The last question of a socket, and the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// What was asked for.
    pub name: Arc<str>,
    /// Its type.
    pub rtype: u16,
    /// 0 = no error, 3 = no such name; none: no answer yet.
    pub rcode: Option<u8>,
}

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// Figures of all. Owned by the control thread.
#[derive(Default)]
pub struct Service {
    waiting: Map<(u64, u16), Waiting>,
    last: Map<u64, Last>,
    groups: Map<Group, Figures>,
    /// How many there are of each kind, and the figures of those for which there was no room.
    counts: [usize; GroupKind::ALL.len()],
    others: [Figures; GroupKind::ALL.len()],
    total: Figures,
    /// Since they were last taken, by who has asked whom; none: nobody takes them.
    fresh: Option<Map<(ProcKey, IpAddr), Figures>>,
    /// Answers to what nobody is known to have asked.
    pub unasked: u64,
    /// Questions that are counted as such alone, because too many others waited for their answers.
    pub not_followed: u64,
}

impl Service {
    /// From now on, figures are kept for [`Self::take_fresh`] as well.
    pub fn keep_fresh(&mut self) {
        self.fresh.get_or_insert_default();
    }

    /// What has been counted since the last call, by who has asked whom.
    pub fn take_fresh(&mut self) -> impl Iterator<Item = ((ProcKey, IpAddr), Figures)> {
        self.fresh.as_mut().map(std::mem::take).into_iter().flatten()
    }

    /// Takes a question.
    pub fn ask(&mut self, client: &Client, message: &Message, at_ns: u64) {
        let name: Arc<str> = message.name.as_str().into();
        let key = (client.cookie, message.id);
        if self.waiting.len() >= WAITING_MAX && !self.waiting.contains_key(&key) {
            self.expire_waiting(at_ns);
        }
        let is_retried = self.waiting.get(&key).is_some_and(|waiting| waiting.name == name);
        self.each(client, &name, |figures| {
            figures.queries += 1;
            figures.retried += u64::from(is_retried);
            figures.last_ns = figures.last_ns.max(at_ns);
        });
        let has_room = self.waiting.len() < WAITING_MAX || self.waiting.contains_key(&key);
        self.not_followed += u64::from(!has_room);
        if has_room && !is_retried {
            self.waiting.insert(key, Waiting { at_ns, client: *client, name: Arc::clone(&name), rtype: message.rtype });
        }
        if self.last.len() >= LAST_MAX {
            self.last.clear();
        }
        self.last.insert(client.cookie, Last { name, rtype: message.rtype, rcode: None });
    }

    /// Takes an answer. Whether it is one to a question that this very socket has asked: another one tells nothing.
    pub fn answer(&mut self, client: &Client, message: &Message, at_ns: u64) -> bool {
        let key = (client.cookie, message.id);
        let is_asked = |waiting: &Waiting| {
            *waiting.name == *message.name && waiting.rtype == message.rtype && waiting.client.server == client.server
        };
        if !self.waiting.get(&key).is_some_and(is_asked) {
            self.unasked += 1;
            return false;
        }
        let Some(waiting) = self.waiting.remove(&key) else { return false };
        let latency_us = u32::try_from(at_ns.saturating_sub(waiting.at_ns) / 1000).unwrap_or(u32::MAX).max(1);
        let place = RCODES.iter().position(|(rcode, _)| *rcode == message.rcode).unwrap_or(RCODES.len());
        self.each(&waiting.client, &waiting.name, |figures| {
            figures.answers += 1;
            figures.rcodes[place] += 1;
            figures.truncated += u64::from(message.truncated);
            figures.latency.record(&[latency_us]);
        });
        if let Some(last) = self.last.get_mut(&client.cookie).filter(|last| last.name == waiting.name) {
            last.rcode = Some(message.rcode);
        }
        true
    }

    /// Counts questions whose answer does not come any more.
    pub fn expire_waiting(&mut self, now_ns: u64) {
        let over: Vec<_> = self
            .waiting
            .extract_if(|_, waiting| waiting.at_ns + TIMEOUT_NS <= now_ns)
            .map(|(_, waiting)| waiting)
            .collect();
        for waiting in over {
            self.each(&waiting.client, &waiting.name, |figures| figures.timeouts += 1);
        }
    }

    /// What a socket has asked last.
    #[must_use]
    pub fn last_of(&self, cookie: u64) -> Option<&Last> {
        self.last.get(&cookie)
    }

    /// Figures of all groups, and of each kind those of all others together.
    pub fn groups(&self) -> impl Iterator<Item = (&Group, &Figures)> {
        self.groups.iter()
    }

    /// Figures of those of a kind for which there was no room.
    #[must_use]
    pub fn others(&self, kind: GroupKind) -> &Figures {
        &self.others[kind as usize]
    }

    /// Figures of all.
    #[must_use]
    pub fn total(&self) -> &Figures {
        &self.total
    }

    fn each(&mut self, client: &Client, name: &Arc<str>, change: impl Fn(&mut Figures)) {
        change(&mut self.total);
        if let Some(fresh) = &mut self.fresh {
            let key = (client.process, client.server);
            let has_room = fresh.len() < FRESH_MAX || fresh.contains_key(&key);
            let nobody = (ProcKey::default(), IpAddr::from([0; 4]));
            change(fresh.entry(if has_room { key } else { nobody }).or_default());
        }
        let groups = [
            Group::Process(client.process),
            Group::Place(client.cgroup_id),
            Group::Server(client.server),
            Group::Name(Arc::clone(name)),
        ];
        for group in groups {
            change(self.figures(group));
        }
    }

    fn figures(&mut self, group: Group) -> &mut Figures {
        let kind = group.kind() as usize;
        let count = &mut self.counts[kind];
        match self.groups.entry(group) {
            hashbrown::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hashbrown::hash_map::Entry::Vacant(_) if *count >= GROUPS_MAX => &mut self.others[kind],
            hashbrown::hash_map::Entry::Vacant(entry) => {
                *count += 1;
                entry.insert(Figures::default())
            }
        }
    }

    /// Where room is short, what was not heard of for long is added to the others.
    pub fn expire_groups(&mut self, now_ns: u64) {
        for kind in GroupKind::ALL {
            if self.counts[kind as usize] * 4 <= GROUPS_MAX * 3 {
                continue;
            }
            // A little at a time, the quietest first.
            let mut keep_ns = QUIET_NS;
            while keep_ns > 1_000_000_000 && self.younger_than(kind, keep_ns, now_ns) * 4 > GROUPS_MAX * 3 {
                keep_ns /= 2;
            }
            let gone: Vec<_> = self
                .groups
                .extract_if(|group, figures| group.kind() == kind && figures.last_ns + keep_ns <= now_ns)
                .collect();
            self.counts[kind as usize] -= gone.len();
            gone.iter().for_each(|(_, figures)| self.others[kind as usize].add(figures));
        }
    }

    fn younger_than(&self, kind: GroupKind, keep_ns: u64, now_ns: u64) -> usize {
        self.groups.iter().filter(|(group, figures)| group.kind() == kind && figures.last_ns + keep_ns > now_ns).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn client(cookie: u64) -> Client {
        let process = ProcKey { pid: cookie as u32, start_ticks: 1, exec: 0 };
        Client { cookie, process, cgroup_id: 7, server: "127.0.0.53".parse().unwrap() }
    }

    fn message(id: u16, name: &str, rcode: u8) -> Message {
        Message {
            id,
            is_answer: rcode < 16,
            rcode: rcode % 16,
            truncated: false,
            name: name.into(),
            is_host: true,
            rtype: 1,
            addresses: Vec::new(),
        }
    }

    fn of(service: &Service, group: &Group) -> Figures {
        service.groups().find(|(known, _)| *known == group).map(|(_, figures)| figures.clone()).unwrap()
    }

    #[test]
    fn questions_meet_their_answers() {
        let mut service = Service::default();
        service.ask(&client(1), &message(7, "a.example", 16), 100 * MS);
        service.ask(&client(1), &message(8, "b.example", 16), 100 * MS);
        service.ask(&client(1), &message(7, "a.example", 16), 105 * MS);
        assert_eq!(service.last_of(1).unwrap().rcode, None);
        assert!(!service.answer(&client(2), &message(7, "a.example", 0), 110 * MS), "another socket");
        assert!(!service.answer(&client(1), &message(7, "c.example", 0), 110 * MS), "another name");
        assert!(service.answer(&client(1), &message(7, "a.example", 0), 120 * MS));
        assert!(!service.answer(&client(1), &message(7, "a.example", 0), 121 * MS), "a second time");
        assert!(service.answer(&client(1), &message(8, "b.example", 3), 130 * MS));
        assert_eq!(service.last_of(1).unwrap().name.as_ref(), "a.example", "asked again, so it was the last");
        let all = of(&service, &Group::Place(7));
        assert_eq!((all.queries, all.answers, all.retried, all.rcodes), (3, 2, 1, [1, 1, 0, 0, 0]));
        assert_eq!((all.latency.samples(), service.unasked), (2, 3));
        let a = of(&service, &Group::Name("a.example".into()));
        assert!(a.latency.mean_us() > 19_900.0 && a.latency.mean_us() < 20_100.0, "since it was first asked");
    }

    #[test]
    fn no_answer_is_counted_once() {
        let mut service = Service::default();
        service.ask(&client(1), &message(7, "a.example", 16), MS);
        service.expire_waiting(4_000 * MS);
        assert_eq!(service.total().timeouts, 0);
        service.expire_waiting(5_001 * MS);
        service.expire_waiting(9_000 * MS);
        assert_eq!(service.total().timeouts, 1);
        assert!(!service.answer(&client(1), &message(7, "a.example", 0), 9_000 * MS), "too late");
    }

    #[test]
    fn a_question_is_counted_also_where_nobody_can_wait_for_its_answer() {
        let mut service = Service::default();
        for number in 0..WAITING_MAX as u64 + 3 {
            service.ask(&client(number), &message(1, "a.example", 16), MS);
        }
        assert_eq!((service.total().queries, service.not_followed), (WAITING_MAX as u64 + 3, 3));
        assert!(!service.answer(&client(WAITING_MAX as u64), &message(1, "a.example", 0), 2 * MS));
        assert!(service.answer(&client(0), &message(1, "a.example", 0), 2 * MS));
        service.ask(&client(1), &message(2, "b.example", 16), 3 * MS);
        assert!(service.answer(&client(1), &message(2, "b.example", 0), 4 * MS), "there is room again");
    }

    #[test]
    fn what_is_fresh_adds_up_to_what_was_counted() {
        let mut service = Service::default();
        service.ask(&client(1), &message(7, "a.example", 16), MS);
        assert_eq!(service.take_fresh().count(), 0, "nobody wants it");
        service.keep_fresh();
        let mut sum = Figures::default();
        for number in 0..FRESH_MAX as u64 + 7 {
            service.ask(&client(number), &message(number as u16, "a.example", 16), MS);
            service.answer(&client(number), &message(number as u16, "a.example", 0), 2 * MS);
            if number % 5000 == 0 {
                service.take_fresh().for_each(|(_, figures)| sum.add(&figures));
            }
        }
        let mut count = 0;
        for (_, figures) in service.take_fresh() {
            sum.add(&figures);
            count += 1;
        }
        assert_eq!((sum.queries, sum.answers), (FRESH_MAX as u64 + 7, FRESH_MAX as u64 + 7));
        assert_eq!((count, service.take_fresh().count()), (FRESH_MAX + 1, 0));
    }

    #[test]
    fn many_names_do_not_take_more_room_and_are_all_counted() {
        let mut service = Service::default();
        for number in 0..3 * GROUPS_MAX as u64 {
            service.ask(&client(1), &message(number as u16, &format!("n{number}.example"), 16), number * MS);
            service.expire_groups(number * MS);
        }
        assert!(service.groups().count() <= GROUPS_MAX + 3);
        let names = service.groups().filter(|(group, _)| matches!(group, Group::Name(_)));
        let sum: u64 = names.map(|(_, figures)| figures.queries).sum();
        assert_eq!(sum + service.others(GroupKind::Name).queries, 3 * GROUPS_MAX as u64);
        assert_eq!(service.total().queries, 3 * GROUPS_MAX as u64);
    }
}
