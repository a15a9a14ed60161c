//! What the agent may do, what it does without, and who may ask it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use sockeye_ctl::protocol::{OwnersArguments, Request};
use sockeye_tests::engines::{Cgroup, UserRuntime};
use sockeye_tests::{Agent, Guard, free_port, program, serve};

/// What the kernel says of each thread: no more than the list, and no way to more.
#[test]
fn a_running_agent_holds_only_what_it_needs() {
    // SYS_ADMIN, NET_ADMIN.
    const OF_CONTROL: u64 = 1 << 21 | 1 << 12;
    // DAC_OVERRIDE, DAC_READ_SEARCH, NET_BIND_SERVICE, SYS_PTRACE, SYS_NICE.
    const KEPT: u64 = 1 << 1 | 1 << 2 | 1 << 10 | 1 << 19 | 1 << 23;
    let (agent, collector) =
        sockeye_tests::exporting_agent_with(&["--prometheus", &format!("127.0.0.1:{}", free_port())]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let _ = sockeye_tests::talk(&["client", "127.0.0.1", &port.to_string(), "10", "10"]);
    agent.settle();
    let mut seen = 0;
    for task in fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("a process").flatten() {
        // One that has ended since holds nothing.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
        let bits = |name: &str| u64::from_str_radix(field(name), 16).expect("bits");
        let thread = field("Name:");
        let allowed = if thread == "sockeye-control" { KEPT | OF_CONTROL } else { KEPT };
        for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
            assert_eq!(bits(set) & !allowed, 0, "{thread} {set} {:x}", bits(set));
        }
        assert_eq!(field("NoNewPrivs:"), "1", "{thread}");
        seen += 1;
    }
    assert!(seen >= 8, "{seen} threads");
    // It can still do all that it did.
    assert!(agent.figure("programs", "runs").as_u64().is_some());
    drop(agent);
    collector.finish().assert_clean();
}

/// A group that nobody is in by default.
const GROUP: u32 = 54_322;

/// `ctl` as another user with these groups.
fn ctl_as(agent: &Agent, uid: u32, gid: u32, groups: &[u32]) -> Output {
    let groups = groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
    command.arg(if groups.is_empty() { "--clear-groups".into() } else { format!("--groups={groups}") });
    command.arg(program("ctl")).arg("--socket").arg(agent.socket()).args(["flows", "--limit", "1"]);
    command.output().expect("setpriv")
}

#[test]
fn one_group_may_ask_whatever_the_mode_of_the_socket() {
    let agent = Agent::start(&["--control-group", &GROUP.to_string()]);
    let meta = fs::metadata(agent.socket()).expect("a socket");
    assert_eq!((meta.gid(), meta.permissions().mode() & 0o777), (GROUP, 0o660));
    let folder = agent.socket().parent().expect("a folder");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("permissions");
    let code = |output: &Output| output.status.code();
    let stranger = || ctl_as(&agent, 54_321, 54_321, &[]);
    assert_eq!(code(&stranger()), Some(77), "the kernel refuses");
    fs::set_permissions(agent.socket(), fs::Permissions::from_mode(0o666)).expect("permissions");
    let output = stranger();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("user 54321 may not ask") && said.contains("the group 54322"), "{said}");
    assert_ne!(code(&output), Some(0));
    let groups: Vec<u32> = (60_000..60_200).chain([GROUP]).collect();
    for (gid, groups) in [(GROUP, &[][..]), (54_321, &[GROUP]), (54_321, &groups)] {
        let output = ctl_as(&agent, 54_321, gid, groups);
        assert_eq!(code(&output), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(agent.ask(&Request::Stats).is_ok(), "root");
    let output = Command::new(program("sockeye")).args(["--control-group", "no-such-group"]).output().expect("sockeye");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no-such-group") && said.contains("create it"), "{said}");
}

/// A user's Docker, of which everybody but that user needs CAP_DAC_OVERRIDE.
const UID: u32 = 54_323;

/// A program in a container: a root of its own, in which dpkg knows it. It connects, and stays.
const CONTAINED: &str = r#"
mount --bind . . && cd "$PWD"
cp -a --no-dereference /bin /lib /lib64 . && mkdir -p usr var/lib/dpkg/info before && mount --bind /usr usr
cp /var/lib/dpkg/info/python3*-minimal.list var/lib/dpkg/info
pivot_root . before && cd / && exec /usr/bin/python3 -c '
import socket, sys
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
peer.recv(1)
' "$0"
"#;

fn start_contained(folder: &Path, cgroup: &Cgroup, port: u16) -> Guard {
    let mut command = cgroup.shell();
    command.args(["unshare", "--mount", "sh", "-c", CONTAINED, &port.to_string()]).current_dir(folder);
    Guard(command.spawn().expect("unshare"))
}

/// What the agent can do: find the package of a program in a container, run before others, tell what its programs cost, ask a
/// user's container runtime.
fn abilities(agent: &Agent, contained: u32, cgroup: &Cgroup) -> [bool; 4] {
    let (_server, port, _) = serve("serve", "127.0.0.1");
    assert!(cgroup.brief(port, 5, 600).stdout(Stdio::null()).status().expect("brief").success());
    agent.settle();
    assert_eq!(agent.sum("losses", "lost"), 0);
    let rows = |request| agent.ask(&request).expect("an answer");
    let all = || OwnersArguments { limit: 0, ..OwnersArguments::default() };
    let processes = rows(Request::Processes(all())).rows("processes");
    let old = processes.iter().find(|row| row["pid"] == contained).expect("whatever it may: it sees flows");
    assert!(old["exe"].as_str().is_some_and(|exe| exe.starts_with("/usr/bin/python3")), "the kernel tells: {old:#?}");
    let is_before_others = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.contains("(sockeye-w0)") && stat.rsplit(')').next().and_then(|rest| rest.split(' ').nth(17)) == Some("-5")
    };
    let mut tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("a process").flatten();
    let containers = rows(Request::Containers(all())).rows("containers");
    [
        old.get("package").and_then(Value::as_str).is_some_and(|package| package.starts_with("python3")),
        tasks.any(is_before_others),
        agent.sum("programs", "runs") > 0,
        containers.iter().any(|row| row["container"] == "mine"),
    ]
}

#[test]
fn without_a_capability_only_what_it_is_for_is_lost() {
    let _runtime = UserRuntime::start(UID, "mine");
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let path = format!("/user.slice/user-{UID}.slice/user@{UID}.service/user.slice/docker-{}.scope", "d".repeat(64));
    let (root, cgroup) = (tempfile::tempdir().expect("a folder"), Cgroup::new(&path));
    let contained = start_contained(root.path(), &cgroup, port);
    let cases = [
        ("", [true; 4]),
        ("-sys_ptrace", [false, true, true, true]),
        ("-sys_nice", [true, false, true, true]),
        ("-sys_admin", [true, true, false, true]),
        ("-dac_override,-dac_read_search", [true, true, true, false]),
        ("-sys_ptrace,-sys_nice,-sys_admin,-dac_override,-dac_read_search", [false; 4]),
    ];
    for (without, expected) in cases {
        let mut command = Command::new("setpriv");
        if !without.is_empty() {
            command.args(["--bounding-set", without, "--inh-caps", without]);
        }
        command.arg(program("sockeye"));
        let agent = Agent::start_by(command);
        assert_eq!(abilities(&agent, contained.0.id(), &cgroup), expected, "{without}");
    }
    drop(contained);
}
