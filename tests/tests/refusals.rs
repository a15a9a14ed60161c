//! Each thing that can be wrong from the outside ends in one sentence that names it and the remedy.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use sockeye_tests::engines::Cgroup;
use sockeye_tests::{Agent, program, wait_for};

fn refused(output: &Output, code: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
}

fn one_sentence(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
}

/// Runs sockeye in a shell that first changes its surroundings, in a mount namespace of its own.
fn sockeye_after(preparation: &str) -> Output {
    let dir = tempfile::tempdir().expect("a folder");
    let script =
        format!("{preparation} {} --control-socket {}/ctl.sock", program("sockeye").display(), dir.path().display());
    Command::new("unshare").args(["-m", "sh", "-c", &script]).output().expect("unshare")
}

fn sockeye(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("a folder");
    Command::new(program("sockeye"))
        .args(args)
        .arg("--control-socket")
        .arg(dir.path().join("ctl.sock"))
        .output()
        .expect("sockeye")
}

#[test]
fn the_host_lacks_something() {
    let output = sockeye_after("mount --bind /dev/null /sys/kernel/btf/vmlinux && exec");
    refused(&output, 69, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
    one_sentence(&output);
    let output = sockeye_after("umount -l $(awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts) && exec");
    // In a container it is not for the agent to mount it.
    let remedy = if Path::new("/.dockerenv").exists() { "a hostPath" } else { "mount -t cgroup2" };
    refused(&output, 69, &["no cgroup v2", remedy, "--no-cgroup"]);
    one_sentence(&output);
    let output = sockeye_after("exec setpriv --bounding-set -sys_admin,-bpf --inh-caps -sys_admin,-bpf");
    refused(&output, 77, &["lacks CAP_BPF", "run as root"]);
    one_sentence(&output);
}

/// What `sockeye check` says of the state of sockets, run by a command, in a shell that first changes its surroundings. `$root`
/// is the root of the memory cgroups and `$kind` how to mount them.
fn check_of_sockets(mut command: Command, preparation: &str) -> String {
    const FIND: &str = r#"eval $(awk '
        $3 == "cgroup" && $4 ~ /(^|,)memory(,|$)/ {v1 = "root=" $2 "; kind=\"-t cgroup -o memory\""}
        $3 == "cgroup2" {v2 = "root=" $2 "; kind=\"-t cgroup2\""}
        END {print v1 ? v1 : v2}' /proc/self/mounts)"#;
    let script = format!("{FIND}; {preparation} exec {} check", program("sockeye").display());
    let output = command.args(["sh", "-c", &script]).output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line =
        text.lines().find(|line| line.contains(" memory cgroup ")).unwrap_or_else(|| panic!("{text}")).to_owned();
    let code = i32::from(line.starts_with("degraded"));
    assert_eq!(output.status.code(), Some(code), "{text}{}", String::from_utf8_lossy(&output.stderr));
    line
}

#[test]
fn without_the_root_of_memory_cgroups_sockets_are_dearer() {
    let mounts_of_its_own = || {
        let mut command = Command::new("unshare");
        command.arg("-m");
        command
    };
    assert!(check_of_sockets(mounts_of_its_own(), "").starts_with("ok "));
    let said = check_of_sockets(mounts_of_its_own(), "mount --bind $root $root && mount -o remount,bind,ro $root &&");
    assert!(said.starts_with("degraded ") && said.contains("cgroup.procs: Read-only"), "{said}");
    // In a namespace the root is the cgroup that it was made in, as in a container.
    let cgroup = Cgroup::of_memory("sockeye-test-namespace");
    let mut command = cgroup.shell();
    command.args(["unshare", "-m", "-C"]);
    let said = check_of_sockets(command, "umount -l $root && mount $kind none $root &&");
    assert!(said.starts_with("degraded ") && said.contains("is not the root of the host's"), "{said}");
}

#[test]
fn the_command_line_is_wrong() {
    refused(&sockeye(&["--zqm", "tcp://127.0.0.1:1c"]), 64, &["--zqm", "--help"]);
    refused(&sockeye(&["--zmq", "udp://127.0.0.1:1"]), 64, &["udp://127.0.0.1:1", "tcp://HOST:PORTc"]);
    refused(&sockeye(&["--zmq", "tcp://127.0.0.1:99999c"]), 64, &["1 to 65535"]);
    refused(
        &sockeye(&["--zmq", "tcp://127.0.0.1:1c", "--zmq-encryption-key", "short"]),
        64,
        &["\"short\"", "40 characters", "80 hex digits"],
    );
    refused(&sockeye(&["--ring-kib", "3"]), 64, &["power of two"]);
    refused(&sockeye(&["--active-timeout", "0"]), 64, &["--active-timeout", "5..=600"]);
    refused(&sockeye(&["--report-interval", "61"]), 64, &["--report-interval", "1..=60"]);
}

#[test]
fn the_configuration_is_wrong() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("sockeye.toml");
    let file = path.display().to_string();
    let cases = [
        ("[runtimes]\ndokcer = []", ["`runtimes.dokcer`", "did you mean `runtimes.docker`?"]),
        ("[runtimes]\ndocker = [\"/run/docker.sock\"]", ["line 2", "unix:///PATH"]),
        ("[runtimes\n", ["line 1", "not understood"]),
    ];
    for (text, words) in cases {
        std::fs::write(&path, text).expect("a configuration");
        let output = sockeye(&["--config", &file]);
        refused(&output, 78, &words);
        one_sentence(&output);
    }
    refused(&sockeye(&["--config", "/no/such.toml"]), 78, &["/no/such.toml", "No such file"]);
}

#[test]
fn something_is_in_use() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let output = sockeye(&["--zmq", &format!("tcp://127.0.0.1:{port}")]);
    refused(&output, 69, &[&port.to_string(), "the port is in use"]);
    one_sentence(&output);

    let mut first = Agent::start(&[]);
    let output =
        Command::new(program("sockeye")).arg("--control-socket").arg(first.socket()).output().expect("sockeye");
    refused(&output, 69, &["another sockeye is running"]);
    one_sentence(&output);
    first.stop();
}

#[test]
fn ctl_without_agent_permission_or_common_version() {
    let ctl = |socket: &str, args: &[&str]| {
        Command::new(program("ctl")).args(args).args(["--socket", socket]).output().expect("ctl")
    };
    let output = ctl("/nonexistent/ctl.sock", &["stats"]);
    refused(&output, 69, &["no agent is running at /nonexistent/ctl.sock"]);
    one_sentence(&output);
    refused(&ctl("/nonexistent", &["reboot"]), 64, &["reboot"]);
    refused(&ctl("/nonexistent", &["flows", "--sort", "colour"]), 64, &["bytes, rtt"]);

    let agent = Agent::start(&[]);
    let output = ctl(agent.socket().to_str().expect("a path"), &["flows", "--state", "happy"]);
    refused(&output, 1, &["\"happy\"", "refused"]);
    // As somebody who is neither root nor in the socket's group; the folder lets everybody in.
    let folder = agent.socket().parent().expect("a folder");
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let public = tempfile::tempdir_in("/tmp").expect("a folder");
    std::fs::set_permissions(public.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = public.path().join("ctl");
    std::fs::copy(program("ctl"), &copy).expect("a copy that nobody may run");
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy)
        .args(["stats", "--socket"])
        .arg(agent.socket())
        .output()
        .expect("setpriv");
    refused(&output, 77, &["no permission"]);
    one_sentence(&output);

    let fake = tempfile::tempdir().expect("a folder");
    let path = fake.path().join("ctl.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let server = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(b"{\"version\":99,\"error\":null,\"answer\":null}\n").expect("written");
    });
    let output = ctl(path.to_str().expect("a path"), &["flows"]);
    refused(&output, 76, &["version 99"]);
    one_sentence(&output);
    server.join().expect("the fake agent");
}

#[test]
fn nonsense_on_the_control_socket_changes_nothing() {
    use std::io::{Read, Write};
    let agent = Agent::start(&[]);
    for nonsense in [&b"\n"[..], b"{}\n", b"\xff\xfe\xfd\n", b"{\"version\":1,\"request\":\"flows\",\"arguments\":7}\n"]
    {
        let mut stream = std::os::unix::net::UnixStream::connect(agent.socket()).expect("connects");
        stream.write_all(nonsense).expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("shut");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains("\"error\":\""), "{answer}");
    }
    assert_eq!(agent.figure("agent", "pid"), agent.pid());
}

#[test]
fn an_agent_whose_reader_has_gone_ends() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("ctl.sock");
    let mut child = Command::new(program("sockeye"))
        .arg("-v")
        .arg("--control-socket")
        .arg(&socket)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("sockeye");
    drop(child.stdout.take());
    let client = sockeye_ctl::Client::new(&socket);
    wait_for("agent", Duration::from_secs(10), || client.ask(&sockeye_ctl::Request::Stats).ok());
    let _ = std::net::TcpStream::connect("127.0.0.1:1"); // something to print
    let status = wait_for("end", Duration::from_secs(10), || child.try_wait().expect("a child"));
    assert!(status.success(), "{status}");
    assert!(!socket.exists());
}
