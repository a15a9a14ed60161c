//! Taking the UDP counters out of the kernel, on a thread of its own: the exchange of the tables waits for a grace period
//! of RCU, which takes milliseconds on an idle host and was seen to take 1.6 s on a loaded one. Control must not wait.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use sockeye_bpf::error::KernelError;
use sockeye_bpf::records::{UdpKey, UdpValue};
use sockeye_bpf::scan::UdpTables;

use crate::model::clock::boot_ns;
use crate::threads::Threads;

/// Control asks every second. If it does not, this thread is not the one that stands still, and says so.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// What one exchange brought. Travels back empty with the next request.
#[derive(Default)]
pub struct Drained {
    /// Counters since the exchange before.
    pub rows: Vec<(UdpKey, UdpValue)>,
    /// UDP sockets that were gone when the request was made: all their counters are in `rows`, or were before.
    pub closed: Vec<u64>,
    /// When it was asked for.
    pub asked_ns: u64,
    /// Why rows may be missing.
    pub error: Option<KernelError>,
}

/// Control's end. At most one request is on its way.
pub struct Drainer {
    requests: Sender<Drained>,
    answers: Receiver<Drained>,
    busy: bool,
    spare: Drained,
}

impl Drainer {
    /// Starts the thread. It ends with this.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(threads: &Threads, mut tables: UdpTables) -> io::Result<Self> {
        let (requests, asked) = channel::<Drained>();
        let (answer, answers) = channel();
        threads.essential("sockeye-udp", move |pulse| {
            loop {
                let mut drained = match asked.recv_timeout(SIGN_OF_LIFE) {
                    Ok(request) => request,
                    Err(RecvTimeoutError::Timeout) => {
                        pulse.waiting();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                pulse.working();
                drained.error = tables.take(|key, value| drained.rows.push((*key, *value))).err();
                if answer.send(drained).is_err() {
                    return;
                }
                pulse.waiting();
            }
        })?;
        Ok(Self { requests, answers, busy: false, spare: Drained::default() })
    }

    /// Asks for an exchange, unless one is on its way: `closed` is taken then, else left for the next one.
    pub fn ask(&mut self, closed: &mut Vec<u64>) {
        if self.busy {
            return;
        }
        let mut request = std::mem::take(&mut self.spare);
        std::mem::swap(&mut request.closed, closed);
        request.asked_ns = boot_ns();
        self.busy = self.requests.send(request).is_ok();
    }

    /// The answer, if there is one. Give it back with [`Self::recycle`].
    pub fn poll(&mut self) -> Option<Drained> {
        let drained = self.answers.try_recv().ok()?;
        self.busy = false;
        Some(drained)
    }

    /// Waits for the answer that is on its way.
    pub fn wait(&mut self) -> Option<Drained> {
        let drained = self.busy.then(|| self.answers.recv().ok())?;
        self.busy = false;
        drained
    }

    /// Keeps the memory.
    pub fn recycle(&mut self, mut drained: Drained) {
        drained.rows.clear();
        drained.closed.clear();
        drained.error = None;
        self.spare = drained;
    }
}
