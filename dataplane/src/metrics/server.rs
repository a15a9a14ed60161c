//! Serves `/metrics` to Prometheus and `/healthz` to probes. A thread accepts, one short-lived thread for each client reads
//! and answers, and control is asked for figures as `ctl` asks it.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::clients::{Clients, Served};
use super::encode::{self, Figures, Format};
use super::health;
use super::http::{self, Request, Response};
use super::process::{CpuClock, OwnFigures};
use super::snapshot::Snapshot;
use crate::threads::Threads;

/// All that a client does, from its connection to its last byte.
const CLIENT_TIME: Duration = Duration::from_secs(10);
/// Whoever asks so soon after another one is told the same: however many scrape, control is asked four times a second.
const FRESH: Duration = Duration::from_millis(250);
/// Pause after a client could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Asks control. Why not, if it does not answer.
pub type Ask = Box<dyn Fn() -> Result<Snapshot, String> + Send + Sync>;

/// Serves metrics.
pub struct MetricsServer {
    threads: Threads,
    ask: Ask,
    clients: Arc<Clients>,
    state: Mutex<State>,
    /// Answers by their codes.
    requests: Mutex<BTreeMap<u16, u64>>,
}

/// What was told last.
#[derive(Default)]
struct State {
    last: Option<(Instant, Result<Arc<Exposition>, String>)>,
    clock: CpuClock,
}

/// Figures, and their text once it was asked for.
struct Exposition {
    figures: Arc<Figures>,
    texts: [OnceLock<Arc<str>>; Format::BOTH.len()],
}

impl Exposition {
    fn text(&self, format: Format) -> Arc<str> {
        let make = || encode::encode(&self.figures, format).unwrap_or_default().into();
        Arc::clone(self.texts[format as usize].get_or_init(make))
    }
}

impl MetricsServer {
    /// Listens, and starts to serve. It ends with the agent.
    ///
    /// # Errors
    /// If it cannot listen there, with the remedy.
    pub fn start(threads: &Threads, address: SocketAddr, ask: Ask) -> Result<Arc<Self>> {
        let listener = TcpListener::bind(address).map_err(|err| cannot_listen(address, &err))?;
        let server = Arc::new(Self {
            threads: threads.clone(),
            ask,
            clients: Arc::default(),
            state: Mutex::default(),
            requests: Mutex::default(),
        });
        let served = Arc::clone(&server);
        threads.restarted("sockeye-http", move |pulse| {
            let mut refused = false;
            loop {
                pulse.waiting();
                let accepted = listener.accept();
                pulse.working();
                if pulse.is_stopping() {
                    return Ok(());
                }
                match accepted {
                    Ok((stream, _)) => served.take(stream),
                    // Mostly the limit of open files: whoever waits is accepted when there is room.
                    Err(err) => {
                        if !std::mem::replace(&mut refused, true) {
                            tracing::warn!("cannot accept clients at {address}: {err}; it is tried again");
                        }
                        thread::sleep(ACCEPT_PAUSE);
                    }
                }
            }
        })?;
        Ok(server)
    }

    fn take(self: &Arc<Self>, stream: TcpStream) {
        let Some(served) = self.clients.take(stream) else { return };
        let server = Arc::clone(self);
        // If there is no thread for it, the client sees the end of the connection, and its place is free again.
        let _ = thread::Builder::new().name("sockeye-scrape".into()).spawn(move || {
            if server.serve(&served, Instant::now() + CLIENT_TIME).is_err() {
                served.give_up();
            }
        });
    }

    fn serve(&self, served: &Served, until: Instant) -> io::Result<()> {
        let stream = &served.client.stream;
        let (response, whole) = match http::read(stream, until) {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => {
                served.has_asked();
                (self.respond(&request), request.method != "HEAD")
            }
            Err(response) => {
                // Whoever was too slow gets a second to read that.
                served.give_up();
                self.count(response.code);
                return http::answer(stream, &response, true, Instant::now() + Duration::from_secs(1));
            }
        };
        self.count(response.code);
        http::answer(stream, &response, whole, until)
    }

    fn respond(&self, request: &Request) -> Response {
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return Response::text(405, "only GET and HEAD are answered");
        }
        match request.path.as_str() {
            "/metrics" => {
                let format = Format::wanted(&request.accept);
                match self.exposition() {
                    Ok(exposition) => {
                        Response { code: 200, content_type: format.content_type(), body: exposition.text(format) }
                    }
                    Err(why) => Response::text(503, &why),
                }
            }
            "/healthz" => match health::fault(&self.threads) {
                None => Response::text(200, "ok"),
                Some(fault) => Response::text(503, &fault),
            },
            "/" => Response::text(200, "sockeye: /metrics is for Prometheus, /healthz for probes"),
            _ => Response::text(404, "there are /metrics and /healthz"),
        }
    }

    /// The last one, or a new one. One client asks control, and the others wait for what it is told.
    fn exposition(&self) -> Result<Arc<Exposition>, String> {
        let mut state = lock(&self.state);
        if let Some((_, last)) = state.last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return last.clone();
        }
        let exposition = (self.ask)().map(|snapshot| {
            let own = OwnFigures {
                healthy: health::fault(&self.threads).is_none(),
                requests: lock(&self.requests).clone(),
                clients_cut: self.clients.cut(),
                ..OwnFigures::read(&self.threads, &mut state.clock)
            };
            Arc::new(Exposition { figures: Arc::new(Figures { snapshot, own }), texts: Default::default() })
        });
        state.last = Some((Instant::now(), exposition.clone()));
        exposition
    }

    fn count(&self, code: u16) {
        *lock(&self.requests).entry(code).or_default() += 1;
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cannot_listen(address: SocketAddr, err: &io::Error) -> anyhow::Error {
    let port = address.port();
    let remedy = match err.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "name another port with --prometheus ADDRESS:PORT, or end who listens there (ss -ltnp 'sport = :{port}')"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            "name an address of this host with --prometheus ADDRESS:PORT (ip address), or 0.0.0.0 for all".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "name a port above 1023 with --prometheus ADDRESS:PORT, or give the agent CAP_NET_BIND_SERVICE".to_owned()
        }
        _ => "name another address with --prometheus ADDRESS:PORT".to_owned(),
    };
    anyhow!("cannot serve metrics at {address}: {err}: {remedy}")
}
