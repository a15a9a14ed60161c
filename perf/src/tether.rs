//! Helpers of the harness in processes of their own, which end with it however it ends: they read from it.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// A foreign program, which the kernel ends (SIGTERM) when the thread that starts it is gone: nothing that watches a host
/// may outlive a harness that was killed.
pub(crate) fn tethered(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// A child that ends when its standard input does, which is when this is dropped.
pub(crate) struct Tethered(pub(crate) Child);

impl Drop for Tethered {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The other side: set when standard input has ended.
pub(crate) fn until_input_ends() -> Arc<AtomicBool> {
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    thread::spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        ended.store(true, Ordering::Relaxed);
    });
    over
}
