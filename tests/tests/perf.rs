//! The load harness keeps honest accounts. Its figures are of no interest here, a busy machine makes any.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sockeye_tests::{Agent, program, wait_for};

fn perf(args: &[&str]) -> Value {
    let output = Command::new(program("perf")).args(args).arg("--json").output().expect("perf");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn offered_is_delivered_and_lost() {
    let report = perf(&["saturate", "--quick"]);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 6, "three stages, two placements: {rows:#?}");
    assert!(rows.iter().all(|row| row["delivered/s"].as_u64() > Some(0)), "{rows:#?}");
}

#[test]
fn every_figure_is_the_truth() {
    let mut agent = Agent::start(&[]);
    let socket = agent.socket().display().to_string();
    let report = perf(&["accuracy", "--quick", "--seed", "7", "--socket", &socket]);
    agent.stop();
    let rows = report["rows"].as_array().expect("rows");
    for figure in ["bytes sent", "bytes received", "owner of the initiator", "round-trip time (ss)", "datagrams sent"] {
        let row = rows.iter().find(|row| row["figure"] == figure).unwrap_or_else(|| panic!("{figure}: {rows:#?}"));
        assert!(row["compared"].as_u64() > Some(5), "{row}");
        assert_eq!(row["deviations"], 0, "{row}");
    }
}

#[test]
fn every_end_reaches_the_collector() {
    let report = perf(&["churn", "--quick", "--socket", "/no/such/socket"]);
    let row = &report["rows"][0];
    assert_eq!(row["connections"], 10_000, "{row}");
    let [offered, delivered, overflowed, lost] =
        ["offered", "delivered", "overflowed", "lost"].map(|column| row[column].as_u64().expect("a count"));
    assert!(offered >= 20_000 && offered == delivered + overflowed + lost, "{row}");
    assert!(row["export p50 ms"].as_f64() > Some(0.0), "{row}");
}

#[test]
fn beside_a_running_agent_it_refuses() {
    let mut agent = Agent::start(&[]);
    let output =
        Command::new(program("perf")).arg("overhead").arg("--socket").arg(agent.socket()).output().expect("perf");
    agent.stop();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("an agent is running already"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn its_agent_does_not_outlive_it() {
    let mut perf = Command::new(program("perf"))
        .args(["soak", "--minutes", "5", "--socket", "/no/such/socket"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("perf");
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let agent = wait_for("an agent", Duration::from_secs(20), || {
        let pids = Command::new("pgrep").args(["-P", &perf.id().to_string(), "-x", "sockeye"]).output().expect("pgrep");
        Some(String::from_utf8_lossy(&pids.stdout).trim().to_owned()).filter(|pid| !pid.is_empty())
    });
    perf.kill().expect("perf runs");
    perf.wait().expect("perf ends");
    wait_for("the end of the agent", Duration::from_secs(10), || (name(&agent) != "sockeye\n").then_some(()));
}
