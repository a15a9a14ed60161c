//! Who is being served: so many at a time, and each for a while only. A client that is slow keeps no other one out.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Clients at a time. One more takes the place of the one that came first, if possible of one that has not asked yet.
pub(super) const CLIENTS_MAX: usize = 8;
/// Threads of clients, those included that were cut off and have not noticed yet.
const THREADS_MAX: usize = 2 * CLIENTS_MAX;
/// How long one more waits for one of them to end. They notice at once, when they are given a CPU.
const THREAD_WAIT: Duration = Duration::from_secs(2);

/// A client.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    /// It has told what it wants.
    asked: AtomicBool,
    cut: AtomicBool,
}

#[derive(Default)]
struct Places {
    /// The first first.
    served: Vec<Arc<Client>>,
    threads: usize,
}

/// All of them.
#[derive(Default)]
pub(super) struct Clients {
    places: Mutex<Places>,
    /// A thread has ended.
    ended: Condvar,
    cut: AtomicU64,
}

impl Clients {
    /// Takes one more. `None` if there are too many even so.
    pub(super) fn take(self: &Arc<Self>, stream: TcpStream) -> Option<Served> {
        let mut places = self.places();
        if places.served.len() >= CLIENTS_MAX {
            let first = places.served.iter().position(|client| !client.asked.load(Ordering::Relaxed)).unwrap_or(0);
            let first = places.served.remove(first);
            first.cut.store(true, Ordering::Relaxed);
            self.count_cut();
            let _ = first.stream.shutdown(Shutdown::Both);
        }
        let is_full = |places: &mut Places| places.threads >= THREADS_MAX;
        let waited = self.ended.wait_timeout_while(places, THREAD_WAIT, is_full);
        let (mut places, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            self.count_cut();
            return None;
        }
        places.threads += 1;
        let client = Arc::new(Client { stream, asked: AtomicBool::new(false), cut: AtomicBool::new(false) });
        places.served.push(Arc::clone(&client));
        Some(Served { client, clients: Arc::clone(self) })
    }

    /// How many were cut off.
    pub(super) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    fn count_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut places = self.clients.places();
        places.served.retain(|client| !Arc::ptr_eq(client, &self.client));
        places.threads -= 1;
        drop(places);
        self.clients.ended.notify_one();
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
        // One that ends meanwhile makes room for who waits.
        let last = served.pop();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(last);
        });
        assert!(take().is_some());
        ending.join().unwrap();
        assert_eq!(far[1].read(&mut [0]).unwrap(), 0, "it was cut off");
    }
}
