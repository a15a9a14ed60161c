//! What the kernel side writes into its rings.

use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use sockeye_bpf::kernel::{Kernel, KernelOptions};
use sockeye_bpf::records::{FlowRecord, IdentityRecord, Kind, Record};
use sockeye_bpf::ring::{Drain, Ring};
use sockeye_tests::wait_for;

const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const LAST_ACK: u8 = 9;

fn drain(rings: &mut [Ring], records: &mut Vec<FlowRecord>) {
    for ring in rings {
        ring.drain(usize::MAX, |bytes| match Record::parse(bytes) {
            Some(Record::Flow(flow)) => records.push(*flow),
            Some(Record::Close(close)) => records.push(close.flow),
            _ => {}
        });
    }
}

/// The end often comes in a softirq, where the kernel may leave programs out; the process that closes is known before it.
#[test]
fn a_close_is_told_of_by_its_process_and_at_its_end() {
    let (_kernel, mut rings) = Kernel::start(&KernelOptions::default()).expect("the kernel side");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (server, client_address) = listener.accept().expect("a connection");
    drop(client);
    drop(server);
    let port = client_address.port();
    let mut records = Vec::new();
    let of_client = |record: &&FlowRecord| record.local_port == port;
    let of_server = |record: &&FlowRecord| record.remote_port == port;
    let is_close = |record: &&FlowRecord| record.kind == Kind::Close as u8;
    wait_for("closes of both ends", Duration::from_secs(5), || {
        drain(&mut rings, &mut records);
        let closed = |end: &dyn Fn(&&FlowRecord) -> bool| records.iter().filter(is_close).any(|r| end(&r));
        (closed(&of_client) && closed(&of_server)).then_some(())
    });
    for (name, records, first) in [
        ("client", records.iter().filter(of_client).collect::<Vec<_>>(), FIN_WAIT1),
        ("server", records.iter().filter(of_server).collect(), LAST_ACK),
    ] {
        let reported: Vec<_> = records.iter().map(|r| (r.kind, r.state, r.pid)).collect();
        assert_eq!(reported.len(), 2, "{name}: {reported:?}");
        assert_eq!(reported[0], (Kind::Scan as u8, first, std::process::id()), "{name}");
        assert_eq!((reported[1].0, reported[1].2), (Kind::Close as u8, std::process::id()), "{name}");
        assert!([FIN_WAIT1, FIN_WAIT2, LAST_ACK].contains(&reported[1].1), "{name}: {reported:?}");
        assert_eq!((records[0].cookie, records[0].seq_local), (records[1].cookie, records[1].seq_local), "{name}");
    }
}

/// Kernels leave programs out, some for milliseconds: then the end is all that tells of a short connection.
#[test]
fn a_connection_of_which_only_the_end_was_seen() {
    let old = TcpListener::bind("127.0.0.1:0").expect("a port");
    // Nobody has accepted it, so it is not among the files of the processes that are there at the start.
    let old_address = old.local_addr().expect("an address");
    let older = TcpStream::connect(old_address).expect("a connection");
    let options = KernelOptions { left_out: vec!["se_set_state"], ..KernelOptions::default() };
    let (_kernel, mut rings) = Kernel::start(&options).expect("the kernel side");
    let (of_older, _) = old.accept().expect("a connection");
    let began_ns = sockeye::model::clock::boot_ns();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (server, client_address) = listener.accept().expect("a connection");
    client.write_all(&[7; 300]).expect("sent");
    std::thread::sleep(Duration::from_millis(20));
    let before_end_ns = sockeye::model::clock::boot_ns();
    client.shutdown(Shutdown::Write).expect("its FIN");
    drop((server, client, of_older, older));
    let mut records = Vec::new();
    wait_for("both ends", Duration::from_secs(5), || {
        drain(&mut rings, &mut records);
        let from = client_address.port();
        let client = records.iter().find(|r| r.local_port == from)?;
        let server = records.iter().find(|r| r.remote_port == from)?;
        Some([*client, *server])
    })
    .iter()
    .for_each(|end| {
        assert_eq!((end.kind, end.pid), (Kind::Close as u8, 0), "nobody was seen to have it: {end:?}");
        assert!((began_ns..before_end_ns - 15_000_000).contains(&(end.at_ns - end.age_ns())), "{end:?}");
    });
    assert_eq!(records.iter().map(|record| record.bytes_received).sum::<u64>(), 300);
    let is_older = |record: &&FlowRecord| record.local_port == old_address.port();
    assert_eq!(records.iter().find(is_older), None, "of what it began with nobody knows what was before the agent");
}

/// What the agent has forgotten the kernel must tell of again: else a container that was silent for long stays unknown for ever.
#[test]
fn what_was_forgotten_is_told_of_again() {
    let (kernel, mut rings) = Kernel::start(&KernelOptions::default()).expect("the kernel side");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut heard: (Vec<IdentityRecord>, Vec<u64>) = Default::default();
    let mut connect_and_hear = || {
        let _client = TcpStream::connect(address).expect("a connection");
        std::thread::sleep(Duration::from_millis(50));
        for ring in &mut rings {
            ring.drain(usize::MAX, |bytes| match Record::parse(bytes) {
                Some(Record::Identity(identity)) if identity.pid == std::process::id() => heard.0.push(*identity),
                Some(Record::Cgroup(cgroup)) => heard.1.push(cgroup.cgroup_id),
                _ => {}
            });
        }
        heard.clone()
    };
    let (processes, cgroups) = connect_and_hear();
    let own = processes[0];
    assert!(cgroups.contains(&own.cgroup_id));
    let times = |(processes, cgroups): (Vec<IdentityRecord>, Vec<u64>)| {
        (processes.len(), cgroups.iter().filter(|id| **id == own.cgroup_id).count())
    };
    let before = times((processes, cgroups));
    assert_eq!(times(connect_and_hear()), before, "once is enough");
    kernel.forget_process(own.pid, own.start_ticks);
    kernel.forget_cgroup(own.cgroup_id);
    assert_eq!(times(connect_and_hear()), (before.0 + 1, before.1 + 1));
}
