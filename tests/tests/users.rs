//! A container runtime of a user who comes after the agent.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use sockeye_ctl::protocol::{OwnersArguments, Request};
use sockeye_tests::engines::{Cgroup, UserRuntime};
use sockeye_tests::{Agent, serve, wait_for};

const UID: u32 = 54_321;

#[test]
fn a_runtime_of_a_user_who_comes_later_is_asked() {
    let folder = UserRuntime::folder(UID);
    let _ = fs::remove_dir_all(&folder);
    let mut agent = Agent::start(&[]);
    let runtime = UserRuntime::start(UID, "late");
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
    assert!(!folder.exists());
}
