//! `ctl --host`, with a stand-in for ssh that forwards as a link does.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

const CTL: &str = env!("CARGO_BIN_EXE_ctl");

/// A folder with an `ssh` of this text.
fn ssh(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ssh");
    fs::write(&path, format!("#!/bin/bash\n{text}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    folder
}

fn ctl(ssh: &Path, args: &[&str]) -> Output {
    let path = format!("{}:{}", ssh.display(), std::env::var("PATH").unwrap_or_default());
    Command::new(CTL).args(args).env("PATH", path).output().expect("ctl")
}

#[test]
fn every_command_runs_over_a_forwarded_socket_that_goes_with_it() {
    let far = tempfile::tempdir().expect("a folder");
    let socket = far.path().join("ctl.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let table =
                r#"{"name":"ports","help":"","columns":[{"name":"port","unit":"id","help":""}],"rows":[[4711]]}"#;
            let _ = writeln!(&stream, "{{\"version\":2,\"error\":null,\"answer\":{{\"tables\":[{table}]}}}}");
        }
    });
    let log = far.path().join("log");
    // Slow to come up, as the real one is.
    let ssh = ssh(&format!(
        "echo \"$@\" > {0}; while [ \"$1\" != -L ]; do shift; done; sleep 0.3; ln -s \"${{2#*:}}\" \"${{2%%:*}}\"; \
         echo $$ >> {0}; exec sleep 1000",
        log.display()
    ));
    let output = ctl(ssh.path(), &["--host", "me@there", "--socket", &socket.display().to_string(), "ports"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("4711"), "{output:?}");
    let said = fs::read_to_string(&log).expect("what ssh was told");
    assert!(said.contains("-N") && said.contains("-- me@there") && !said.contains(" -R"), "{said}");
    let pid = said.lines().last().expect("its pid");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it has ended");
    let near = said.split(" -L ").nth(1).and_then(|rest| rest.split(':').next()).expect("the near end");
    assert!(!Path::new(near).exists());
}

#[test]
fn an_ssh_that_fails_is_told_in_one_sentence() {
    let began = Instant::now();
    let refused = ssh("echo 'me@there: Permission denied (publickey).' >&2; exit 255");
    let output = ctl(refused.path(), &["--host", "me@there", "stats"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{text}");
    assert!(text.contains("ssh to me@there ended") && text.contains("Permission denied"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    let output =
        Command::new(CTL).args(["--host", "me@there", "stats"]).env("PATH", "/nonexistent").output().expect("ctl");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot start ssh"), "{output:?}");
    // An option is no host.
    let output = ctl(refused.path(), &["--host=-oProxyCommand=x", "stats"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is no host"), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
}
