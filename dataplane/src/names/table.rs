//! Which names processes have learnt for which addresses, and which of them a connection means.
//!
//! One address serves many names: what somebody was last told of it is mostly wrong. So a connection has a name only if the
//! process itself has asked, or else its parent, its container, its network namespace, or the host, in this order, and only if
//! what they asked leaves one or two names.

#[cfg(test)]
mod tests;

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
/// Of how many of the last times something happened it is known when: connections are not told of in the order in which they
/// were made.
const TIMES: usize = 4;
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
    /// When: the last times, the newest first.
    at_ns: [u64; TIMES],
    /// Since when it has been valid all the time.
    since_ns: u64,
    ttl_ns: u64,
}

/// When an answer was last given before a moment; none: some time since it is valid.
type Given = Option<u64>;

impl Answer {
    /// When it was last given before a moment at which it was valid.
    fn before(&self, moment_ns: u64) -> Option<Given> {
        match self.at_ns.into_iter().find(|at_ns| *at_ns > 0 && *at_ns <= moment_ns) {
            Some(at_ns) => (moment_ns - at_ns <= self.ttl_ns.max(KEPT_NS)).then_some(Some(at_ns)),
            None => (self.since_ns <= moment_ns).then_some(None),
        }
    }

    /// It is given once more.
    fn again(&mut self, asker: Asker, ttl_ns: u64, at_ns: u64) {
        if at_ns.saturating_sub(self.at_ns[0]) > self.ttl_ns.max(KEPT_NS) {
            self.since_ns = at_ns;
        }
        if at_ns > self.at_ns[0] {
            self.at_ns.rotate_right(1);
            self.at_ns[0] = at_ns;
        }
        self.ttl_ns = ttl_ns;
        self.asker = asker;
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
    connected: Map<(Task, IpAddr), [u64; TIMES]>,
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
            answer.again(asker, ttl_ns, at_ns);
            return;
        }
        let of_name = self.asked.get_mut(&task).and_then(|asked| asked.back_mut()).map(|(_, addresses)| addresses);
        let Some(of_name) = of_name.filter(|addresses| addresses.len() < OF_NAME_MAX) else { return };
        if answers.len() >= OF_ADDRESS_MAX || self.len >= ANSWERS_MAX {
            self.refused += 1;
            return;
        }
        of_name.push(address);
        let mut times = [0; TIMES];
        times[0] = at_ns;
        answers.push(Answer { name: Arc::clone(name), asker, at_ns: times, since_ns: at_ns, ttl_ns });
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

    /// What a connection means, and that it was made. Call it in about the order in which connections were opened: which of two
    /// names one means depends on those before.
    pub fn name_of(&mut self, connection: &Connection<'_>) -> Option<PeerName> {
        let answers = self.answers.get(&connection.address)?;
        let valid: Vec<(&Answer, Given)> =
            answers.iter().filter_map(|answer| Some((answer, answer.before(connection.opened_ns)?))).collect();
        let found = self.nearest(connection, &valid).and_then(|(source, mut known)| {
            // The newest first, each name once.
            known.sort_unstable_by_key(|(_, at_ns)| std::cmp::Reverse(*at_ns));
            let mut names: Vec<(Arc<str>, Given)> = Vec::new();
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
        valid: &[(&'a Answer, Given)],
    ) -> Option<(Source, Vec<(&'a Answer, Given)>)> {
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
        // Addresses of private networks are of one host here, and of another one there; and names that somebody was told to be
        // at loopback, such as all that a filter of advertisements blocks, are not what all others mean by it.
        let is_unique = is_global(connection.address);
        let is_shared = !(connection.address.is_loopback() || connection.address.is_unspecified());
        of(Source::Process, &|asker| task_of(asker.process) == task_of(process))
            .or_else(parents)
            .or_else(|| of(Source::Container, &|asker| is_shared && container != 0 && asker.container == container))
            .or_else(|| of(Source::Namespace, &|asker| is_shared && netns != 0 && asker.netns == netns))
            .or_else(|| of(Source::Host, &|_| is_unique))
    }

    /// Of several names that a process has asked for, a connection means the newest one if it is the first since then, and all
    /// that was asked before was used by a connection before the newest was asked for. Which one is the newest must be known.
    fn means_newest(&self, connection: &Connection<'_>, names: &[(Arc<str>, Given)]) -> bool {
        let key = (task_of(connection.asker.process), connection.address);
        let times = self.connected.get(&key).copied().unwrap_or_default();
        let is_order_known = names.iter().all(|(_, given)| given.is_some());
        let (Some(newest_ns), Some(before_ns), true) = (names[0].1, names[1].1, is_order_known) else { return false };
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
        // They are not in order; the last ones matter.
        if let Some(oldest) = times.iter_mut().min()
            && *oldest < connection.opened_ns
        {
            *oldest = connection.opened_ns;
        }
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
