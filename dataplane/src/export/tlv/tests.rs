use proptest::prelude::*;

use super::*;
use crate::export::decoder::{self, Item, Record, sum};
use crate::flows::testing;

const PROBE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 8, 7));

/// The vector of ntop's own serialiser.
const GOLDEN: &str = "01012b08000831302e312e322e332b0c000931302e312e322e35332307ea63220b35220411223c0424166b03d7f0\
    24156b03d7f522014622020122177822180133e1280d053be12900112f7573722f7362696e2f646e736d61737132e229653be1f40007\
    646e736d6173713ae0fb0000a03f01";

#[test]
fn items_are_those_of_ntops_serialiser() {
    let mut out = MESSAGE_START.to_vec();
    let mut w = Writer(&mut out);
    w.string(8, "10.1.2.3");
    w.string(12, "10.1.2.53");
    for (key, value) in [
        (7, 60003),
        (11, 53),
        (4, 17),
        (60, 4),
        (22, 1_795_414_000),
        (21, 1_795_414_005),
        (1, 70),
        (2, 1),
        (23, 120),
        (24, 1),
        (57640, 3333),
    ] {
        w.uint(key, value);
    }
    w.string(57641, "/usr/sbin/dnsmasq");
    w.uint(57897, 101);
    w.string(57844, "dnsmasq");
    w.float(57595, 1.25);
    w.end();
    let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}

fn decode(bytes: &[u8]) -> Vec<Record> {
    decoder::decode(bytes).unwrap()
}

#[test]
fn a_pod_is_told_in_the_field_of_the_container_and_in_labelled_rows() {
    let mut out = Vec::new();
    Encoder::new(PROBE).encode(&testing::report(), &mut out);
    let record = &decode(&out)[0];
    assert!(record.contains(&(58030, Item::Text("shop/web-1/app".into()))));
    for (name, text) in [
        ("Client Kubernetes Pod", "web-1"),
        ("Client Namespace", "shop"),
        ("Client Container Image", "registry.example/app:1"),
        ("Client Command Line", "curl --option"),
        // `>` is markup to a page.
        ("Client Ancestry", "systemd(1) \u{ff1e} sshd(812) \u{ff1e} bash(4000)"),
        ("Server UID / GID", "1000 (www-data) / 1001"),
        ("Server Systemd Unit", "nginx.service"),
        ("TCP RTT", "min 18.000 ms / average 20.500 ms / p99 31.250 ms (12 samples)"),
        ("Client Congestion Control", "cubic"),
    ] {
        assert!(record.contains(&(0, Item::Named(name.into(), text.into()))), "{name}: {record:?}");
    }
    assert!(!record.iter().any(|(key, _)| *key == 58031));
}

#[test]
fn a_record_is_about_its_interval_and_names_the_agent() {
    let report = FlowReport {
        first_unix_ns: 100_500_000_000,
        since_unix_ns: 150_500_000_000,
        last_unix_ns: 160_500_000_000,
        ..testing::report()
    };
    let mut out = Vec::new();
    let mut encoder = Encoder::new(PROBE);
    encoder.encode(&report, &mut out);
    encoder.encode_beginning(&report, &mut out);
    let records = decode(&out);
    let times = |record: &[(u64, Item)]| [22, 21, 58051, 1].map(|key| sum(&[record.to_vec()], key));
    assert_eq!(times(&records[0]), [150, 160, 1, 1200]);
    assert_eq!(times(&records[1]), [100, 150, 1, 0]);
    for record in &records {
        assert!(record.contains(&(57943, Item::Text("10.9.8.7".into()))));
        assert!(record.contains(&(57640, Item::Number(42))) && record.contains(&(57847, Item::Number(43))));
    }
}

#[test]
fn a_connection_that_failed_is_an_issue() {
    use crate::model::flow::State;
    for (state, risk) in [(State::Refused, 1 << 50), (State::TimedOut, 1 << 50), (State::Closed, 0)] {
        let mut out = Vec::new();
        Encoder::new(PROBE).encode(&FlowReport { state, ..testing::report() }, &mut out);
        assert_eq!(sum(&decode(&out), 57981), risk, "{state:?}");
    }
}

#[test]
fn a_counter_that_went_wrong_takes_no_more_than_a_message() {
    let delta = Counters { bytes: [u64::MAX, 7], packets: [1, u64::MAX], ..Counters::default() };
    let mut out = Vec::new();
    let count = Encoder::new(PROBE).encode(&FlowReport { delta, ..testing::report() }, &mut out);
    let records = decode(&out);
    assert_eq!((count, records.len()), (RECORDS_MAX, RECORDS_MAX));
    assert_eq!([1, 23].map(|key| sum(&records, key)), [BYTES_MAX, 7]);
    assert!(out.len() < 128 << 10, "{} bytes", out.len());
}

proptest! {
    #[test]
    fn an_independent_decoder_reads_what_was_written(
        items in prop::collection::vec((any::<u32>(), any::<u64>(), ".{1,50}"), 1..20),
    ) {
        let mut out = Vec::new();
        let mut expected = Vec::new();
        let mut w = Writer(&mut out);
        for (key, value, text) in &items {
            w.uint(*key, *value);
            w.string(*key, text);
            w.float(*key, *value as f32);
            let key = u64::from(*key);
            expected.push((key, Item::Number(*value)));
            let safe = ["<", ">", "\"", "'", "&", "`"].into_iter().zip(["＜", "＞", "＂", "＇", "＆", "｀"]);
            let text = safe.fold(text.clone(), |text, (from, to)| text.replace(from, to));
            expected.push((key, Item::Text(text)));
            expected.push((key, Item::Float(*value as f32)));
        }
        w.end();
        prop_assert_eq!(decode(&out), vec![expected]);
    }

    #[test]
    fn counters_add_up_and_each_fits_32_bits(
        bytes in any::<[u64; 2]>().prop_map(|b| b.map(|b| b >> 28)),
        packets in any::<[u64; 2]>().prop_map(|p| p.map(|p| p >> 31)),
        cmdline in ".{0,40}",
    ) {
        let mut report = testing::report();
        let mut process = (**report.identity[0].process.as_ref().unwrap()).clone();
        process.cmdline = crate::model::text::clean(cmdline.as_bytes());
        report.identity[0].process = Some(Arc::new(process));
        report.delta = Counters { bytes, packets, ..Counters::default() };
        let mut out = Vec::new();
        let count = Encoder::new(PROBE).encode(&report, &mut out);
        let records = decode(&out);
        prop_assert_eq!(records.len(), count);
        for (key, value) in [(1, bytes[0]), (23, bytes[1])] {
            prop_assert_eq!(sum(&records, key), value);
        }
        for (packet_key, byte_key, reported) in [(2, 1, packets[0]), (24, 23, packets[1])] {
            let sent = sum(&records, packet_key);
            prop_assert!(sent >= reported, "no packet is lost");
            prop_assert!(sent <= reported + count as u64, "at most one is added to a record that has bytes and no packet");
            for record in &records {
                let one = std::slice::from_ref(record);
                prop_assert!(sum(one, byte_key) <= u64::from(u32::MAX) && sum(one, packet_key) <= u64::from(u32::MAX));
                prop_assert!(sum(one, byte_key) == 0 || sum(one, packet_key) > 0);
            }
        }
        // Each part is about its own part of the interval.
        let seconds: Vec<[u64; 2]> = records.iter().map(|r| [22, 21].map(|key| sum(std::slice::from_ref(r), key))).collect();
        prop_assert_eq!((seconds[0][0], seconds[count - 1][1]), (1, 2));
        prop_assert!(seconds.windows(2).all(|pair| pair[0][1] == pair[1][0]), "{seconds:?}");
        // A record without the process would let an idle flow come back bare.
        let has_pid = |record: &Vec<(u64, Item)>| record.iter().any(|(key, _)| *key == 57640);
        prop_assert!(records.iter().all(has_pid));
    }
}
