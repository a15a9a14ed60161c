//! Every record has the same size and offsets in C and in Rust, by the BTF of the compiled object.

use std::collections::BTreeMap;
use std::io::Write;
use std::mem::{offset_of, size_of};

use libbpf_rs::btf::types::{MemberAttr, Struct};
use libbpf_rs::btf::{Btf, HasSize};
use sockeye_bpf::records::{
    CgroupRecord, CloseRecord, CpuStats, DatagramRecord, FlowRecord, IdentityRecord, PayloadHead, RttRecord,
    UdpCloseRecord, UdpKey, UdpValue,
};

type Layout = (usize, BTreeMap<&'static str, usize>);

macro_rules! rust_layout {
    ($type:ty: $($field:ident)*) => {
        (size_of::<$type>(), BTreeMap::from([$((stringify!($field), offset_of!($type, $field)),)*]))
    };
}

fn c_layout(btf: &Btf<'_>, name: &str) -> (usize, BTreeMap<String, usize>) {
    let found: Struct<'_> = btf.type_by_name(name).unwrap_or_else(|| panic!("no struct {name} in the object"));
    let fields = found
        .iter()
        .map(|member| {
            let MemberAttr::Normal { offset } = member.attr else { panic!("a bit field") };
            (member.name.expect("a name").to_string_lossy().into_owned(), offset as usize / 8)
        })
        .collect();
    (found.size(), fields)
}

#[test]
fn c_and_rust_agree_on_every_record() {
    let mut object = tempfile::NamedTempFile::new().expect("a file");
    object.write_all(sockeye_bpf::object_bytes()).expect("written");
    let btf = Btf::from_path(object.path()).expect("the object has BTF");
    let pairs: [(&str, Layout); 11] = [
        (
            "se_flow",
            rust_layout!(FlowRecord: kind flags state error pid cookie at_ns start_ticks age local_addr remote_addr
                local_port remote_port netns bytes_sent bytes_received segs_out segs_in retrans out_of_order
                srtt_us rttvar_us window_local window_remote congestion traits seq_local seq_remote),
        ),
        ("se_close", rust_layout!(CloseRecord: flow samples_us)),
        (
            "se_rtt",
            rust_layout!(RttRecord: kind count flags pad0 pid start_ticks seq_local cookie remote_addr samples_us),
        ),
        ("se_udp_key", rust_layout!(UdpKey: cookie local_addr remote_addr local_port remote_port netns)),
        (
            "se_udp_value",
            rust_layout!(UdpValue: bytes_sent bytes_received first_ns last_ns packets_sent packets_received pid
                start_ticks first_sent flags traits pad0 wire_local_port wire_remote_port first_head wire_local
                wire_remote),
        ),
        ("se_datagram", rust_layout!(DatagramRecord: kind sent flags pad0 pid at_ns key start_ticks packets bytes)),
        ("se_udp_close", rust_layout!(UdpCloseRecord: kind pad0 cookie)),
        (
            "se_identity",
            rust_layout!(IdentityRecord: kind exe_complete exe_len pid start_ticks ppid uid gid parent_uid args_total
                args_len flags pad0 at_ns cgroup_id comm parent_comm exe args),
        ),
        ("se_cgroup", rust_layout!(CgroupRecord: kind complete len pad0 cgroup_id path)),
        (
            "se_payload",
            rust_layout!(PayloadHead: kind sent flags is_tcp pid at_ns cookie start_ticks netns remote_addr local_port copied
                bytes),
        ),
        (
            "se_stats",
            rust_layout!(CpuStats: offered lost close_overflow shut_dropped storage_failed untracked_close
                udp_table_full udp_unparsed args_unreadable ignored_tcp ignored_udp dns_left_out hellos_left_out),
        ),
    ];
    for (name, (size, fields)) in pairs {
        let (c_size, c_fields) = c_layout(&btf, name);
        let fields: BTreeMap<String, usize> = fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        assert_eq!((size, &fields), (c_size, &c_fields), "{name}");
    }
    assert_eq!(size_of::<FlowRecord>(), 128, "two cache lines");
    assert_eq!(size_of::<RttRecord>(), 128);
}
