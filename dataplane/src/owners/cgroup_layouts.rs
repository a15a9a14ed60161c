//! Every cgroup layout that is known, with where it was found.

use super::cgroup::{Runtime, read_path};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "1d8c0f5c-58a4-4d3c-8a7e-6a3d2f1b9c10";
const UID_: &str = "1d8c0f5c_58a4_4d3c_8a7e_6a3d2f1b9c10";
/// Static pods have the hash of their manifest.
const HASH: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Path (with `{A}`, `{B}` for ids, `{U}` for a pod's uid, `{V}` for it with underscores, `{H}` for a hash), the
/// containers (innermost first), the pod, the unit.
struct Row(&'static str, &'static [(Runtime, &'static str)], Option<&'static str>, Option<&'static str>);

use Runtime::{Buildkit, Containerd, Cri, Crio, Docker, Ecs, Kata, Lxc, Mesos, Nspawn, Podman, Unknown};

const ROWS: &[Row] = &[
    // Docker: docs.docker.com, "Runtime metrics", and moby daemon/oci_linux.go (withCgroups).
    Row("/docker/{A}", &[(Docker, A)], None, None),
    Row("/system.slice/docker-{A}.scope", &[(Docker, A)], None, None),
    Row("/docker/{A}/init.scope", &[(Docker, A)], None, None),
    Row("/docker/{A}/system.slice/nginx.service", &[(Docker, A)], None, None),
    Row("/my.slice/docker-{A}.scope", &[(Docker, A)], None, None), // --cgroup-parent my.slice
    Row("/actions_job/{A}", &[(Unknown, A)], None, None),          // --cgroup-parent of GitHub's runner
    // Docker rootless: docs.docker.com, "Rootless mode".
    Row(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope",
        &[(Docker, A)],
        None,
        Some("user@1000.service"),
    ),
    // Docker in Docker: docker:dind started by cgroupfs and by systemd runtimes.
    Row("/docker/{A}/docker/{B}", &[(Docker, B), (Docker, A)], None, None),
    Row("/system.slice/docker-{A}.scope/docker/{B}", &[(Docker, B), (Docker, A)], None, None),
    // BuildKit in Docker: moby builder/builder-next/executor_linux.go.
    Row("/docker/buildkit/r2x8k3m0q4s7z5y1w9v6t2u3b", &[(Buildkit, "r2x8k3m0q4s7z5y1w9v6t2u3b")], None, None),
    // Kubernetes, cgroupfs driver: kubernetes pkg/kubelet/cm (pod_container_manager_linux.go), the three QoS classes.
    Row("/kubepods/pod{U}/{A}", &[(Cri, A)], Some(UID), None),
    Row("/kubepods/burstable/pod{U}/{A}", &[(Cri, A)], Some(UID), None),
    Row("/kubepods/besteffort/pod{U}/{A}", &[(Cri, A)], Some(UID), None),
    Row("/kubepods/burstable/pod{H}/{A}", &[(Cri, A)], Some(HASH), None), // static pod
    Row("/kubepods/burstable/pod{U}", &[], Some(UID), None),              // a shim in the pod's own cgroup
    // Kubernetes, systemd driver: the same, and containerd's internal/cri/server/podsandbox, CRI-O's cgmgr.
    Row("/kubepods.slice/kubepods-pod{V}.slice/cri-containerd-{A}.scope", &[(Containerd, A)], Some(UID), None),
    Row(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{V}.slice/cri-containerd-{A}.scope",
        &[(Containerd, A)],
        Some(UID),
        None,
    ),
    Row(
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{V}.slice/cri-containerd-{A}.scope",
        &[(Containerd, A)],
        Some(UID),
        None,
    ),
    Row(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{V}.slice/crio-{A}.scope",
        &[(Crio, A)],
        Some(UID),
        None,
    ),
    Row(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{V}.slice/crio-{A}.scope/container",
        &[(Crio, A)],
        Some(UID),
        None,
    ), // crun
    Row(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{V}.slice/crio-conmon-{A}.scope",
        &[],
        Some(UID),
        Some("crio-conmon-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.scope"),
    ),
    Row("/kubepods/besteffort/pod{U}/crio-{A}", &[(Crio, A)], Some(UID), None), // CRI-O, cgroupfs
    Row(
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{V}.slice/docker-{A}.scope",
        &[(Docker, A)],
        Some(UID),
        None,
    ), // cri-dockerd
    // kubelet with systemd's driver, containerd with cgroupfs: containerd issue 4857, cAdvisor's tests.
    Row(
        "/system.slice/containerd.service/kubepods-burstable-pod{V}.slice:cri-containerd:{A}",
        &[(Containerd, A)],
        Some(UID),
        Some("containerd.service"),
    ),
    Row("/kubepods-besteffort-pod{V}.slice:cri-containerd:{A}", &[(Containerd, A)], Some(UID), None),
    // kind: kind.sigs.k8s.io, cgroupRoot /kubelet, both drivers, on both kinds of Docker.
    Row("/docker/{B}/kubelet/kubepods/burstable/pod{U}/{A}", &[(Cri, A), (Docker, B)], Some(UID), None),
    Row(
        "/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{V}.slice/cri-containerd-{A}.scope",
        &[(Containerd, A), (Docker, B)],
        Some(UID),
        None,
    ),
    Row(
        "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{V}.slice/cri-containerd-{A}.scope",
        &[(Containerd, A), (Docker, B)],
        Some(UID),
        None,
    ),
    // Docker in a pod (CI runners).
    Row("/kubepods/burstable/pod{U}/{A}/docker/{B}", &[(Docker, B), (Cri, A)], Some(UID), None),
    // k3s rootless: docs.k3s.io, "Running rootless servers".
    Row(
        "/user.slice/user-1000.slice/user@1000.service/k3s-rootless.service/kubepods/burstable/pod{U}/{A}",
        &[(Cri, A)],
        Some(UID),
        Some("k3s-rootless.service"),
    ),
    // Seen from inside a cgroup namespace (cgroup_namespaces(7)).
    Row("/../../kubepods/burstable/pod{U}/{A}", &[(Cri, A)], Some(UID), None),
    Row("/../cri-containerd-{A}.scope", &[(Containerd, A)], None, None),
    // Kata Containers: kata-containers docs/design/host-cgroups.md.
    Row("/kubepods/burstable/pod{U}/kata_{A}", &[(Kata, A)], Some(UID), None),
    Row("/kata_overhead/{A}", &[(Kata, A)], None, None),
    // containerd without CRI: ctr and nerdctl (nerdctl docs/cgroup.md).
    Row("/default/{A}", &[(Containerd, A)], None, None),
    Row("/system.slice/nerdctl-{A}.scope", &[(Containerd, A)], None, None),
    Row("/k8s.io/{A}", &[(Containerd, A)], None, None), // CRI without a cgroup parent
    // Podman: libpod/container_internal_linux.go, libpod/runtime_pod_linux.go; conmon is its monitor.
    Row("/machine.slice/libpod-{A}.scope", &[(Podman, A)], None, None),
    Row("/machine.slice/libpod-{A}.scope/container", &[(Podman, A)], None, None),
    Row("/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope", &[(Podman, A)], None, None),
    Row(
        "/machine.slice/libpod-conmon-{A}.scope",
        &[],
        None,
        Some("libpod-conmon-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.scope"),
    ),
    Row(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
        &[(Podman, A)],
        None,
        Some("user@1000.service"),
    ),
    Row("/libpod_parent/libpod-{A}", &[(Podman, A)], None, None),
    Row("/libpod_parent/{B}/libpod-{A}", &[(Podman, A)], None, None),
    Row("/system.slice/web.service/libpod-payload-{A}", &[(Podman, A)], None, Some("web.service")), // --cgroups=split, Quadlet
    Row("/system.slice/web.service/supervisor", &[], None, Some("web.service")),
    // LXC 3 (v1), LXC 4 and newer, LXD and Incus, Proxmox: lxc.container.conf(5), lxc.cgroup.dir.container.
    Row("/lxc/web", &[(Lxc, "web")], None, None),
    Row("/lxc.payload.web", &[(Lxc, "web")], None, None),
    Row("/lxc.payload.web/system.slice/nginx.service", &[(Lxc, "web")], None, None),
    Row("/lxc.payload/web", &[(Lxc, "web")], None, None),
    Row("/lxc/101/ns/system.slice/ssh.service", &[(Lxc, "101")], None, None),
    Row("/lxc.monitor.web", &[], None, None),
    Row("/lxc.payload.k8s/kubepods/burstable/pod{U}/{A}", &[(Cri, A), (Lxc, "k8s")], Some(UID), None),
    // systemd-nspawn(1), machinectl(1); libvirt's machines are no containers.
    Row(r"/machine.slice/machine-web\x2d1.scope/payload", &[(Nspawn, "web-1")], None, None),
    Row("/machine.slice/systemd-nspawn@web.service/payload", &[(Nspawn, "web")], None, None),
    Row(
        r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator",
        &[],
        None,
        Some(r"machine-qemu\x2d1\x2dvm.scope"),
    ),
    // Amazon ECS: docs.aws.amazon.com, task metadata; on EC2 (both drivers) and on Fargate.
    Row("/ecs/{H}/{A}", &[(Unknown, A)], None, None),
    Row("/ecstasks.slice/ecstasks-{H}.slice/docker-{A}.scope", &[(Docker, A)], None, None),
    Row("/ecs/{H}/{H}-2531612879", &[(Ecs, "d41d8cd98f00b204e9800998ecf8427e-2531612879")], None, None),
    // Apache Mesos: mesos.apache.org, cgroups isolators.
    Row("/mesos/{U}", &[(Mesos, UID)], None, None),
    // systemd: systemd.special(7), org.freedesktop.login1; services and scopes, also below a user's manager.
    Row("/system.slice/nginx.service", &[], None, Some("nginx.service")),
    Row("/system.slice/system-getty.slice/getty@tty1.service", &[], None, Some("getty@tty1.service")),
    Row("/user.slice/user-1000.slice/session-2.scope", &[], None, Some("session-2.scope")),
    Row(
        "/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-123.scope",
        &[],
        None,
        Some("app-firefox-123.scope"),
    ),
    Row("/system.slice/srv-data.mount", &[], None, Some("srv-data.mount")), // systemd.resource-control(5)
    Row("/system.slice/docker.service", &[], None, Some("docker.service")),
    Row("/system.slice/kubelet.service", &[], None, Some("kubelet.service")),
    Row("/init.scope", &[], None, Some("init.scope")),
    Row("/", &[], None, None),
    // Nothing of the kind.
    Row("/kubepods/burstable", &[], None, None),
    Row("/podracers/podium", &[], None, None),
    Row("/docker", &[], None, None),
    Row("/lxc.payload.", &[], None, None),
    Row("/machine.slice/machine-.scope", &[], None, Some("machine-.scope")),
    Row("/machine.slice/systemd-nspawn@.service", &[], None, Some("systemd-nspawn@.service")),
    Row("/docker-compose.slice/short-abc.scope", &[], None, Some("short-abc.scope")),
];

#[test]
fn every_known_layout_is_understood() {
    assert!(ROWS.len() >= 30);
    for Row(path, containers, pod, unit) in ROWS {
        let path =
            path.replace("{A}", A).replace("{B}", B).replace("{U}", UID).replace("{V}", UID_).replace("{H}", HASH);
        let meaning = read_path(&path);
        let found: Vec<_> = meaning.containers.iter().map(|c| (c.runtime, c.id.as_str())).collect();
        assert_eq!(found, *containers, "{path}");
        assert_eq!(meaning.pod_uid.as_deref(), *pod, "{path}");
        assert_eq!(meaning.unit.as_deref(), *unit, "{path}");
    }
}

#[test]
fn the_outer_container_of_a_nested_pod_is_not_in_it() {
    let meaning = read_path(&format!("/docker/{B}/kubelet/kubepods/burstable/pod{UID}/{A}"));
    assert_eq!(meaning.containers[0].pod_uid.as_deref(), Some(UID));
    assert_eq!(meaning.containers[1].pod_uid, None);
}

#[test]
fn slices_are_told() {
    assert_eq!(read_path("/system.slice/nginx.service").slice.as_deref(), Some("system.slice"));
    assert_eq!(read_path("/user.slice/user-7.slice/session-2.scope").slice.as_deref(), Some("user-7.slice"));
}
