//! What the far ends of flows are called, when they are told of for the first time.

use std::sync::Arc;

use super::Control;
use crate::flows::report::FlowReport;
use crate::model::flow::{ProcKey, Proto, Side};
use crate::names::table::{Connection, PeerName};
use crate::names::{NO_PEER, Names, Place};
use crate::owners::process::ProcessTable;

/// Parents whose questions are looked at.
const ANCESTORS_MAX: usize = 8;
const DNS_PORT: u16 = 53;

/// Where a process lives.
pub(super) fn place_of(process: ProcKey, processes: &ProcessTable) -> Place {
    Place {
        cgroup_id: processes.peek(process).map_or(0, |process| process.cgroup_id),
        is_container: processes.workload(process).is_some_and(|workload| workload.container.is_some()),
    }
}

impl Control {
    /// Names the responders of flows that are told of for the first time, and says what was asked over those to DNS servers.
    pub(super) fn name_peers(&mut self, reports: &mut [FlowReport]) {
        if self.names.is_empty() {
            return;
        }
        let wants = |report: &&mut FlowReport| report.first && report.local[Side::Initiator as usize];
        let mut first: Vec<&mut FlowReport> = reports.iter_mut().filter(wants).collect();
        // Which of two names a connection means depends on those before.
        first.sort_by_key(|report| report.opening.at_ns);
        for report in first {
            let (key, opening) = (&report.key, &report.opening);
            if key.responder.port == DNS_PORT {
                report.dns = self.names.service.last_of(opening.cookie).cloned().map(Arc::new);
            }
            let peer = if key.proto == Proto::Udp { key.responder.addr } else { NO_PEER };
            report.hello = self.names.hellos.of((opening.cookie, peer), opening.at_ns).cloned();
            self.names.learn(opening.at_ns);
            let asked = asked_name(&mut self.names, report, &self.processes);
            let said = report.hello.as_deref().filter(|hello| hello.is_peer);
            let said = said.and_then(|hello| Some(PeerName { names: vec![hello.name.clone()?], source: hello.source }));
            if let Some(name) = said.or(asked).map(Arc::new) {
                self.table.name_peer(report.opening.place, Arc::clone(&name));
                report.peer_name = Some(name);
            }
        }
    }
}

/// By what was asked before the flow was opened.
fn asked_name(names: &mut Names, report: &FlowReport, processes: &ProcessTable) -> Option<PeerName> {
    let (owner, opened_ns) = (report.owners[Side::Initiator as usize], report.opening.at_ns);
    // When one was opened that is older than the agent, nobody knows.
    if names.table.is_empty() || opened_ns == 0 || names.is_blind(opened_ns) || !owner.is_known() {
        return None;
    }
    let mut ancestors = [0; ANCESTORS_MAX];
    let process = processes.peek(owner);
    let pids =
        process.map(|process| std::iter::once(process.ppid).chain(process.ancestors.iter().map(|(_, pid)| *pid)));
    ancestors.iter_mut().zip(pids.into_iter().flatten()).for_each(|(to, pid)| *to = pid);
    let known = ancestors.iter().position(|pid| *pid == 0).unwrap_or(ANCESTORS_MAX);
    names.table.name_of(&Connection {
        asker: place_of(owner, processes).asker(owner, report.opening.netns),
        ancestors: &ancestors[..known],
        address: report.key.responder.addr.ip(),
        opened_ns,
    })
}
