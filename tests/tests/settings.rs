//! What is configured is what is in force, and flows are printed where somebody reads them.

use std::fs;
use std::process::Command;
use std::time::Duration;

use sockeye_tests::{Agent, Collector, free_port, program, serve, talk, wait_for};

#[test]
fn the_file_is_read_and_the_command_line_overrides_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, zmq, other) = (folder.path().join("sockeye.toml"), free_port(), free_port());
    let text =
        format!("zmq = [\"tcp://127.0.0.1:{zmq}c\"]\nclosed_max = 3\n[runtimes]\ndocker = []\npodman = []\ncri = []\n");
    fs::write(&path, &text).expect("a file");
    let config = path.display().to_string();
    let collector = Collector::start(zmq, 60, &[]);
    let mut agent = Agent::start(&["--config", &config]);
    agent.wait_connected();
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let said = talk(&["client", "127.0.0.1", &port.to_string(), "10", "10"]);
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let _ = collected.flow(said["local"].as_u64().expect("a port"), port.into());

    let check = |args: &[&str]| Command::new(program("sockeye")).args(args).output().expect("sockeye");
    let shown = check(&["--check-config", &config, "--zmq", &format!("tcp://127.0.0.1:{other}c")]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line =
        |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{shown}")).to_owned();
    assert!(line("zmq ").contains(&other.to_string()) && line("zmq ").ends_with("command line"), "{shown}");
    assert!(line("closed_max").contains('3') && line("closed_max").ends_with("sockeye.toml:2"), "{shown}");
    assert!(line("idle_timeout").contains("30") && line("idle_timeout").ends_with("default"), "{shown}");
    fs::write(&path, text.replace("closed_max", "closed_mx")).expect("a file");
    let refused = check(&["--check-config", &config]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), why.lines().count()), (Some(78), 1), "{why}");
    assert!(why.contains("`closed_mx` in line 2: did you mean `closed_max`?"), "{why}");
}

/// A journal or a log of a container is no terminal.
#[test]
fn flows_are_printed_where_somebody_reads_them() {
    let made = |agent: &Agent| {
        let (_server, port, _) = serve("serve", "127.0.0.1");
        let _ = talk(&["client", "127.0.0.1", &port.to_string(), "10", "10"]);
        agent.settle();
        format!(":{port} ")
    };
    let mut quiet = Agent::start(&[]);
    let _ = made(&quiet);
    assert_eq!(quiet.stderr().matches("flows go nowhere").count(), 1, "{}", quiet.stderr());
    quiet.stop();
    assert_eq!(quiet.stdout(), "");
    let mut asked = Agent::start(&["-v"]);
    let port = made(&asked);
    asked.stop();
    assert!(asked.stdout().contains(&port), "{}", asked.stdout());
    // script(1) gives it a terminal.
    let mut command = Command::new("script");
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("ctl.sock").display().to_string();
    let log = folder.path().join("log");
    let sockeye = format!("{} --control-socket {socket}", program("sockeye").display());
    command.args(["-qfc", &sockeye]).arg(&log).stdout(std::process::Stdio::null());
    let _terminal = sockeye_tests::Guard(command.spawn().expect("script"));
    let client = sockeye_ctl::Client::new(socket.as_ref());
    let answer = wait_for("the agent", Duration::from_secs(20), || client.ask(&sockeye_ctl::Request::Stats).ok());
    let pid = answer.rows("agent")[0]["pid"].as_i64().expect("a pid");
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let _ = talk(&["client", "127.0.0.1", &port.to_string(), "10", "10"]);
    let shown = || fs::read_to_string(&log).unwrap_or_default();
    wait_for("a line on the terminal", Duration::from_secs(20), || {
        shown().contains(&format!(":{port} ")).then_some(())
    });
    let pid = nix::unistd::Pid::from_raw(pid.try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it lives");
    wait_for("its end", Duration::from_secs(20), || nix::sys::signal::kill(pid, None).err());
}
