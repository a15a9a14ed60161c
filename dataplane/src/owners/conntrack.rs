//! Asking the kernel's connection tracking what became of a connection's addresses: for one that leaves with a translated
//! address only one end is seen, and neither knows what the other one sees.
//!
//! It is asked on demand: listening to its events costs every connection of the host. The messages are made and read
//! here: they are two, the crates for them are eleven, and allocate for each answer what is half of its time.

mod message;
mod quiet;

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::thread::LinkNameSpaceType;

use crate::model::flow::{Endpoint, FlowKey, Proto};
pub(crate) use message::{Answer, read_answers};
use quiet::Quiet;

/// Questions of one message to the kernel.
const BATCH: usize = 64;
/// Room for one answer of the kernel, bytes; about 250 are usual.
const ANSWER_MAX: usize = 8 << 10;
/// Room for the answers to one batch in the kernel, bytes; each takes about a kilobyte there.
const RECEIVE_BUFFER: usize = 512 << 10;

/// From whom and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Sender.
    pub from: Endpoint,
    /// Receiver.
    pub to: Endpoint,
}

impl Tuple {
    /// The connection whose initiator sends so.
    #[must_use]
    pub fn key(self, proto: Proto) -> FlowKey {
        FlowKey { proto, initiator: self.from, responder: self.to }
    }

    /// That of an answer to it.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

/// What the kernel knows of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translated {
    /// As the initiator sends it.
    pub original: Tuple,
    /// As the responder answers: `from` is the responder's own address, `to` the initiator's as the responder sees it.
    pub reply: Tuple,
}

impl Translated {
    /// Whether any address or port was changed: the kernel tracks others, too.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.reply.reversed() != self.original
    }
}

/// Why there is no answer: not the same as none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The capability is missing, or is that of another user namespace.
    #[error("the kernel's connection tracking may not be asked: give the agent CAP_NET_ADMIN")]
    NotAllowed,
    /// The part of the kernel that answers is not there, and was not loaded for this question.
    #[error(
        "the kernel's connection tracking cannot be asked: if this host translates addresses, run 'modprobe \
         nf_conntrack_netlink', and name it in /etc/modules-load.d/"
    )]
    NotLoaded,
    /// The namespace cannot be entered.
    #[error("the connection tracking of another network namespace cannot be asked: {0}: give the agent CAP_SYS_ADMIN")]
    Namespace(#[source] io::Error),
    /// Some answers of a batch did not come.
    #[error("the kernel's connection tracking left {0} of {1} questions without an answer")]
    Lost(usize, usize),
    /// Anything else.
    #[error("the kernel's connection tracking does not answer: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for Error {
    fn from(err: Errno) -> Self {
        match err {
            Errno::PERM | Errno::ACCESS => Self::NotAllowed,
            // An unknown protocol of netlink, or an unknown subsystem of netfilter.
            Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::INVAL => Self::NotLoaded,
            err => Self::Io(err.into()),
        }
    }
}

/// What was asked so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConntrackFigures {
    /// Connections that the kernel was asked for.
    pub asked: u64,
    /// Those that it tracks.
    pub found: u64,
    /// Those of them with translated addresses.
    pub translated: u64,
    /// Those that it was not asked for, since nothing was translated of late.
    pub skipped: u64,
}

/// A socket to the connection tracking of one network namespace. It keeps that namespace alive, so it is not for long
/// for any but the agent's own. Whoever asks needs `CAP_NET_ADMIN` in the user namespace that owns it, both when this is
/// made and with each question.
pub struct Conntrack {
    socket: OwnedFd,
    sequence: u32,
    request: Vec<u8>,
    answer: Vec<u8>,
    quiet: Quiet,
    figures: ConntrackFigures,
}

impl fmt::Debug for Conntrack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conntrack")
            .field("socket", &self.socket)
            .field("figures", &self.figures)
            .finish_non_exhaustive()
    }
}

impl Conntrack {
    /// Of the network namespace of the calling thread. Loads no module: if the one that answers is not there, that is
    /// the error. (A question would make the kernel load it.)
    ///
    /// # Errors
    /// If there is none, or no socket.
    pub fn new() -> Result<Self, Error> {
        if !can_answer() {
            return Err(Error::NotLoaded);
        }
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
        // It takes CAP_NET_ADMIN; without it, the first question says so.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
        // To the kernel, and from nobody else.
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        let (request, answer) = (Vec::new(), vec![0; ANSWER_MAX]);
        Ok(Self { socket, sequence: 0, request, answer, quiet: Quiet::default(), figures: ConntrackFigures::default() })
    }

    /// Of another network namespace. A thread that ends at once enters it: a socket stays in the namespace where it was
    /// made. It needs `CAP_SYS_ADMIN`, here and in the user namespace that owns the other one.
    ///
    /// # Errors
    /// If it cannot be entered, and as [`Self::new`].
    pub fn in_namespace(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        std::thread::scope(|scope| {
            let enter = || {
                rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                    .map_err(|err| Error::Namespace(err.into()))?;
                Self::new()
            };
            let thread = std::thread::Builder::new().name("sockeye-netns".to_owned()).spawn_scoped(scope, enter)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread died").into()))
        })
    }

    /// What the kernel knows of one connection, whichever of its two ends' addresses are given, and for some time after its
    /// end. None: it does not track it, or it translated nothing of late.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn ask(&mut self, proto: Proto, initiator: Endpoint, responder: Endpoint) -> Result<Option<Translated>, Error> {
        let answers = self.ask_many(&[FlowKey { proto, initiator, responder }])?;
        Ok(answers.into_iter().next().flatten())
    }

    /// The same of many, in their order: cheaper than one by one.
    ///
    /// # Errors
    /// If the kernel does not answer to one of them.
    pub fn ask_many(&mut self, keys: &[FlowKey]) -> Result<Vec<Option<Translated>>, Error> {
        let mut answers = vec![None; keys.len()];
        for (keys, answers) in keys.chunks(BATCH).zip(answers.chunks_mut(BATCH)) {
            if self.quiet.is_now(Instant::now()) {
                self.figures.skipped += keys.len() as u64;
                continue;
            }
            self.ask_batch(keys, answers)?;
            let (found, translated) = count(answers);
            self.figures.asked += keys.len() as u64;
            self.figures.found += found;
            self.figures.translated += translated;
            // A connection of these would be tracked if any was.
            let is_idle = found == 0 && self.entries()? == 0;
            self.quiet.take(Instant::now(), keys.len(), translated > 0, is_idle);
        }
        Ok(answers)
    }

    /// What was asked so far.
    #[must_use]
    pub fn figures(&self) -> ConntrackFigures {
        self.figures
    }

    /// The initiator's end knows a connection as it was sent, the responder's as it is answered.
    fn ask_batch(&mut self, keys: &[FlowKey], answers: &mut [Option<Translated>]) -> Result<(), Error> {
        self.ask_by(keys, answers, |key| Tuple { from: key.initiator, to: key.responder })?;
        self.ask_by(keys, answers, |key| Tuple { from: key.responder, to: key.initiator })
    }

    /// Asks for those that have no answer yet.
    fn ask_by(
        &mut self,
        keys: &[FlowKey],
        answers: &mut [Option<Translated>],
        tuple: fn(&FlowKey) -> Tuple,
    ) -> Result<(), Error> {
        self.request.clear();
        let first = self.next_sequence(keys.len());
        let mut open = 0_u64;
        for (at, key) in keys.iter().enumerate().filter(|(at, _)| answers[*at].is_none()) {
            if message::put_question(&mut self.request, first.wrapping_add(at as u32), key.proto, tuple(key)) {
                open |= 1 << at;
            }
        }
        self.exchange(first, open, |at, answer| {
            let Answer::Entry(proto, found) = answer else { return };
            if proto == keys[at].proto.number() && [found.original, found.reply].contains(&tuple(&keys[at])) {
                answers[at] = Some(found);
            }
        })
    }

    /// How many connections the namespace tracks.
    fn entries(&mut self) -> Result<u32, Error> {
        self.request.clear();
        let (sequence, mut entries) = (self.next_sequence(1), 0);
        message::put_count(&mut self.request, sequence);
        self.exchange(sequence, 1, |_, answer| {
            if let Answer::Count(count) = answer {
                entries = count;
            }
        })?;
        Ok(entries)
    }

    fn next_sequence(&mut self, questions: usize) -> u32 {
        let first = self.sequence;
        self.sequence = first.wrapping_add(questions as u32);
        first
    }

    /// Sends what is in `request`, and takes the answers, each with its number. `open` has a bit for each question.
    fn exchange(&mut self, first: u32, open: u64, mut take: impl FnMut(usize, Answer)) -> Result<(), Error> {
        if open == 0 {
            return Ok(());
        }
        // The kernel has answered all when this returns.
        rustix::io::retry_on_intr(|| rustix::net::send(self.socket.as_fd(), &self.request, SendFlags::empty()))?;
        let (mut left, mut failed) = (open, None);
        while left != 0 {
            let flags = RecvFlags::DONTWAIT;
            let length = match rustix::net::recv(self.socket.as_fd(), self.answer.as_mut_slice(), flags) {
                Ok((length, _)) => length,
                // No buffers: there was no room for all of them, and those that fitted come next.
                Err(Errno::INTR | Errno::NOBUFS) => continue,
                Err(Errno::AGAIN) => break,
                Err(err) => return Err(err.into()),
            };
            read_answers(&self.answer[..length], |sequence, answer| {
                let at = sequence.wrapping_sub(first) as usize;
                // Others are late answers to questions that were given up.
                if at >= BATCH || left & 1 << at == 0 {
                    return;
                }
                left &= !(1 << at);
                match answer {
                    Answer::Failed(code) => failed = Some(Errno::from_raw_os_error(code)),
                    answer => take(at, answer),
                }
            });
            // One such answer is for all of a message.
            if let Some(err) = failed {
                return Err(err.into());
            }
        }
        if left == 0 { Ok(()) } else { Err(Error::Lost(left.count_ones() as usize, open.count_ones() as usize)) }
    }
}

fn count(answers: &[Option<Translated>]) -> (u64, u64) {
    let found = answers.iter().flatten();
    (found.clone().count() as u64, found.filter(|found| found.is_translated()).count() as u64)
}

/// Whether the part of the kernel that answers is there. To ask it would load it.
fn can_answer() -> bool {
    static IS_BUILT_IN: OnceLock<bool> = OnceLock::new();
    let is_loaded = Path::new("/sys/module/nf_conntrack_netlink").exists();
    // A kernel without modules loads none.
    is_loaded || !Path::new("/proc/modules").exists() || *IS_BUILT_IN.get_or_init(is_built_in)
}

/// Takes some tens of milliseconds, on kernels that have loaded no such module.
fn is_built_in() -> bool {
    let Ok(symbols) = std::fs::read("/proc/kallsyms") else { return false };
    // Symbols of modules have the module's name behind them.
    symbols.split(|b| *b == b'\n').any(|line| line.ends_with(b" ctnetlink_get_conntrack"))
}

#[cfg(test)]
mod tests;
