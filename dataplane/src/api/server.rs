//! The control socket: one JSON request per line, one JSON answer per line. A thread accepts, one short-lived thread
//! per client reads and writes, the control thread answers.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::Mode;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::geteuid;
use sockeye_bpf::peer::groups_of_peer;
use sockeye_bpf::preflight::find_cgroup2;
use sockeye_ctl::protocol::{Answer, REQUEST_BYTES_MAX, Request, Response, VERSION};

use super::subscribers;
use crate::api::events::{Command, Event, Question};
use crate::owners::cgroup_tree::containers_below;
use crate::threads::Threads;

/// Clients at a time. More are told so.
const CLIENTS_MAX: usize = 16;
/// Those of them that subscribe at most: the others are for questions.
const SUBSCRIBERS_MAX: usize = 8;
/// Clients that wait to be accepted.
const BACKLOG: i32 = 128;
/// Owner and group may ask.
const SOCKET_MODE: u32 = 0o660;
/// Pause after a client could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to ask or to read.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Who answers.
#[derive(Clone)]
pub struct Answerers {
    /// The control thread: what the agent has seen.
    pub control: Sender<Event>,
    /// The thread that has started all others: how it is configured.
    pub main: Sender<Command>,
}

/// Who may ask, besides root and the agent's own user: the members of this group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlGroup {
    gid: u32,
    name: String,
}

impl FromStr for ControlGroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let group = |group: nix::unistd::Group| Self { gid: group.gid.as_raw(), name: group.name };
        if let Ok(Some(found)) = nix::unistd::Group::from_name(text) {
            return Ok(group(found));
        }
        let gid: u32 = text.parse().map_err(|_| "there is no such group: create it, or give its number".to_owned())?;
        Ok(Self { gid, name: text.to_owned() })
    }
}

impl ControlGroup {
    /// Whether whoever has connected may ask. The mode of the socket's file says the same, until somebody changes it.
    fn refuses(&self, stream: &UnixStream) -> Option<String> {
        let Ok(peer) = sockopt::socket_peercred(stream) else {
            return Some("the agent cannot tell who asks".into());
        };
        let groups = || groups_of_peer(stream.as_fd()).unwrap_or_default();
        let may = peer.uid.is_root()
            || peer.uid == geteuid()
            || peer.gid.as_raw() == self.gid
            || groups().contains(&self.gid);
        (!may).then(|| {
            format!("user {} may not ask: become root, or a member of the group {}", peer.uid.as_raw(), self.name)
        })
    }
}

/// The socket. Its file goes away with it.
pub struct ControlSocket {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl ControlSocket {
    /// Binds the socket with mode 0660 and starts accepting. Its group is the one that is given, or the agent's own.
    ///
    /// # Errors
    /// If another agent holds the socket, or it cannot be created, or not be given to the group.
    pub fn start(threads: &Threads, path: &Path, group: Option<ControlGroup>, answerers: Answerers) -> Result<Self> {
        let listener = bind(path)?;
        if let Some(group) = &group {
            std::os::unix::fs::chown(path, None, Some(group.gid)).with_context(|| {
                let path = path.display();
                format!("cannot give {path} to the group {}: let the agent be root, or in that group", group.name)
            })?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let clients = Clients::default();
        threads.restarted("sockeye-ctl", move |pulse| {
            let mut refused = false;
            loop {
                pulse.waiting();
                let accepted = listener.accept();
                pulse.working();
                if ended.load(Ordering::Relaxed) {
                    return Ok(());
                }
                match accepted {
                    Ok((stream, _)) => match group.as_ref().and_then(|group| group.refuses(&stream)) {
                        None => accept(stream, &clients, &answerers),
                        Some(why) => {
                            let _ = stream.set_write_timeout(Some(CLIENT_TIMEOUT));
                            let _ = respond(&stream, Err(why));
                        }
                    },
                    // Mostly the limit of open files: whoever waits is accepted when there is room, and none is lost.
                    Err(err) => {
                        if !std::mem::replace(&mut refused, true) {
                            tracing::warn!("cannot accept clients at the control socket: {err}; it is tried again");
                        }
                        thread::sleep(ACCEPT_PAUSE);
                    }
                }
            }
        })?;
        Ok(Self { path: path.to_owned(), stop })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(&self.path); // wakes accept()
        let _ = fs::remove_file(&self.path);
    }
}

/// Replaces a socket that a killed agent left behind, never a living one, and never another kind of file.
fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {} for the control socket", dir.display()))?;
    }
    if let Ok(meta) = fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            bail!("{} exists and is no socket: name another with --control-socket PATH", path.display());
        }
        if UnixStream::connect(path).is_ok() {
            bail!(
                "another sockeye is running at {}: stop it, or name another socket with --control-socket PATH",
                path.display()
            );
        }
        fs::remove_file(path).with_context(|| format!("cannot replace the stale socket {}", path.display()))?;
    }
    listen(path).with_context(|| format!("cannot create the control socket {}", path.display()))
}

/// The socket has its mode before it has a name, so that there is no moment in which others may connect.
fn listen(path: &Path) -> rustix::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // What the umask took away from the group.
    rustix::fs::chmod(path, Mode::from_raw_mode(SOCKET_MODE))?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// How many are being served, and how many of those subscribe.
#[derive(Clone, Default)]
struct Clients {
    all: Arc<AtomicUsize>,
    subscribers: Arc<AtomicUsize>,
}

fn accept(stream: UnixStream, clients: &Clients, answerers: &Answerers) {
    let _ = stream.set_read_timeout(Some(CLIENT_TIMEOUT));
    let _ = stream.set_write_timeout(Some(CLIENT_TIMEOUT));
    let Some(place) = Place::take(&clients.all, CLIENTS_MAX) else {
        let _ = respond(&stream, Err(format!("{CLIENTS_MAX} clients are being served already: try again")));
        return;
    };
    let (answerers, subscribers) = (answerers.clone(), Arc::clone(&clients.subscribers));
    // If there is no thread for it, the client sees the end of the connection, and its place is free again.
    let _ = thread::Builder::new().name("sockeye-client".into()).spawn(move || {
        let _place = place;
        let _ = serve(&stream, &answerers, &subscribers);
    });
}

/// One of the clients that are being served, until it goes, also by a panic.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(all: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(Arc::clone(all));
        (all.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers line after line until the client hangs up.
fn serve(stream: &UnixStream, answerers: &Answerers, subscribers: &Arc<AtomicUsize>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut reader).take(REQUEST_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.len() > REQUEST_BYTES_MAX {
            return respond(stream, Err(format!("the request is longer than {REQUEST_BYTES_MAX} bytes")));
        }
        let answer = match Request::parse(&line) {
            Ok(Request::Subscribe(subscription)) => {
                if let Some(_place) = Place::take(subscribers, SUBSCRIBERS_MAX) {
                    let ask = |request, cost_ns: &Arc<AtomicU64>| ask(request, answerers, cost_ns);
                    let others = || subscribers.load(Ordering::Relaxed);
                    subscribers::serve(stream, &mut reader, &subscription, ask, others)?;
                    continue;
                }
                Err(format!("{SUBSCRIBERS_MAX} subscribers are being served already: try again"))
            }
            Ok(request) => ask(request, answerers, &Arc::default()),
            Err(err) => Err(err.to_string()),
        };
        respond(stream, answer)?;
    }
}

fn ask(request: Request, answerers: &Answerers, cost_ns: &Arc<AtomicU64>) -> Result<Answer, String> {
    let (reply, answer) = sync_channel(1);
    let ending = || "the agent is ending".to_owned();
    let places = match &request {
        Request::Containers(arguments) | Request::Pods(arguments) | Request::Workloads(arguments) if arguments.all => {
            containers_below(&find_cgroup2().ok_or("no cgroups are mounted where the agent runs")?)
        }
        _ => Vec::new(),
    };
    let is_for_main = matches!(request, Request::Config | Request::Reload);
    let question = Question { request, places, cost_ns: Arc::clone(cost_ns), reply };
    if is_for_main {
        answerers.main.send(Command::Question(question)).map_err(|_| ending())?;
    } else {
        answerers.control.send(Event::Question(question)).map_err(|_| ending())?;
    }
    match answer.recv_timeout(CLIENT_TIMEOUT) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Disconnected) => Err(ending()),
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("the agent is busy: no answer within {} s", CLIENT_TIMEOUT.as_secs()))
        }
    }
}

fn respond(stream: &UnixStream, answer: Result<Answer, String>) -> io::Result<()> {
    let (answer, error) = match answer {
        Ok(answer) => (Some(answer), None),
        Err(error) => (None, Some(error)),
    };
    send(stream, &Response { version: VERSION, error, answer })
}

/// Writes a line.
pub(super) fn send(mut stream: &UnixStream, line: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sockeye_ctl::protocol::Subscription;
    use sockeye_ctl::{Client, ClientError};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc;

    fn threads() -> Threads {
        Threads::new(|| panic!("nothing essential has failed"))
    }

    fn answering(path: &Path) -> ControlSocket {
        let (control, asked) = mpsc::channel();
        let socket =
            ControlSocket::start(&threads(), path, None, Answerers { control, main: mpsc::channel().0 }).unwrap();
        thread::spawn(move || {
            while let Ok(Event::Question(question)) = asked.recv() {
                let _ = question.reply.send(Ok(Answer::default()));
            }
        });
        socket
    }

    #[test]
    fn answers_refuses_and_survives_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        let client = Client::new(&path);
        assert!(matches!(client.ask(&Request::Stats), Err(ClientError::NoAgent(_))));
        let socket = answering(&path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(client.ask(&Request::Stats).unwrap(), Answer::default());
        for nonsense in [&b"\xff\xfe"[..], b"{}", &[b'x'; REQUEST_BYTES_MAX + 5], b"[[[["] {
            let line = client.exchange(nonsense).unwrap();
            let response: Response = serde_json::from_slice(&line).unwrap();
            assert!(response.error.is_some());
        }
        assert_eq!(client.ask(&Request::Stats).unwrap(), Answer::default());
        drop(socket);
        assert!(!path.exists());
    }

    /// A client that subscribes, and the first line that it gets.
    fn subscriber(path: &Path) -> (BufReader<UnixStream>, String) {
        let stream = UnixStream::connect(path).unwrap();
        let subscription = Subscription { id: 1, every_ms: 250, requests: vec![Request::Overview] };
        (&stream).write_all(format!("{}\n", Request::Subscribe(subscription).to_line()).as_bytes()).unwrap();
        let (mut reader, mut line) = (BufReader::new(stream), String::new());
        reader.read_line(&mut line).unwrap();
        (reader, line)
    }

    #[test]
    fn subscribers_never_keep_out_a_question() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        let _socket = answering(&path);
        let told: Vec<_> = (0..SUBSCRIBERS_MAX).map(|_| subscriber(&path)).collect();
        assert!(told.iter().all(|(_, line)| line.contains(r#""update":1"#)), "{told:?}");
        let refused = subscriber(&path).1;
        assert!(refused.contains("8 subscribers are being served already"), "{refused}");
        // One of them may ask as well: it is told no more, and its place is free.
        assert_eq!(Client::new(&path).ask(&Request::Stats).unwrap(), Answer::default());
        let (mut reader, _) = told.into_iter().next().unwrap();
        reader.get_mut().write_all(format!("{}\n", Request::Stats.to_line()).as_bytes()).unwrap();
        let is_answer = |line: &String| line.contains(r#""answer":{"tables":[]}"#) && !line.contains("update");
        assert!(reader.lines().map(|line| line.unwrap()).take(1000).any(|line| is_answer(&line)));
    }

    #[test]
    fn replaces_a_stale_socket_but_no_living_one_and_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        drop(UnixListener::bind(&path).unwrap());
        let living = answering(&path);
        let nobody = Answerers { control: mpsc::channel().0, main: mpsc::channel().0 };
        let refused = ControlSocket::start(&threads(), &path, None, nobody.clone()).err().unwrap().to_string();
        assert!(refused.contains("another sockeye is running"), "{refused}");
        drop(living);
        fs::write(&path, "precious").unwrap();
        let refused = ControlSocket::start(&threads(), &path, None, nobody).err().unwrap().to_string();
        assert!(refused.contains("is no socket"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
