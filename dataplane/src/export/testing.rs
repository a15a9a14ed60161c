//! A report for tests: a host-local TCP connection that is over.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::flow::{Counters, Endpoint, FlowKey, FlowReport, ProcKey, Proto, State};
use crate::place::{Container, Place, Pod, cgroup::Runtime};
use crate::process::Process;

pub(crate) fn report() -> FlowReport {
    let endpoint = |last, port| Endpoint { addr: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)).into(), port };
    let process = |pid, name: &str, user: &str| {
        Some(Arc::new(Process {
            key: ProcKey { pid, start_ticks: 1, exec: 0 },
            name: name.into(),
            exe: Some(format!("/usr/bin/{name}")),
            cmdline: format!("{name} --option"),
            uid: 1000,
            user: Some(user.into()),
            ppid: 1,
            parent_name: "init".into(),
            ..Process::default()
        }))
    };
    let counters = Counters { bytes: [1200, 34_500], packets: [5, 30], ..Counters::default() };
    FlowReport {
        key: FlowKey { proto: Proto::Tcp, initiator: endpoint(1, 40000), responder: endpoint(2, 443) },
        first_unix_ns: 1_000_000_000,
        last_unix_ns: 2_000_000_000,
        delta: counters,
        total: counters,
        rtt_us: [Some((20_100, 300)), Some((19_900, 200))],
        local: [true, true],
        owners: [42, 43].map(|pid| ProcKey { pid, start_ticks: 1, exec: 0 }),
        place: [Some(Arc::new(pod())), None],
        first: true,
        process: [process(42, "curl", "alice"), process(43, "nginx", "www-data")],
        carries_identity: true,
        state: State::Closed,
        reset_by: None,
    }
}

fn pod() -> Place {
    Place {
        container: Some(Container {
            id: "0123456789abcdef".repeat(4),
            runtime: Runtime::Containerd,
            name: "app".into(),
            image: "registry.example/app:1".into(),
            labels: vec![("tier".into(), "front".into())],
        }),
        pod: Some(Pod { uid: "u-1".into(), name: "web-1".into(), namespace: "shop".into() }),
        ..Place::default()
    }
}
