//! `ctl --host`: the control socket of another host, forwarded by ssh. Nothing listens there that did not before, and who may
//! ask is decided there by the socket's owner and group.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sockeye_ctl::Client;
use sockeye_ctl::protocol::Request;
use tempfile::TempDir;

/// How long ssh may take, with what it has to ask its user.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// ssh, while it forwards. It ends with this.
pub(crate) struct Tunnel {
    ssh: Child,
    /// With the near end of the socket, which only we may enter.
    _folder: TempDir,
    near: PathBuf,
}

impl Tunnel {
    /// Starts ssh, and waits until the socket is forwarded. It may ask for a password on the terminal.
    ///
    /// # Errors
    /// One sentence, if ssh is not there or does not come through.
    pub(crate) fn open(host: &str, socket: &Path) -> Result<Self, String> {
        if host.is_empty() || host.starts_with('-') {
            return Err(format!("{host:?} is no host: --host USER@HOST is needed"));
        }
        let folder = tempfile::Builder::new().prefix("sockeyectl-").tempdir();
        let folder = folder.map_err(|err| format!("cannot make a folder for the forwarded socket: {err}"))?;
        let near = folder.path().join("ctl.sock");
        let ssh = Command::new("ssh")
            // Only this: no command there, no other forwarding of the user's configuration, and no waiting for a lost host.
            .args([
                "-N",
                "-T",
                "-o",
                "ExitOnForwardFailure=yes",
                "-o",
                "ServerAliveInterval=15",
                "-o",
                "ControlPath=none",
            ])
            .arg("-L")
            .arg(format!("{}:{}", near.display(), socket.display()))
            .arg("--")
            .arg(host)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|err| format!("cannot start ssh: {err}; it is needed for --host"))?;
        let mut tunnel = Self { ssh, _folder: folder, near };
        tunnel.wait(host, socket)?;
        Ok(tunnel)
    }

    fn wait(&mut self, host: &str, socket: &Path) -> Result<(), String> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if UnixStream::connect(&self.near).is_ok() {
                // ssh takes a client before it knows whether somebody answers there.
                let answer = Client::new(&self.near).exchange(Request::Overview.to_line().as_bytes());
                return answer.map(drop).map_err(|_| {
                    let socket = socket.display();
                    format!("nobody answers at {socket} on {host}: is sockeye running there, and may the account use its socket")
                });
            }
            if let Ok(Some(status)) = self.ssh.try_wait() {
                let mut said = String::new();
                let _ = self.ssh.stderr.take().map(|mut pipe| pipe.read_to_string(&mut said));
                let said = sockeye_ctl::human::printable(said.trim().lines().last().unwrap_or_default());
                return Err(format!("ssh to {host} ended with {status}: {said}"));
            }
            thread::sleep(PAUSE);
        }
        Err(format!("ssh to {host} did not forward the socket within {} s", PATIENCE.as_secs()))
    }

    /// The near end.
    pub(crate) fn socket(&self) -> &Path {
        &self.near
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}
