//! What the verifier says of the programs, bounded: growth must be a decision.

use std::process::Command;

use sockeye_tests::program;

/// Verified instructions on the development kernel (6.18), with half as much again for other kernels.
const BOUNDS: [(&str, u32); 11] = [
    ("se_set_state", 10900),
    ("se_destroy", 1700),
    ("se_read", 9400),
    ("se_probe", 400),
    ("se_sock_create", 3000),
    ("se_sock_release", 150),
    ("se_egress", 1000),
    ("se_ingress", 1000),
    ("se_seed", 300),
    ("se_scan", 1500),
    ("se_scan_files", 1500),
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
