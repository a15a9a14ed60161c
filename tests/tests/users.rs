//! A container runtime of a user who comes after the agent.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sockeye_ctl::protocol::{OwnersArguments, Request};
use sockeye_tests::engines::Cgroup;
use sockeye_tests::{Agent, Guard, serve, wait_for};

const UID: u32 = 54_321;

/// Says the same of every container. Docker's API, as that user's own process.
const RUNTIME: &str = r#"
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
kept = []
while True:
    connection, _ = listener.accept()
    kept.append(connection)
    if connection.recv(4096).startswith(b"GET /containers/"):
        body = b'{"Name": "/late", "Config": {"Image": "i:1"}}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
"#;

fn start_runtime(folder: &Path) -> Guard {
    fs::create_dir_all(folder).expect("a folder");
    chown(folder, Some(UID), Some(UID)).expect("root");
    let mut python = Command::new("python3");
    python.args(["-c", RUNTIME]).arg(folder.join("docker.sock")).uid(UID).gid(UID).stdout(Stdio::piped());
    let mut python = python.spawn().expect("python3");
    let mut said = String::new();
    let output = python.stdout.take().expect("a pipe");
    BufReader::new(output).read_line(&mut said).expect("a line");
    assert_eq!(said, "ready\n");
    Guard(python)
}

#[test]
fn a_runtime_of_a_user_who_comes_later_is_asked() {
    let folder = Path::new("/run/user").join(UID.to_string());
    let _ = fs::remove_dir_all(&folder);
    let mut agent = Agent::start(&[]);
    let runtime = start_runtime(&folder);
    let (_server, server_port, _) = serve("serve", "127.0.0.1");
    let path = format!("/user.slice/user-{UID}.slice/user@{UID}.service/user.slice/docker-{}.scope", "c".repeat(64));
    let cgroup = Cgroup::new(&path);
    let status = cgroup.brief(server_port, 5, 600).stdout(Stdio::null()).status();
    assert!(status.expect("brief").success());
    let all = Request::Containers(OwnersArguments { limit: 0, ..OwnersArguments::default() });
    wait_for("the name", Duration::from_secs(10), || {
        let shown = agent.ask(&all).expect("an answer").rows("containers");
        shown.iter().any(|row| row["container"] == "late" && row["runtime"] == "docker").then_some(())
    });
    let runtimes = agent.ask(&Request::Stats).expect("an answer").rows("runtimes");
    let socket = folder.join("docker.sock").display().to_string();
    assert!(runtimes.iter().any(|row| row["socket"] == socket.as_str() && row["state"] == "up"), "{runtimes:#?}");
    agent.stop();
    drop(runtime);
    fs::remove_dir_all(&folder).expect("a folder");
}
