//! Which names processes have learnt for which addresses, and which of them a connection means.
//!
//! One address serves many names: what somebody was last told of it is mostly wrong. So a connection has a name only if the
//! process itself has asked, or else its parent, its container, its network namespace, or the host, in this order, and only if
//! what they asked leaves one or two names.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::model::flow::ProcKey;

/// Names that are known of one process.
pub const NAMES_MAX: usize = 64;
/// Answers that are known of all.
pub const ANSWERS_MAX: usize = 65_536;
/// Answers that are known of one address.
const OF_ADDRESS_MAX: usize = 2048;
/// Addresses of one name.
const OF_NAME_MAX: usize = 64;
/// An answer counts for at least so long, whatever its time to live says: programs keep addresses that long.
const KEPT_NS: u64 = 60 * SECOND_NS;
/// What is too old is forgotten only some time later: a connection may be told of late.
const LATE_NS: u64 = 30 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

/// Who knew a name: the nearer, the surer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The client itself, by TLS.
    Tls,
    /// The same, by QUIC.
    Quic,
    /// The same, by HTTP.
    Http,
    /// By TLS, where the client hides whom it means: the name is that of whoever passes it on.
    TlsOuter,
    /// The same by QUIC.
    QuicOuter,
    /// The process that has connected.
    Process,
    /// Its parent, or one before.
    Parent,
    /// Something in its container.
    Container,
    /// Something in its network namespace.
    Namespace,
    /// Something on this host.
    Host,
}

impl Source {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Quic => "quic",
            Self::Http => "http",
            Self::TlsOuter => "tls (outer)",
            Self::QuicOuter => "quic (outer)",
            Self::Process => "process",
            Self::Parent => "parent",
            Self::Container => "container",
            Self::Namespace => "network namespace",
            Self::Host => "host",
        }
    }
}

impl Source {
    /// Nobody else's question stands for that of the process.
    #[must_use]
    pub fn is_sure(self) -> bool {
        self <= Self::Parent
    }
}

/// What the far end of a connection is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerName {
    /// One name, or two of which it is one.
    pub names: Vec<Arc<str>>,
    /// Who knew it.
    pub source: Source,
}

impl PeerName {
    /// The name, if there is no doubt.
    #[must_use]
    pub fn sole(&self) -> Option<&Arc<str>> {
        if self.names.len() == 1 { self.names.first() } else { None }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names.join(" or "))
    }
}

/// A process, whatever program it runs.
type Task = (u32, u32);

fn task_of(key: ProcKey) -> Task {
    (key.pid, key.start_ticks)
}

/// Who has asked, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The process.
    pub process: ProcKey,
    /// Its cgroup, if that is a container; else 0.
    pub container: u64,
    /// Its network namespace, 0 = not known.
    pub netns: u32,
}

/// Somebody was told that a name has this address.
#[derive(Debug, Clone)]
struct Answer {
    name: Arc<str>,
    asker: Asker,
    /// When: the last time, and the time before.
    at_ns: [u64; 2],
    ttl_ns: u64,
}

impl Answer {
    /// When it was last given before a moment, unless that is too long ago.
    fn before(&self, moment_ns: u64) -> Option<u64> {
        let at_ns = self.at_ns.into_iter().find(|at_ns| *at_ns > 0 && *at_ns <= moment_ns)?;
        (moment_ns - at_ns <= self.ttl_ns.max(KEPT_NS)).then_some(at_ns)
    }

    fn is_over(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.at_ns[0]) > self.ttl_ns.max(KEPT_NS) + LATE_NS
    }
}

/// A connection that wants a name.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Who has connected, and from where.
    pub asker: Asker,
    /// Pids of its ancestors, the parent first.
    pub ancestors: &'a [u32],
    /// Where to, as it knows that.
    pub address: IpAddr,
    /// When, `CLOCK_BOOTTIME` nanoseconds.
    pub opened_ns: u64,
}

/// What a process has asked: for each name the addresses that it got.
type Asked = VecDeque<(Arc<str>, Vec<IpAddr>)>;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// All that is known. Owned by the control thread.
#[derive(Default)]
pub struct NameTable {
    answers: Map<IpAddr, Vec<Answer>>,
    asked: Map<Task, Asked>,
    /// The youngest process of a pid that has asked.
    tasks: Map<u32, u32>,
    /// When processes that have asked connected to which address, the last times.
    connected: Map<(Task, IpAddr), [u64; 4]>,
    len: usize,
    refused: u64,
}

impl NameTable {
    /// How many answers are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// None is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Answers that were forgotten early, or not taken, for want of room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Somebody was told addresses of a name.
    pub fn learn(&mut self, asker: Asker, name: &str, addresses: &[(IpAddr, u32)], at_ns: u64) {
        let task = task_of(asker.process);
        let asked = self.asked.entry(task).or_default();
        let name: Arc<str> = match asked.iter().position(|(known, _)| **known == *name) {
            Some(place) => {
                let Some(known) = asked.remove(place) else { return };
                let name = Arc::clone(&known.0);
                asked.push_back(known);
                name
            }
            None => {
                let name: Arc<str> = name.into();
                asked.push_back((Arc::clone(&name), Vec::new()));
                name
            }
        };
        if asked.len() > NAMES_MAX
            && let Some((oldest, addresses)) = asked.pop_front()
        {
            self.refused += 1;
            addresses.iter().for_each(|address| self.forget(task, &oldest, *address));
        }
        self.tasks.insert(task.0, task.1);
        for (address, ttl_s) in addresses {
            self.learn_one(asker, &name, *address, u64::from(*ttl_s) * SECOND_NS, at_ns);
        }
    }

    fn learn_one(&mut self, asker: Asker, name: &Arc<str>, address: IpAddr, ttl_ns: u64, at_ns: u64) {
        let task = task_of(asker.process);
        let answers = self.answers.entry(address).or_default();
        let known = answers.iter_mut().find(|answer| answer.name == *name && task_of(answer.asker.process) == task);
        if let Some(answer) = known {
            if at_ns > answer.at_ns[0] {
                answer.at_ns = [at_ns, answer.at_ns[0]];
            }
            answer.ttl_ns = ttl_ns;
            answer.asker = asker;
            return;
        }
        let of_name = self.asked.get_mut(&task).and_then(|asked| asked.back_mut()).map(|(_, addresses)| addresses);
        let Some(of_name) = of_name.filter(|addresses| addresses.len() < OF_NAME_MAX) else { return };
        if answers.len() >= OF_ADDRESS_MAX || self.len >= ANSWERS_MAX {
            self.refused += 1;
            return;
        }
        of_name.push(address);
        answers.push(Answer { name: Arc::clone(name), asker, at_ns: [at_ns, 0], ttl_ns });
        self.len += 1;
    }

    fn forget(&mut self, task: Task, name: &str, address: IpAddr) {
        let Some(answers) = self.answers.get_mut(&address) else { return };
        let before = answers.len();
        answers.retain(|answer| *answer.name != *name || task_of(answer.asker.process) != task);
        self.len -= before - answers.len();
        if answers.is_empty() {
            self.answers.remove(&address);
        }
    }

    /// What a connection means, and that it was made. Call it in the order in which connections were opened: which of two names
    /// one means depends on those before.
    pub fn name_of(&mut self, connection: &Connection<'_>) -> Option<PeerName> {
        let answers = self.answers.get(&connection.address)?;
        let valid: Vec<(&Answer, u64)> =
            answers.iter().filter_map(|answer| Some((answer, answer.before(connection.opened_ns)?))).collect();
        let found = self.nearest(connection, &valid).and_then(|(source, mut known)| {
            // The newest first, each name once.
            known.sort_unstable_by_key(|(_, at_ns)| std::cmp::Reverse(*at_ns));
            let mut names: Vec<(Arc<str>, u64)> = Vec::new();
            for (answer, at_ns) in known {
                if !names.iter().any(|(name, _)| *name == answer.name) {
                    names.push((Arc::clone(&answer.name), at_ns));
                }
            }
            if source == Source::Process && names.len() > 1 && self.means_newest(connection, &names) {
                names.truncate(1);
            }
            let names = names.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
            (names.len() <= 2).then_some(PeerName { names, source })
        });
        self.note(connection);
        found
    }

    /// The answers of whoever is nearest to the connection, and has one.
    fn nearest<'a>(
        &self,
        connection: &Connection<'_>,
        valid: &[(&'a Answer, u64)],
    ) -> Option<(Source, Vec<(&'a Answer, u64)>)> {
        let of = |source, is: &dyn Fn(&Asker) -> bool| {
            let known: Vec<_> = valid.iter().filter(|(answer, _)| is(&answer.asker)).copied().collect();
            (!known.is_empty()).then_some((source, known))
        };
        let Asker { process, container, netns } = connection.asker;
        let parents = || {
            connection.ancestors.iter().find_map(|pid| {
                // A pid may be another's by now: parents are older than their children.
                let started = self.tasks.get(pid).filter(|started| **started <= process.start_ticks)?;
                of(Source::Parent, &|asker| task_of(asker.process) == (*pid, *started))
            })
        };
        // Addresses of private networks are of one host here, and of another one there.
        let is_unique = is_global(connection.address);
        of(Source::Process, &|asker| task_of(asker.process) == task_of(process))
            .or_else(parents)
            .or_else(|| of(Source::Container, &|asker| container != 0 && asker.container == container))
            .or_else(|| of(Source::Namespace, &|asker| netns != 0 && asker.netns == netns))
            .or_else(|| of(Source::Host, &|_| is_unique))
    }

    /// Of several names that a process has asked for, a connection means the newest one if it is the first since then, and all
    /// that was asked before was used by a connection before the newest was asked for.
    fn means_newest(&self, connection: &Connection<'_>, names: &[(Arc<str>, u64)]) -> bool {
        let key = (task_of(connection.asker.process), connection.address);
        let times = self.connected.get(&key).copied().unwrap_or_default();
        let (newest_ns, before_ns) = (names[0].1, names[1].1);
        let was_used = |from_ns, to_ns| times.iter().any(|at_ns| (from_ns..to_ns).contains(at_ns));
        was_used(before_ns, newest_ns) && !was_used(newest_ns, connection.opened_ns)
    }

    /// A connection uses what its process has asked for, or else its parent: it may have asked for its child.
    fn note(&mut self, connection: &Connection<'_>) {
        let process = connection.asker.process;
        let parents = connection.ancestors.iter().filter_map(|pid| Some((*pid, *self.tasks.get(pid)?)));
        let parents = parents.filter(|(_, started)| *started <= process.start_ticks);
        let mut tasks = std::iter::once(task_of(process)).chain(parents);
        let Some(task) = tasks.find(|task| self.asked.contains_key(task)) else { return };
        if self.connected.len() >= ANSWERS_MAX {
            self.connected.clear();
        }
        let times = self.connected.entry((task, connection.address)).or_default();
        times.rotate_right(1);
        times[0] = connection.opened_ns;
    }

    /// Forgets what no connection can mean any more.
    pub fn expire(&mut self, now_ns: u64) {
        let mut gone = 0;
        let asked = &mut self.asked;
        self.answers.retain(|address, answers| {
            answers.retain(|answer| {
                let is_over = answer.is_over(now_ns);
                if is_over && let Some(asked) = asked.get_mut(&task_of(answer.asker.process)) {
                    gone += 1;
                    asked
                        .iter_mut()
                        .filter(|(name, _)| *name == answer.name)
                        .for_each(|(_, addresses)| addresses.retain(|known| known != address));
                }
                !is_over
            });
            !answers.is_empty()
        });
        self.len -= gone;
        self.asked.retain(|_, asked| {
            asked.retain(|(_, addresses)| !addresses.is_empty());
            !asked.is_empty()
        });
        let asked = &self.asked;
        self.tasks.retain(|pid, started| asked.contains_key(&(*pid, *started)));
        self.connected.retain(|(task, _), _| asked.contains_key(task));
    }
}

/// Whether an address is the same host for everybody on this one.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || is_shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = SECOND_NS;
    const MS: u64 = 1_000_000;

    fn process(pid: u32) -> ProcKey {
        ProcKey { pid, start_ticks: pid, exec: 0 }
    }

    fn asker(pid: u32) -> Asker {
        Asker { process: process(pid), container: 0, netns: 1 }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    const CDN: &str = "203.0.113.7";

    fn tell(table: &mut NameTable, pid: u32, name: &str, at_ns: u64) {
        table.learn(asker(pid), name, &[(ip(CDN), 30)], at_ns);
    }

    fn connect(table: &mut NameTable, pid: u32, ancestors: &[u32], at_ns: u64) -> Option<String> {
        let connection = Connection { asker: asker(pid), ancestors, address: ip(CDN), opened_ns: at_ns };
        table.name_of(&connection).map(|name| format!("{name}, {}", name.source.name()))
    }

    #[test]
    fn a_process_that_asks_and_connects_in_turns() {
        let mut table = NameTable::default();
        for (number, at_ns) in (0..200).zip((S..).step_by(10 * MS as usize)) {
            tell(&mut table, 10, &format!("n{number}.example"), at_ns);
            let found = connect(&mut table, 10, &[], at_ns + MS);
            assert_eq!(found, Some(format!("n{number}.example, process")));
        }
        assert!(table.len() <= NAMES_MAX);
    }

    #[test]
    fn what_fits_two_names_is_one_of_them_and_more_is_unknown() {
        let mut table = NameTable::default();
        tell(&mut table, 10, "a.example", S);
        assert_eq!(connect(&mut table, 10, &[], 2 * S).unwrap(), "a.example, process");
        assert_eq!(connect(&mut table, 10, &[], 3 * S).unwrap(), "a.example, process", "again");
        tell(&mut table, 10, "b.example", 4 * S);
        assert_eq!(connect(&mut table, 10, &[], 5 * S).unwrap(), "b.example, process");
        assert_eq!(connect(&mut table, 10, &[], 6 * S).unwrap(), "b.example or a.example, process", "either");
        tell(&mut table, 10, "c.example", 7 * S);
        tell(&mut table, 10, "d.example", 8 * S);
        assert_eq!(connect(&mut table, 10, &[], 9 * S), None, "c was not used yet");
        assert_eq!(connect(&mut table, 10, &[], 120 * S), None, "all too old");
    }

    #[test]
    fn what_was_asked_later_is_not_meant() {
        let mut table = NameTable::default();
        tell(&mut table, 10, "a.example", S);
        tell(&mut table, 10, "b.example", 3 * S);
        assert_eq!(connect(&mut table, 10, &[], 2 * S).unwrap(), "a.example, process");
        tell(&mut table, 11, "a.example", 20 * S);
        assert_eq!(connect(&mut table, 11, &[], 19 * S).unwrap(), "b.example or a.example, network namespace");
    }

    #[test]
    fn children_mean_what_their_parent_asked_for() {
        let mut table = NameTable::default();
        tell(&mut table, 10, "a.example", S);
        tell(&mut table, 12, "z.example", S + 1);
        assert_eq!(connect(&mut table, 11, &[10, 1], 2 * S).unwrap(), "a.example, parent");
        assert_eq!(connect(&mut table, 5, &[10, 1], 2 * S).unwrap(), "z.example or a.example, network namespace");
        tell(&mut table, 10, "b.example", 2 * S);
        assert_eq!(connect(&mut table, 11, &[10, 1], 3 * S).unwrap(), "b.example or a.example, parent");
        tell(&mut table, 10, "c.example", 2 * S);
        assert_eq!(connect(&mut table, 11, &[10, 1], 3 * S), None);
    }

    #[test]
    fn a_child_uses_what_its_parent_asked_for() {
        let mut table = NameTable::default();
        tell(&mut table, 10, "a.example", S);
        assert_eq!(connect(&mut table, 11, &[10], 2 * S).unwrap(), "a.example, parent");
        tell(&mut table, 10, "b.example", 3 * S);
        assert_eq!(connect(&mut table, 10, &[], 4 * S).unwrap(), "b.example, process");
        tell(&mut table, 10, "c.example", 5 * S);
        assert_eq!(connect(&mut table, 12, &[10], 6 * S), None);
        assert_eq!(connect(&mut table, 10, &[], 7 * S), None, "it or its child may have meant c");
    }

    #[test]
    fn private_addresses_have_names_in_their_own_namespace_only() {
        let mut table = NameTable::default();
        let of = |netns, container| Asker { netns, container, ..asker(10) };
        table.learn(of(1, 7), "db.internal", &[(ip("10.0.0.5"), 30), (ip("203.0.113.5"), 30)], S);
        let mut name = |address, netns, container| {
            let asker = Asker { netns, container, ..asker(20) };
            let connection = Connection { asker, ancestors: &[], address: ip(address), opened_ns: 2 * S };
            table.name_of(&connection).map(|name| name.source.name())
        };
        assert_eq!(name("10.0.0.5", 1, 0), Some("network namespace"));
        assert_eq!((name("10.0.0.5", 2, 7), name("10.0.0.5", 2, 0)), (Some("container"), None));
        assert_eq!((name("203.0.113.5", 2, 0), name("203.0.113.6", 1, 7)), (Some("host"), None));
    }

    proptest! {
        #[test]
        fn it_stays_bounded_and_forgets_all(
            told in prop::collection::vec((1u32..6, 0u32..300, 0u8..5, 0u64..400), 1..600),
        ) {
            let mut table = NameTable::default();
            let mut last_ns = 0;
            for (pid, name, addr, at_s) in told {
                let address = IpAddr::from([198, 51, 100, addr]);
                table.learn(asker(pid), &format!("n{name}.example"), &[(address, 5)], at_s * S);
                let connection = Connection { asker: asker(pid), ancestors: &[], address, opened_ns: at_s * S + 1 };
                prop_assert!(table.name_of(&connection).is_none_or(|name| (1..=2).contains(&name.names.len())));
                last_ns = last_ns.max(at_s * S);
                prop_assert_eq!(table.len(), table.answers.values().map(Vec::len).sum::<usize>());
                prop_assert_eq!(table.len(), table.asked.values().flatten().map(|(_, all)| all.len()).sum::<usize>());
            }
            prop_assert!(table.asked.values().all(|asked| asked.len() <= NAMES_MAX));
            table.expire(last_ns + 200 * S);
            prop_assert!(table.is_empty() && table.answers.is_empty() && table.asked.is_empty() && table.tasks.is_empty());
            prop_assert!(table.connected.is_empty());
        }
    }
}
