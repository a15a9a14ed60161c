//! What the verifier says of the programs, bounded: growth must be a decision.

use std::process::Command;

use sockeye_tests::program;

/// Verified instructions of the kernel that needs most (6.1 to 7.2), with half as much again.
const BOUNDS: [(&str, u32); 12] = [
    ("se_set_state", 19_500),
    ("se_destroy", 7_500),
    ("se_read", 21_500),
    ("se_probe", 1_500),
    ("se_sock_create", 3_200),
    ("se_sock_release", 150),
    ("se_egress", 30_000),
    ("se_ingress", 14_000),
    ("se_seed", 20_000),
    ("se_scan", 6_600),
    ("se_scan_files", 6_600),
    ("se_holders", 300),
];

#[test]
fn each_program_is_verified_within_its_bound() {
    let output = Command::new(program("sockeye")).arg("check").output().expect("sockeye");
    let text = String::from_utf8_lossy(&output.stdout);
    // 1: an older kernel lacks something that the agent does without.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for (name, bound) in BOUNDS {
        let line = text
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(name))
            .unwrap_or_else(|| panic!("{name} is missing in: {text}"));
        let verified: u32 = line.split_whitespace().nth(2).and_then(|n| n.parse().ok()).expect("a number");
        assert!(verified > 0 && verified <= bound, "{name}: {verified} instructions, {bound} allowed");
    }
}

/// What three capabilities are not enough for is said, one by one, and for programs, too.
#[test]
fn three_capabilities_are_enough_to_start() {
    let bounding = "-all,+bpf,+perfmon,+net_admin";
    let check = |more: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set", bounding, "--inh-caps", "-all"])
            .arg(program("sockeye"))
            .arg("check")
            .args(more);
        command.output().expect("setpriv")
    };
    let output = check(&[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"), "{text}");
    let output = check(&["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let degraded: Vec<_> = json["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|finding| finding["grade"] == "degraded")
        .filter_map(|finding| finding["name"].as_str())
        .filter(|name| name.starts_with("CAP_"))
        .collect();
    assert_eq!(json["worst"], "degraded");
    let optional = ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_SYS_NICE", "CAP_SYS_ADMIN"];
    assert_eq!(degraded, optional);
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-all,+bpf", "--inh-caps", "-all"])
        .arg(program("sockeye"))
        .args(["check", "--json"])
        .output()
        .expect("setpriv");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &json["worst"]), (Some(77), &"missing".into()), "{json}");
    let capabilities =
        json["findings"].as_array().expect("a list").iter().find(|f| f["name"] == "capabilities").cloned();
    let capabilities = capabilities.expect("a finding");
    assert_eq!(capabilities["finding"], "the process lacks CAP_PERFMON, CAP_NET_ADMIN");
    assert!(capabilities["remedy"].as_str().is_some_and(|remedy| remedy.contains("grant")), "{capabilities}");
}
