//! A report for tests: a host-local TCP connection that is over.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::flows::report::{FlowReport, Identity, Opening};
use crate::model::flow::{Counters, Endpoint, FlowKey, ProcKey, Proto, State};
use crate::model::rtt::RttSummary;
use crate::owners::cgroup::Runtime;
use crate::owners::process::Process;
use crate::owners::workload::{Container, Pod, Workload};

pub(crate) fn report() -> FlowReport {
    let endpoint = |last, port| Endpoint { addr: IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)).into(), port };
    let counters = Counters { bytes: [1200, 34_500], packets: [5, 30], ..Counters::default() };
    let identity = [
        Identity { process: Some(Arc::new(curl())), workload: Some(Arc::new(pod())) },
        Identity { process: Some(Arc::new(nginx())), workload: Some(Arc::new(service())) },
    ];
    FlowReport {
        key: FlowKey { proto: Proto::Tcp, initiator: endpoint(1, 40000), responder: endpoint(2, 443) },
        translated: None,
        bypassed: false,
        first_unix_ns: 1_000_000_000,
        since_unix_ns: 1_000_000_000,
        last_unix_ns: 2_000_000_000,
        delta: counters,
        total: counters,
        rtt_us: [Some((20_100, 300)), Some((19_900, 200))],
        local: [true, true],
        owners: [42, 43].map(|pid| ProcKey { pid, start_ticks: 1, exec: 0 }),
        changed: None,
        identity,
        rtt_samples: Some(RttSummary { samples: 12, min_us: 18_000, mean_us: 20_500, p99_us: 31_250 }),
        window_max: [64_240, 65_535],
        congestion: [Some("cubic"), None],
        first: true,
        ended: false,
        connecting: false,
        state: State::Closed,
        reset_by: None,
        peer_name: None,
        dns: None,
        hello: None,
        opening: Opening::default(),
    }
}

fn curl() -> Process {
    Process {
        key: ProcKey { pid: 42, start_ticks: 1, exec: 0 },
        name: "curl".into(),
        exe: Some("/usr/bin/curl".into()),
        cmdline: "curl --option".into(),
        uid: 1000,
        user: Some("alice".into()),
        ppid: 4000,
        parent_name: "bash".into(),
        ancestors: [("sshd".to_owned(), 812), ("systemd".to_owned(), 1)].into(),
        package: Some("curl".into()),
        ..Process::default()
    }
}

fn nginx() -> Process {
    Process {
        key: ProcKey { pid: 43, start_ticks: 1, exec: 0 },
        name: "nginx".into(),
        exe: Some("/usr/bin/nginx".into()),
        cmdline: "nginx --option".into(),
        uid: 1000,
        user: Some("www-data".into()),
        gid: 1001,
        ppid: 1,
        parent_name: "init".into(),
        package: Some("nginx-core".into()),
        parent_package: Some("systemd".into()),
        ..Process::default()
    }
}

fn service() -> Workload {
    Workload { unit: Some("nginx.service".into()), ..Workload::default() }
}

fn pod() -> Workload {
    Workload {
        container: Some(Container {
            id: "0123456789abcdef".repeat(4),
            runtime: Runtime::Containerd,
            name: "app".into(),
            image: "registry.example/app:1".into(),
            image_digest: String::new(),
            labels: vec![("tier".into(), "front".into())],
        }),
        pod: Some(Pod { uid: "u-1".into(), name: "web-1".into(), namespace: "shop".into(), ..Pod::default() }),
        ..Workload::default()
    }
}
