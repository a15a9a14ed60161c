//! The control socket: one JSON request per line, one JSON answer per line. A thread accepts, one short-lived thread
//! per client reads and writes, the control thread answers.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sockeye_ctl::protocol::{Answer, REQUEST_BYTES_MAX, Request, Response, VERSION};

use crate::api::events::{Event, Question};

/// Clients at a time. More are told so.
const CLIENTS_MAX: usize = 16;
/// How long a client may take to ask or to read.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The socket. Its file goes away with it.
pub struct ControlSocket {
    path: PathBuf,
    stop: Arc<AtomicBool>,
}

impl ControlSocket {
    /// Binds the socket with mode 0660 and starts accepting.
    ///
    /// # Errors
    /// If another agent holds the socket, or it cannot be created.
    pub fn start(path: &Path, events: Sender<Event>) -> Result<Self> {
        let listener = bind(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        thread::Builder::new().name("sockeye-ctl".into()).spawn(move || {
            let clients = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                accept(stream, &clients, &events);
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
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot create the control socket {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot protect the control socket {}", path.display()))?;
    Ok(listener)
}

fn accept(mut stream: UnixStream, clients: &Arc<AtomicUsize>, events: &Sender<Event>) {
    let _ = stream.set_read_timeout(Some(CLIENT_TIMEOUT));
    let _ = stream.set_write_timeout(Some(CLIENT_TIMEOUT));
    if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
        clients.fetch_sub(1, Ordering::Relaxed);
        let _ = respond(&mut stream, Err(format!("{CLIENTS_MAX} clients are being served already: try again")));
        return;
    }
    let (counted, events) = (Arc::clone(clients), events.clone());
    let spawned = thread::Builder::new().name("sockeye-client".into()).spawn(move || {
        let _ = serve(stream, &events);
        counted.fetch_sub(1, Ordering::Relaxed);
    });
    if spawned.is_err() {
        clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers line after line until the client hangs up.
fn serve(mut stream: UnixStream, events: &Sender<Event>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut reader).take(REQUEST_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.len() > REQUEST_BYTES_MAX {
            return respond(&mut stream, Err(format!("the request is longer than {REQUEST_BYTES_MAX} bytes")));
        }
        let answer = match Request::parse(&line) {
            Ok(request) => ask(request, events),
            Err(err) => Err(err.to_string()),
        };
        respond(&mut stream, answer)?;
    }
}

fn ask(request: Request, events: &Sender<Event>) -> Result<Answer, String> {
    let (reply, answer) = sync_channel(1);
    let ending = || "the agent is ending".to_owned();
    events.send(Event::Question(Question { request, reply })).map_err(|_| ending())?;
    answer.recv_timeout(CLIENT_TIMEOUT).map_err(|_| ending())?
}

fn respond(stream: &mut UnixStream, answer: Result<Answer, String>) -> io::Result<()> {
    let (answer, error) = match answer {
        Ok(answer) => (Some(answer), None),
        Err(error) => (None, Some(error)),
    };
    let mut line = serde_json::to_vec(&Response { version: VERSION, error, answer })?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sockeye_ctl::{Client, ClientError};
    use std::sync::mpsc;

    fn answering(path: &Path) -> ControlSocket {
        let (questions, asked) = mpsc::channel();
        let socket = ControlSocket::start(path, questions).unwrap();
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

    #[test]
    fn replaces_a_stale_socket_but_no_living_one_and_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        drop(UnixListener::bind(&path).unwrap());
        let living = answering(&path);
        let (questions, _asked) = mpsc::channel();
        let refused = ControlSocket::start(&path, questions.clone()).err().unwrap().to_string();
        assert!(refused.contains("another sockeye is running"), "{refused}");
        drop(living);
        fs::write(&path, "precious").unwrap();
        let refused = ControlSocket::start(&path, questions).err().unwrap().to_string();
        assert!(refused.contains("is no socket"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
