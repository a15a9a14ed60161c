//! `ctl top` in a terminal: what it shows is what happens, and the terminal is as it was however it ends.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockeye_ctl::Client;
use sockeye_ctl::protocol::Request;
use sockeye_tests::dns::Dns;
use sockeye_tests::tmux::{Terminal, TerminalState};
use sockeye_tests::{Agent, Guard, Traffic, program, serve, talk, wait_for};

/// A program that sends steadily to another one, and the port of that.
fn traffic() -> (Traffic, Traffic, u16) {
    let (server, port, _) = serve("serve", "127.0.0.1");
    let mut client = Traffic::start(None, &["steady", "127.0.0.1", &port.to_string(), "800000"]);
    let _ = client.says();
    (server, client, port)
}

fn start(terminal: &Terminal, socket: &Path, args: &str) {
    let ctl = program("ctl");
    terminal.line(&format!("{} --socket {} top {args}; echo code:$?", ctl.display(), socket.display()));
    terminal.wait_until("header", |screen| screen.contains("1 flows") && screen.contains("agent"));
}

/// The shell has its terminal again.
fn assert_clean(terminal: &Terminal) {
    assert_eq!(terminal.state(), TerminalState::CLEAN);
    terminal.line("stty -a | grep -o '[-]*icanon\\|[-]*echo ' | tr -d '\\n'; echo '<'");
    terminal.wait_until("a cooked terminal", |screen| screen.contains("icanonecho <"));
}

/// The pid of the `ctl` in a terminal.
fn pid_of(socket: &Path) -> Pid {
    let pattern = format!("--socket {} top", socket.display());
    wait_for("the process", Duration::from_secs(5), || {
        let output = Command::new("pgrep").args(["-f", "-n", "--", &format!("^[^ ]*ctl {pattern}")]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok().map(Pid::from_raw)
    })
}

#[test]
fn filter_drill_down_back_sort_pause_and_quit() {
    let mut agent = Agent::start(&[]);
    let (_server, client, port) = traffic();
    let terminal = Terminal::new(80, 24);
    start(&terminal, agent.socket(), "");
    assert_eq!(terminal.state(), TerminalState { other_screen: true, cursor: false, mouse: true });
    terminal.wait_for("nothing lost");

    // Typed, and in force at once; what is wrong is said while the last good one stays.
    terminal.text(&format!("/port={port}"));
    let only =
        |screen: &str| screen.lines().filter(|line| line.starts_with("tcp") || line.starts_with("udp")).count() == 1;
    let pid = client.pid();
    terminal.wait_until("its flow alone", |screen| only(screen) && screen.contains(&format!("[{pid}")));
    terminal.text(" rtt-over=fast");
    terminal.wait_until("what is wrong", |screen| screen.contains("20ms") && only(screen));
    terminal.key("C-w");
    terminal.key("Enter");

    // Into the flow, and back.
    terminal.key("Enter");
    let page = terminal.wait_until("the page", |screen| screen.contains("parents") && screen.contains("received/s"));
    // Where the line ends depends on how deep this clone lies.
    let unbroken: String = page.split_whitespace().collect();
    assert!(unbroken.contains(&format!("python3[{pid}]")) && unbroken.contains("steady"), "{page}");
    terminal.key("Escape");
    terminal.wait_until("the flows", only);

    // Sorted otherwise, paused, at another size, in other views.
    terminal.key("<");
    terminal.wait_for("SENT/s▼");
    terminal.text("r");
    terminal.wait_for("SENT/s▲");
    terminal.text("p");
    terminal.wait_for("PAUSED");
    terminal.text("p");
    terminal.wait_until("the end of the pause", |screen| !screen.contains("PAUSED"));
    terminal.resize(120, 40);
    terminal.wait_for("STATE");
    terminal.text("2");
    terminal.wait_until("processes", |screen| screen.contains("COMMAND") || screen.contains("5 MINUTES"));
    terminal.text("/python3");
    terminal.key("Enter");
    terminal.wait_for(&pid.to_string());
    // Who talks to whom, of the flows that match, and on to these.
    terminal.text("6");
    terminal.text(&format!("/port={port}"));
    terminal.key("Enter");
    terminal.wait_until("the pair", |screen| screen.contains("peers by workload  1") && screen.contains("RTT P50"));
    terminal.key("Enter");
    terminal.wait_until("what is between both", |screen| only(screen) && screen.contains(&format!("[{pid}")));
    terminal.text("8");
    terminal.wait_for("LOSSES");
    terminal.key("PageDown");
    terminal.wait_until("what it may do", |screen| screen.contains("CAP_") && screen.contains("no_new_privs"));
    terminal.key("End");
    terminal.wait_for("ns_per_run");
    terminal.text("?");
    terminal.wait_for("KEYS");
    terminal.key("Escape");
    terminal.text("q");
    terminal.wait_for("code:0");
    assert_clean(&terminal);
    agent.stop();
}

#[test]
fn whatever_ends_it_leaves_the_terminal_as_it_was() {
    let mut agent = Agent::start(&[]);
    let terminal = Terminal::new(80, 24);
    start(&terminal, agent.socket(), "");
    terminal.key("C-c");
    terminal.wait_for("code:0");
    assert_clean(&terminal);
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
        start(&terminal, agent.socket(), "--no-mouse");
        kill(pid_of(agent.socket()), signal).expect("sent");
        terminal.wait_for(&format!("code:{code}"));
        assert_clean(&terminal);
    }
    // A panic says what it was about on the screen that stays.
    terminal.line("export SOCKEYE_TEST_PANIC=top; clear");
    terminal.line(&format!("{} --socket {} top; echo code:$?", program("ctl").display(), agent.socket().display()));
    let screen = terminal.wait_for("code:101");
    assert!(screen.contains("panicked"), "{screen}");
    assert_clean(&terminal);
    terminal.line("unset SOCKEYE_TEST_PANIC; clear");

    // Stopped and continued, by the key and by a signal.
    start(&terminal, agent.socket(), "");
    for by_key in [true, false] {
        if by_key {
            terminal.key("C-z");
        } else {
            kill(pid_of(agent.socket()), Signal::SIGTSTP).expect("sent");
        }
        terminal.wait_for("Stopped");
        assert_clean(&terminal);
        terminal.line("clear; fg");
        terminal.wait_for("nothing lost");
        assert!(terminal.state().other_screen);
    }
    // The terminal is closed.
    let pid = pid_of(agent.socket());
    terminal.close();
    wait_for("end of ctl", Duration::from_secs(10), || kill(pid, None).is_err().then_some(()));
    agent.stop();
}

/// An agent behind a socket that stays where it is.
fn agent_at(socket: &Path) -> Guard {
    let mut command = Command::new(program("sockeye"));
    command.arg("--control-socket").arg(socket).stdout(Stdio::null()).stderr(Stdio::null());
    let agent = Guard(command.spawn().expect("sockeye starts"));
    let client = Client::new(socket);
    let answer = wait_for("answer", Duration::from_secs(20), || client.ask(&Request::Overview).ok());
    // Loading the programs took CPU time before there was anybody to answer.
    let cpus = std::thread::available_parallelism().expect("a number").get();
    let share = answer.rows("overview")[0]["cpu"].as_f64().expect("a figure");
    assert!(share > 0.0 && share <= 100.0 * cpus as f64, "{share} % of {cpus} CPUs");
    agent
}

#[test]
fn an_agent_that_is_killed_and_started_again_is_shown_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("ctl.sock");
    let agent = agent_at(&socket);
    let (_server, client, port) = traffic();
    let terminal = Terminal::new(120, 30);
    start(&terminal, &socket, &format!("--filter port={port}"));
    let pid = format!("[{}]", client.pid());
    terminal.wait_for(&pid);
    agent.signal(Signal::SIGKILL);
    let screen = terminal.wait_for("is gone");
    assert!(screen.contains(&pid), "what was known stays: {screen}");
    drop(agent);
    let _agent = agent_at(&socket);
    terminal.wait_until("its flow again", |screen| screen.contains("nothing lost") && screen.contains(&pid));
    terminal.text("q");
    terminal.wait_for("code:0");
    assert_clean(&terminal);
}

#[test]
fn who_asks_which_server_for_what_and_how_often_in_vain() {
    let dns = Dns::start(&["--host-record=downloads.example.net,203.0.113.7", "--address=/missing.example/"]);
    let mut agent = Agent::start(&[]);
    let ask = |name: &str| {
        let output = dns.command("dig").args(["+noedns", "@127.0.0.1", name]).output().expect("dig");
        assert!(output.status.success(), "{output:?}");
    };
    let terminal = Terminal::new(100, 24);
    start(&terminal, agent.socket(), "--view dns");
    (0..3).for_each(|_| ask("downloads.example.net"));
    (0..2).for_each(|_| ask("nothing.missing.example"));
    terminal.wait_until("each dig", |screen| screen.matches("dig[").count() == 5 && screen.contains("dns by process"));
    // Figures of a line: queries, answers, failed, NXDOMAIN, timeouts, truncated.
    let figures = |screen: &str, name: &str| {
        let line = screen.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_whitespace().skip(1).take(6).map(str::to_owned).collect::<Vec<_>>()
    };
    terminal.text("gg");
    terminal.wait_until("the server", |screen| {
        screen.contains("dns by server") && figures(screen, "127.0.0.1") == ["5", "5", "2", "2", "0", "0"]
    });
    terminal.text("g");
    terminal.wait_until("both names, the busier one first", |screen| {
        let at = |name| screen.lines().position(|line| line.starts_with(name));
        let (good, missing) = (at("downloads.example.net"), at("nothing.missing.example"));
        good.zip(missing).is_some_and(|(good, missing)| good < missing)
            && figures(screen, "downloads.example.net") == ["3", "3", "0", "0", "0", "0"]
    });
    // By failures the other one is first; a filter leaves one of them.
    terminal.text(">>");
    terminal.wait_until("the worse one first", |screen| {
        let line = screen.lines().find(|line| line.contains(".example")).unwrap_or_default();
        screen.contains("FAILED▼") && line.starts_with("nothing.missing.example")
    });
    terminal.text("/downloads");
    terminal.key("Enter");
    terminal.wait_until("one name", |screen| screen.contains("downloads.example.net") && !screen.contains("missing"));
    // From the host as a whole to what was asked: those flows have ended, and say when they are forgotten.
    terminal.key("Escape");
    terminal.text("g");
    terminal.wait_for("dns by host");
    terminal.key("Enter");
    terminal.wait_until("the questions", |screen| screen.contains("dns > host") && screen.contains("127.0.0.1:53"));
    terminal.text("q");
    terminal.wait_for("code:0");
    assert_clean(&terminal);
    agent.stop();
}

#[test]
fn flows_are_followed_as_they_end_and_a_watch_draws_in_place() {
    let mut agent = Agent::start(&[]);
    let (server, port, _) = serve("serve", "127.0.0.1");
    let socket = agent.socket().display().to_string();
    let terminal = Terminal::new(160, 24);
    let ctl = program("ctl").display().to_string();
    terminal.line(&format!("{ctl} --socket {socket} flows --follow --port {port} --state closed"));
    // What ended before it has asked for the first time is not told.
    let told = |screen: &str| screen.lines().filter(|line| line.contains(" → ") && line.contains("python3[")).count();
    wait_for("a flow that ended", Duration::from_secs(60), || {
        let _ = talk(&["client", "127.0.0.1", &port.to_string(), "1000", "1000"]);
        (told(&terminal.screen()) > 0).then_some(())
    });
    terminal.key("C-c");
    terminal.line("clear");
    terminal.line(&format!("{ctl} --socket {socket} watch -n 1 ports"));
    let screen = terminal.wait_for(&port.to_string());
    assert_eq!(
        screen.lines().next().map(str::trim_start).map(|line| line.starts_with("PROTO")),
        Some(true),
        "{screen}"
    );
    terminal.key("C-c");
    drop(server);
    agent.stop();
}
