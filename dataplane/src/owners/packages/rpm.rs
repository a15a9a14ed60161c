//! rpm's database, by asking `rpm`.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::model::text::clean;

const DATABASES: [&str; 2] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm"];
/// How long `rpm` may take. It waits for its database, which an upgrade holds for minutes.
const DEADLINE: Duration = Duration::from_secs(4);
/// What is read of its answer, bytes: a name.
const ANSWER_MAX: usize = 4096;

/// The package of an executable of the host; and whether `rpm` had to be ended.
pub(super) fn package(exe: &str) -> (Option<String>, bool) {
    if !DATABASES.iter().any(|path| Path::new(path).is_dir()) {
        return (None, false);
    }
    let mut rpm = Command::new("rpm");
    rpm.args(["-qf", "--queryformat", "%{NAME}\\n", "--", exe]);
    let (answer, late) = first_line(rpm, DEADLINE);
    (answer.map(|name| clean(&name)), late)
}

/// The first line of what a command prints, if it succeeds before its deadline, else it is killed. What fills its pipe,
/// for nobody reads while it works, is late, too.
fn first_line(mut command: Command, deadline: Duration) -> (Option<Vec<u8>>, bool) {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = child else { return (None, false) };
    if !ends_within(&child, deadline) {
        let _ = child.kill();
        let _ = child.wait();
        return (None, true);
    }
    let succeeded = child.wait().is_ok_and(|status| status.success());
    let Some(mut stdout) = child.stdout.take().filter(|_| succeeded) else { return (None, false) };
    // What it has left behind may still hold the pipe open.
    let mut answer = [0; ANSWER_MAX];
    let length = ioctl_fionbio(&stdout, true).map_or(0, |()| stdout.read(&mut answer).unwrap_or(0));
    let line = answer[..length].split(|b| *b == b'\n').next().filter(|line| !line.is_empty());
    (line.map(<[u8]>::to_vec), false)
}

fn ends_within(child: &Child, deadline: Duration) -> bool {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let Some(ended) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return false };
    let until = Instant::now() + deadline;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&left)) {
            // A signal.
            Err(rustix::io::Errno::INTR) => {}
            ended => return ended.is_ok_and(|ended| ended > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, deadline_ms: u64) -> (Option<String>, bool) {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        let (line, late) = first_line(shell, Duration::from_millis(deadline_ms));
        (line.map(|line| clean(&line)), late)
    }

    #[test]
    fn what_does_not_end_is_killed_at_its_deadline() {
        let begun = Instant::now();
        assert_eq!(run("echo name; exec sleep 60", 100), (None, true));
        assert_eq!(run("exec yes", 100), (None, true));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn the_first_line_of_who_succeeds_counts() {
        assert_eq!(run("echo one; echo two", 20_000), (Some("one".into()), false));
        assert_eq!(run("echo one; exit 1", 20_000), (None, false));
        assert_eq!(run("true", 20_000), (None, false));
        // Its child has the pipe and lives on.
        assert_eq!(run("sleep 5 & echo one", 20_000), (Some("one".into()), false));
        assert_eq!(first_line(Command::new("/no/such/program"), DEADLINE), (None, false));
    }
}
