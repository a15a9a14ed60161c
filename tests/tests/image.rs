//! The container image, run by real runtimes with exactly the rights that the manifests for Kubernetes give it.

use std::process::Command;
use std::time::Duration;

use sockeye_tests::daemonset::{Daemon, copy_configuration, manifests};
use sockeye_tests::engines::Engines;
use sockeye_tests::net::Namespace;
use sockeye_tests::{here, wait_for};

const IMAGE: &str = "sockeye:test";

/// Builds the image with the Docker of a test.
fn build(engines: &Engines) {
    let bin = sockeye_tests::program("sockeye").parent().expect("a folder").to_owned();
    let built = Command::new(here("../packaging/container/build"))
        .arg(IMAGE)
        .env("SOCKEYE_BIN", bin)
        .env("DOCKER_HOST", format!("unix://{}", engines.path("docker.sock").display()))
        .output()
        .expect("bash");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

#[test]
fn the_image_runs_in_docker_and_as_the_daemonset_says() {
    let host = Namespace::new();
    let engines = Engines::start(&host.name);
    build(&engines);
    let bytes: u64 = engines.docker(&["inspect", "-f", "{{.Size}}", IMAGE]).parse().expect("a size");
    assert!(bytes < 40_000_000, "{bytes} bytes");
    assert!(engines.docker(&["run", "--rm", IMAGE, "--version"]).starts_with("sockeye "));
    in_docker(&engines);
    as_daemonset(&engines);
}

/// What is applied names the version that it is of.
#[test]
fn the_base_for_kustomize_has_the_version_of_the_agent() {
    let base = std::fs::read_to_string(here("../packaging/kubernetes/kustomization.yaml")).expect("the base");
    assert!(base.lines().any(|line| line.trim() == format!("newTag: {}", env!("CARGO_PKG_VERSION"))), "{base}");
}

/// Docker 20.10 does not know CAP_BPF by its name.
fn in_docker(engines: &Engines) {
    let options = ["--pid=host", "--cgroupns=host", "--read-only", "--tmpfs=/run/sockeye", "--cap-drop=ALL"];
    let more = [
        "--cap-add=SYS_ADMIN",
        "--cap-add=NET_ADMIN",
        "--cap-add=SYS_PTRACE",
        "--volume=/sys/fs/cgroup:/sys/fs/cgroup",
    ];
    engines.docker(&[&["run", "-d", "--name=agent"][..], &options, &more, &[IMAGE]].concat());
    let (_, ip) = engines.run_container("web", &[], "exec httpd -f -p 80");
    let _ = engines.run_container("peer", &[], &format!("for i in 1 2 3 4 5; do echo | nc {ip} 80; sleep 1; done"));
    let seen = wait_for("the other container's flow", Duration::from_secs(10), || {
        let ask = ["exec", "agent", "sockeyectl", "--json", "flows", "--closed", "--port", "80"];
        let said = engines.docker(&ask);
        said.contains("httpd").then_some(said)
    });
    assert!(seen.contains(&ip), "{seen}");
    engines.docker(&["stop", "agent"]);
    assert_eq!(engines.docker(&["inspect", "-f", "{{.State.ExitCode}}", "agent"]), "0");
}

fn as_daemonset(engines: &Engines) {
    let manifests = manifests();
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["etc", "run", "dpkg"] {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
    }
    copy_configuration(&folder.path().join("etc"));
    // The engines of the test are not where a node's are.
    let (etc, run, containerd) = (folder.path().join("etc"), folder.path().join("run"), engines.path(""));
    let at = |path: &str| match path {
        "sockeye" => Some(etc.display().to_string()),
        "/run/sockeye" => Some(run.display().to_string()),
        "/run/containerd" => Some(containerd.display().to_string()),
        _ => None,
    };
    let image = folder.path().join("image.tar").display().to_string();
    engines.docker(&["save", "-o", &image, IMAGE]);
    engines.ctr(&["-n", "k8s.io", "images", "import", &image]);
    let cri = engines.cri();
    let agent = Daemon::start(&cri, &manifests["DaemonSet"], &format!("docker.io/library/{IMAGE}"), &at);
    wait_for("its first answer", Duration::from_secs(60), || agent.probe(&cri, "startupProbe").then_some(()));
    assert!(agent.probe(&cri, "readinessProbe") && agent.probe(&cri, "livenessProbe"));

    let shop = cri.run_pod("shop", "cart", false);
    cri.run_container(&shop, "app", "exec httpd -f -p 80");
    let other = cri.run_pod("shop", "far", false);
    cri.run_container(&other, "probe", &format!("for i in 1 2 3 4 5; do echo | nc {} 80; sleep 1; done", shop.ip));
    let wanted = ["shop/cart/app", "shop/far/probe", "\"httpd\"", "\"root\""];
    wait_for("the other pods' flow, with all names", Duration::from_secs(15), || {
        let said = agent.exec(&cri, &["sockeyectl", "--json", "flows", "--closed", "--pod", "shop/cart"]);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        wanted.iter().all(|name| text.contains(name)).then_some(())
    });
    let limits = agent.exec(&cri, &["sockeyectl", "--json", "stats"]);
    let tables: serde_json::Value = serde_json::from_slice(&limits.stdout).expect("JSON");
    let limits = tables["tables"].as_array().expect("tables").iter().find(|table| table["name"] == "limits");
    assert_eq!(limits.expect("limits")["rows"].as_array().map(Vec::len), Some(0), "{limits:#?}");
    // The node's own sockeyectl finds it, too.
    let ctl =
        Command::new(sockeye_tests::program("ctl")).arg("--socket").arg(run.join("ctl.sock")).arg("ports").output();
    assert!(ctl.expect("ctl").status.success());
    [&agent.pod, &shop, &other].into_iter().for_each(|pod| cri.remove_pod(pod));
}
