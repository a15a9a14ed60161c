//! The record path allocates nothing once its tables have grown: counted by the allocator itself.

use sockeye::ingest::worker::Worker;
use sockeye_bpf::records::{DatagramRecord, FlowRecord, Kind, RttRecord, UdpCloseRecord};
use sockeye_bpf::ring::Drain;
use zerocopy::{FromZeros, IntoBytes};

/// The same records again and again.
struct Load {
    flows: Vec<FlowRecord>,
    rtt: RttRecord,
    datagram: DatagramRecord,
    close: UdpCloseRecord,
}

impl Load {
    fn new() -> Self {
        let flow = |cookie| {
            let mut r = FlowRecord::new_zeroed();
            r.kind = Kind::Scan as u8;
            r.cookie = cookie;
            r.at_ns = cookie;
            r
        };
        let mut rtt = RttRecord::new_zeroed();
        (rtt.kind, rtt.count, rtt.pid) = (Kind::Rtt as u8, 24, 7);
        let (mut datagram, mut close) = (DatagramRecord::new_zeroed(), UdpCloseRecord::new_zeroed());
        (datagram.kind, close.kind) = (Kind::Datagram as u8, Kind::UdpClose as u8);
        Self { flows: (1..=5_000).map(flow).collect(), rtt, datagram, close }
    }
}

impl Drain for Load {
    fn drain(&mut self, _limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        self.flows.iter().for_each(|r| each(r.as_bytes()));
        for _ in 0..100 {
            each(self.rtt.as_bytes());
            each(self.datagram.as_bytes());
            each(self.close.as_bytes());
        }
        self.flows.len() + 300
    }
}

#[test]
fn visits_and_hand_overs_allocate_nothing_in_steady_state() {
    let (mut worker, mut port) = Worker::new(0, vec![(Load::new(), 0)], Box::new(|| {}));
    let mut turn = || {
        worker.visit();
        assert!(worker.hand_over());
        let mut shard = port.shards.pop().expect("it was handed over");
        assert_eq!(shard.tcp.records().len(), 5_000);
        shard.clear();
        port.recycle.push(shard).expect("room for all boxes");
    };
    // Each of the four buffers grows its tables once.
    (0..8).for_each(|_| turn());
    let counted = allocation_counter::measure(|| (0..50).for_each(|_| turn()));
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
