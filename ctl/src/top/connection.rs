//! Holds the subscription: a thread reads what comes, and connects again when the agent has gone.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sockeye_ctl::client::{ClientError, read_answer};
use sockeye_ctl::protocol::{Request, Subscription, Update, VERSION};
use sockeye_ctl::subscription::Columns;

use super::app::Input;

/// Pause before the agent is looked for again.
const PAUSE: Duration = Duration::from_millis(500);
/// An agent that does not take a line for so long is taken for gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest update, bytes.
const UPDATE_BYTES_MAX: u64 = 64 << 20;

#[derive(Default)]
struct Shared {
    stream: Option<UnixStream>,
    wanted: Option<Subscription>,
}

/// The near end.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<Mutex<Shared>>,
}

impl Connection {
    /// Starts the thread. It ends with the program, or when nobody listens any more.
    pub(crate) fn start(socket: &Path, began: Instant, inputs: Sender<Input>) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (socket, of_thread) = (socket.to_owned(), Arc::clone(&shared));
        thread::Builder::new().name("connection".into()).spawn(move || keep(&socket, began, &of_thread, &inputs))?;
        Ok(Self { shared })
    }

    /// Asks for something else from now on.
    pub(crate) fn subscribe(&self, subscription: Subscription) {
        let mut shared = lock(&self.shared);
        if let Some(stream) = &shared.stream {
            // If that fails the thread notices, and asks again when it is connected.
            let _ = ask(stream, &subscription);
        }
        shared.wanted = Some(subscription);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask(mut stream: &UnixStream, subscription: &Subscription) -> io::Result<()> {
    stream.write_all(format!("{}\n", Request::Subscribe(subscription.clone()).to_line()).as_bytes())
}

fn keep(socket: &Path, began: Instant, shared: &Mutex<Shared>, inputs: &Sender<Input>) {
    loop {
        let why = match connect(socket, shared) {
            Ok(stream) => {
                if inputs.send(Input::Connected).is_err() {
                    return;
                }
                let why = read(&stream, began, inputs);
                lock(shared).stream = None;
                why
            }
            Err(err) => match err.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Permission(socket.to_owned()).to_string(),
                _ => format!("the agent at {} is gone: it is looked for again and again", socket.display()),
            },
        };
        if inputs.send(Input::Broken(why)).is_err() {
            return;
        }
        thread::sleep(PAUSE);
    }
}

fn connect(socket: &Path, shared: &Mutex<Shared>) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut shared = lock(shared);
    if let Some(wanted) = &shared.wanted {
        ask(&stream, wanted)?;
    }
    shared.stream = Some(stream.try_clone()?);
    Ok(stream)
}

/// Hands on what comes until that ends, and says why it did.
fn read(stream: &UnixStream, began: Instant, inputs: &Sender<Input>) -> String {
    let mut reader = BufReader::new(stream);
    let (mut line, mut id, mut columns) = (Vec::new(), None, Vec::new());
    loop {
        line.clear();
        match (&mut reader).take(UPDATE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => return "the agent has gone: it is looked for again and again".into(),
            Ok(_) => {}
            Err(err) => return format!("the connection to the agent broke: {err}"),
        }
        let mut update: Update = match serde_json::from_slice(&line) {
            Ok(update) => update,
            Err(err) => {
                // Not told again and again: it is refused.
                return read_answer(&line).err().map_or_else(|| format!("{err}"), |refused| refused.to_string());
            }
        };
        if update.version != VERSION {
            return ClientError::Version { agent: update.version }.to_string();
        }
        if id != Some(update.id) {
            id = Some(update.id);
            columns = vec![Columns::default(); update.answers.len()];
        }
        update.answers.iter_mut().zip(&mut columns).for_each(|(outcome, columns)| outcome.complete(columns));
        if inputs.send(Input::Update(Box::new(update), began.elapsed())).is_err() {
            return String::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::{Receiver, channel};

    fn next(inputs: &Receiver<Input>) -> Input {
        inputs.recv_timeout(Duration::from_secs(20)).expect("an input")
    }

    fn subscription(id: u64) -> Subscription {
        Subscription { id, every_ms: 1000, requests: vec![Request::Overview] }
    }

    /// Serves one client: takes a line, answers it with one.
    fn serve(listener: &UnixListener, answer: &str) -> (UnixStream, String) {
        let (stream, _) = listener.accept().expect("a client");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("a line");
        (&stream).write_all(answer.as_bytes()).expect("written");
        (stream, line)
    }

    #[test]
    fn an_agent_that_comes_back_is_asked_the_same_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("ctl.sock");
        let (sender, inputs) = channel();
        let connection = Connection::start(&path, Instant::now(), sender).expect("a thread");
        assert!(matches!(next(&inputs), Input::Broken(why) if why.contains("gone")));
        connection.subscribe(subscription(7));
        let listener = UnixListener::bind(&path).expect("a socket");
        let update = "{\"version\":2,\"id\":7,\"update\":1,\"skipped\":0,\"every_ms\":1000,\"answers\":[{}]}\n";
        for _ in 0..2 {
            let (stream, line) = serve(&listener, update);
            assert_eq!(Request::parse(line.as_bytes()), Ok(Request::Subscribe(subscription(7))));
            let mut seen = std::iter::from_fn(|| Some(next(&inputs)));
            assert!(seen.any(|input| matches!(input, Input::Connected)));
            assert!(matches!(seen.next(), Some(Input::Update(update, _)) if update.id == 7));
            drop(stream);
            assert!(matches!(seen.next(), Some(Input::Broken(_))));
        }
        let refusal = "{\"version\":2,\"error\":\"8 subscribers are being served already\",\"answer\":null}\n";
        let _refused = serve(&listener, refusal);
        assert!(
            std::iter::from_fn(|| Some(next(&inputs)))
                .any(|input| matches!(input, Input::Broken(why) if why.contains("8 subscribers")))
        );
    }
}
