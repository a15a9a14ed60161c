//! Asking an agent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::protocol::{Answer, Request, Response, VERSION};
use crate::{exit, human};

/// How long an agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer, bytes: a million flows and more.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// Why there is no answer. Each message is one sentence for people.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing listens.
    #[error("no agent is running at {}: start sockeye, or name its socket with --socket PATH", .0.display())]
    NoAgent(PathBuf),
    /// Not allowed.
    #[error("no permission to talk to the agent at {}: run as root or as a member of the socket's group", .0.display())]
    Permission(PathBuf),
    /// Agent and client differ.
    #[error(
        "the agent speaks version {agent} of the control protocol and this ctl version {VERSION}: use the ctl that was installed with the agent"
    )]
    Version {
        /// What the agent speaks.
        agent: u32,
    },
    /// The agent refused.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// What came is no answer.
    #[error("the agent's answer is not understood: {0}")]
    Malformed(String),
    /// The agent did not answer in time.
    #[error("the agent did not answer within {} s: it may be overloaded", TIMEOUT.as_secs())]
    Timeout,
    /// The connection broke.
    #[error("the connection to the agent broke: {0}")]
    Io(io::Error),
}

impl ClientError {
    /// Exit code of the command line tool, from sysexits(3).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoAgent(_) | Self::Timeout => exit::UNAVAILABLE,
            Self::Permission(_) => exit::NO_PERMISSION,
            Self::Version { .. } | Self::Malformed(_) => exit::PROTOCOL,
            Self::Refused(_) => exit::REFUSED,
            Self::Io(_) => exit::IO,
        }
    }
}

/// Talks to one agent.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the agent behind this socket.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks one question.
    ///
    /// # Errors
    /// If there is no agent, no permission, no common version, or no answer.
    pub fn ask(&self, request: &Request) -> Result<Answer, ClientError> {
        read_answer(&self.exchange(request.to_line().as_bytes()).map_err(|err| self.explain(err))?)
    }

    /// Sends a line and reads the answering line.
    ///
    /// # Errors
    /// Of the socket.
    pub fn exchange(&self, line: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        match stream.write_all(&[line, b"\n"].concat()) {
            // An agent that is too busy says so without reading.
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
        let mut answer = Vec::new();
        BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_until(b'\n', &mut answer)?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    }

    fn explain(&self, err: io::Error) -> ClientError {
        match err.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoAgent(self.socket.clone()),
            io::ErrorKind::PermissionDenied => ClientError::Permission(self.socket.clone()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout,
            _ => ClientError::Io(err),
        }
    }
}

/// Reads the line that an agent has answered with.
///
/// # Errors
/// If it is no answer, of another version, or a refusal.
pub fn read_answer(line: &[u8]) -> Result<Answer, ClientError> {
    let response: Response = serde_json::from_slice(line).map_err(|err| ClientError::Malformed(err.to_string()))?;
    if response.version != VERSION {
        return Err(ClientError::Version { agent: response.version });
    }
    match (response.error, response.answer) {
        (Some(error), _) => Err(ClientError::Refused(human::printable(&error))),
        (None, Some(answer)) => Ok(answer),
        (None, None) => Err(ClientError::Malformed("it has neither an answer nor an error".into())),
    }
}
