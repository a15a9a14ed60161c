//! `ctl ports`.

use sockeye_ctl::protocol::{Answer, Table};
use sockeye_ctl::rows;

use crate::flows::FlowTable;
use crate::owners::process::ProcessTable;

rows! {
    /// Sockets that listen, in all network namespaces.
    struct Port: "ports" {
        /// transport protocol
        protocol: Text = &'static str,
        /// local address; 0.0.0.0 or :: for all
        address: Text = String,
        /// port
        port: Id = u16,
        /// who listens
        process: Text = Option<String>,
        /// its pid
        pid: Id = Option<u32>,
        /// its user
        user: Text = Option<String>,
        /// the package that it came with
        package: Text = Option<String>,
        /// container or systemd unit
        workload: Text = Option<String>,
        /// inode of the network namespace
        netns: Id = u32,
    }
}

/// Sockets that wait for connections or datagrams.
pub(crate) fn ports(flows: &FlowTable, processes: &ProcessTable) -> Answer {
    let mut listeners: Vec<_> = flows.listeners().collect();
    listeners.sort_by_key(|l| (l.proto, l.local.port, l.local.addr, l.netns));
    let rows = listeners.into_iter().map(|listener| {
        let process = processes.peek(listener.owner);
        Port {
            protocol: listener.proto.name(),
            address: listener.local.addr.to_string(),
            port: listener.local.port,
            process: process.map(|p| p.name.clone()),
            pid: listener.owner.is_known().then_some(listener.owner.pid),
            user: process.map(|p| p.user_or_uid()),
            package: process.and_then(|p| p.package.clone()),
            workload: processes.workload(listener.owner).and_then(|workload| workload.title()),
            netns: listener.netns,
        }
    });
    Answer { tables: vec![Table::of(rows)] }
}
