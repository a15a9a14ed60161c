//! Who is being served: so many at a time, and each for a while only. A client that is slow keeps no other one out.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clients at a time. One more takes the place of the one that came first, if possible of one that has not asked yet.
pub(super) const CLIENTS_MAX: usize = 8;
/// Threads of clients, those included that were cut off and have not noticed yet.
const THREADS_MAX: usize = 2 * CLIENTS_MAX;

/// A client.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    /// It has told what it wants.
    asked: AtomicBool,
    cut: AtomicBool,
}

/// All of them, the first first.
#[derive(Default)]
pub(super) struct Clients {
    served: Mutex<Vec<Arc<Client>>>,
    threads: AtomicUsize,
    cut: AtomicU64,
}

impl Clients {
    /// Takes one more. `None` if there are too many even so.
    pub(super) fn take(self: &Arc<Self>, stream: TcpStream) -> Option<Served> {
        let mut served = self.served();
        if served.len() >= CLIENTS_MAX {
            let first = served.iter().position(|client| !client.asked.load(Ordering::Relaxed)).unwrap_or(0);
            let first = served.remove(first);
            first.cut.store(true, Ordering::Relaxed);
            self.count_cut();
            let _ = first.stream.shutdown(Shutdown::Both);
        }
        if self.threads.load(Ordering::Relaxed) >= THREADS_MAX {
            self.count_cut();
            return None;
        }
        self.threads.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Client { stream, asked: AtomicBool::new(false), cut: AtomicBool::new(false) });
        served.push(Arc::clone(&client));
        Some(Served { client, clients: Arc::clone(self) })
    }

    /// How many were cut off.
    pub(super) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    fn count_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    fn served(&self) -> MutexGuard<'_, Vec<Arc<Client>>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place, until its thread ends, also by a panic.
pub(super) struct Served {
    pub(super) client: Arc<Client>,
    clients: Arc<Clients>,
}

impl Served {
    /// It has told what it wants.
    pub(super) fn has_asked(&self) {
        self.client.asked.store(true, Ordering::Relaxed);
    }

    /// It was too slow.
    pub(super) fn give_up(&self) {
        if !self.client.cut.swap(true, Ordering::Relaxed) {
            self.clients.count_cut();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.clients.served().retain(|client| !Arc::ptr_eq(client, &self.client));
        self.clients.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::TcpListener;

    #[test]
    fn the_first_that_has_not_asked_makes_room_and_there_is_an_end_to_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let clients = Arc::new(Clients::default());
        let mut far = Vec::new();
        let mut take = || {
            far.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            clients.take(listener.accept().unwrap().0)
        };
        let mut served: Vec<Served> = (0..CLIENTS_MAX).map(|_| take().unwrap()).collect();
        served[0].has_asked();
        served.push(take().unwrap());
        served.extend((0..CLIENTS_MAX - 1).map(|_| take().unwrap()));
        assert!(take().is_none(), "their threads have not noticed");
        assert_eq!(clients.cut(), CLIENTS_MAX as u64 + 2);
        served.clear();
        assert!(take().is_some());
        assert_eq!(far[1].read(&mut [0]).unwrap(), 0, "it was cut off");
    }
}
