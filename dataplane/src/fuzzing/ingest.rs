//! What the kernel sends.

use std::cell::RefCell;

use sockeye_bpf::records::{
    CgroupRecord, CloseRecord, DatagramRecord, FlowRecord, IdentityRecord, KINDS, Kind, PayloadHead, RttRecord,
    UdpCloseRecord,
};
use zerocopy::IntoBytes;

use super::input::{Input, assert_clean};
use crate::ingest::shard::Shard;
use crate::model::flow::TcpObservation;
use crate::owners::cmdline::CommandLines;
use crate::owners::process::{CMDLINE_MAX, Process};
use crate::owners::workload::WorkloadTable;

thread_local! {
    /// As with a worker the same one again and again: a new one has room for thousands of flows.
    static SHARD: RefCell<Shard> = RefCell::new(Shard::new(&[0]));
}

/// Entries of a ring, one after another. The byte before each is a kind, and then it has the length of that record, or
/// asks for a hand-over, or is the length of something else.
pub fn ring(data: &[u8]) {
    SHARD.with_borrow_mut(|shard| {
        let (mut input, mut entries) = (Input(data), 0);
        while !input.is_empty() {
            let first = input.u8();
            if usize::from(first) == KINDS || shard.is_full() {
                hand_over(shard, entries);
                entries = 0;
                continue;
            }
            let mut words = [0u64; 128];
            let entry = words.as_mut_bytes();
            let length = if let Some(kind) = Kind::from_byte(first) {
                let length = length_of(kind);
                let body = input.take(length - 1);
                entry[0] = first;
                entry[1..=body.len()].copy_from_slice(body);
                length
            } else {
                let body = input.take(first.into());
                entry[..body.len()].copy_from_slice(body);
                body.len()
            };
            shard.record(0, &entry[..length]);
            entries += 1;
        }
        hand_over(shard, entries);
    });
}

fn length_of(kind: Kind) -> usize {
    match kind {
        Kind::Close => size_of::<CloseRecord>(),
        Kind::Scan | Kind::Listener => size_of::<FlowRecord>(),
        Kind::Rtt => size_of::<RttRecord>(),
        Kind::Datagram => size_of::<DatagramRecord>(),
        Kind::UdpClose => size_of::<UdpCloseRecord>(),
        Kind::Identity => size_of::<IdentityRecord>(),
        Kind::Cgroup => size_of::<CgroupRecord>(),
        Kind::Dns | Kind::Hello => size_of::<PayloadHead>(),
    }
}

/// Every entry was counted, none was kept twice, and what is read from them is clean.
fn hand_over(shard: &mut Shard, entries: u64) {
    let counts = shard.rings[0].1;
    assert_eq!(counts.malformed + counts.delivered.iter().sum::<u64>(), entries);
    assert!(shard.flows() as u64 <= entries);
    for record in shard.tcp.records().iter().chain(&shard.tcp_earlier) {
        let observed = TcpObservation::new(record, record.kind == Kind::Close as u8);
        let _ = (observed.end.tcp_state(), observed.has_sequence_numbers());
    }
    for samples in &shard.flow_rtt {
        assert!(samples.samples_us().len() <= sockeye_bpf::records::CLOSE_RTT);
    }
    for record in &shard.identities {
        let process = Process::from_record(record, CommandLines::Masked);
        // A byte that is no text becomes three.
        assert_clean(&process.name, 3 * record.comm.len());
        assert_clean(&process.parent_name, 3 * record.parent_comm.len());
        assert_clean(process.path_or_name(), 3 * record.exe.len() + 1);
        assert_clean(&process.cmdline, CMDLINE_MAX);
    }
    let mut workloads = WorkloadTable::default();
    for record in &shard.cgroups {
        workloads.learn_record(record, 0);
    }
    for (_, workload) in workloads.iter() {
        assert_clean(&workload.path, 9 * sockeye_bpf::records::CGROUP_LEN);
    }
    shard.clear();
    assert!(shard.is_empty() && shard.flows() == 0);
}
