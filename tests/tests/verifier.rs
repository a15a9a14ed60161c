//! What the verifier says of the programs, bounded: growth must be a decision.

use std::process::Command;

use sockeye_tests::program;

/// Verified instructions of the kernel that needs most (6.1 to 7.2), with half as much again.
const BOUNDS: [(&str, u32); 12] = [
    ("se_set_state", 10_900),
    ("se_destroy", 2_800),
    ("se_read", 10_600),
    ("se_probe", 700),
    ("se_sock_create", 3_200),
    ("se_sock_release", 150),
    ("se_egress", 30_000),
    ("se_ingress", 8_400),
    ("se_seed", 16_800),
    ("se_scan", 6_600),
    ("se_scan_files", 6_600),
    ("se_holders", 300),
];

#[test]
fn each_program_is_verified_within_its_bound() {
    let output = Command::new(program("sockeye")).arg("check").output().expect("sockeye");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for (name, bound) in BOUNDS {
        let line = text
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(name))
            .unwrap_or_else(|| panic!("{name} is missing in: {text}"));
        let verified: u32 = line.split_whitespace().nth(2).and_then(|n| n.parse().ok()).expect("a number");
        assert!(verified > 0 && verified <= bound, "{name}: {verified} instructions, {bound} allowed");
    }
}

#[test]
fn three_capabilities_are_enough() {
    let bounding = "-all,+bpf,+perfmon,+net_admin";
    let output = Command::new("setpriv")
        .args(["--bounding-set", bounding, "--inh-caps", "-all"])
        .arg(program("sockeye"))
        .arg("check")
        .output()
        .expect("setpriv");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"), "{text}");
}
