//! What the path of a cgroup says: container, pod, systemd unit. Pure text, no I/O.
//!
//! There is no standard for these paths; each runtime and driver has its own. The table in `cgroup_layouts.rs` lists
//! those that are known, with their source. A path that none of them explains is shown as it is.

use super::controller::is_unit;

/// Who made a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// Docker Engine.
    Docker,
    /// containerd, by CRI or plain.
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
    /// Something behind CRI: the path tells of a pod, and not of the runtime.
    Cri,
    /// Kata Containers.
    Kata,
    /// LXC, LXD, Incus.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// BuildKit.
    Buildkit,
    /// Amazon ECS on Fargate.
    Ecs,
    /// Apache Mesos.
    Mesos,
    /// A container by its 64 hex digits, of a runtime that the path does not name.
    Unknown,
}

impl Runtime {
    /// Lower-case name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Podman => "podman",
            Self::Cri => "cri",
            Self::Kata => "kata",
            Self::Lxc => "lxc",
            Self::Nspawn => "nspawn",
            Self::Buildkit => "buildkit",
            Self::Ecs => "ecs",
            Self::Mesos => "mesos",
            Self::Unknown => "unknown",
        }
    }
}

/// A container, as far as a path tells.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerRef {
    /// Who made it.
    pub runtime: Runtime,
    /// The runtime's id: 64 hex digits mostly, a name for LXC and nspawn.
    pub id: String,
    /// Uid of its Kubernetes pod.
    pub pod_uid: Option<String>,
}

/// What a path says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathMeaning {
    /// Containers around the process, the innermost one first.
    pub containers: Vec<ContainerRef>,
    /// Uid of the Kubernetes pod; there may be no container, for a shim that lives in the pod's cgroup.
    pub pod_uid: Option<String>,
    /// Service or scope of systemd, or a unit of another kind that has processes, outside of containers.
    pub unit: Option<String>,
    /// Its slice.
    pub slice: Option<String>,
    /// What may be a container of containerd, where nothing else explains the path.
    pub candidate: Option<Candidate>,
}

/// What a container would be called whose cgroup is `/NAMESPACE/ID`, as containerd has it by default
/// (`oci.WithNamespacedCgroup`). Any cgroup may look like this: it is none until containerd says that it is one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Namespace of containerd.
    pub namespace: String,
    /// Id in it.
    pub id: String,
}

/// Reads a cgroup path. `/..` at its beginning, as a cgroup namespace shows it, is ignored.
#[must_use]
pub fn read_path(path: &str) -> PathMeaning {
    let mut meaning = PathMeaning::default();
    let mut parent = "";
    for component in path.split('/').filter(|c| !c.is_empty() && *c != "..") {
        read_component(component, parent, &mut meaning);
        parent = component;
    }
    meaning.containers.reverse();
    if meaning.containers.is_empty() && meaning.pod_uid.is_none() && meaning.unit.is_none() && meaning.slice.is_none() {
        meaning.candidate = candidate(path);
    }
    meaning
}

fn candidate(path: &str) -> Option<Candidate> {
    let (namespace, id) = path.strip_prefix('/')?.split_once('/')?;
    let is_candidate = is_containerds(namespace) && is_containerds(id);
    is_candidate.then(|| Candidate { namespace: namespace.to_owned(), id: id.to_owned() })
}

/// Whether containerd takes it for a name (containerd identifiers/validate.go).
fn is_containerds(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
    name.len() <= 76 && name.split(['.', '_', '-']).all(part)
}

fn read_component(component: &str, parent: &str, meaning: &mut PathMeaning) {
    if let Some(uid) = pod_uid(component, parent) {
        meaning.pod_uid = Some(uid);
    }
    if let Some((runtime, id)) = container(component, parent, meaning.pod_uid.is_some()) {
        // cri-o and Podman put the container's own cgroup `container` below; the same id never nests in itself.
        meaning.containers.push(ContainerRef { runtime, id, pod_uid: meaning.pod_uid.clone() });
        return;
    }
    if !meaning.containers.is_empty() {
        return;
    }
    if component.ends_with(".slice") {
        meaning.slice = Some(component.to_owned());
    } else if is_unit(component) {
        meaning.unit = Some(component.to_owned());
    }
}

/// `pod<uid>` below kubepods, or a slice `…kubepods…-pod<uid with underscores>.slice`, also inside the
/// `slice:prefix:name` form that runc makes of a systemd path under the cgroupfs driver.
fn pod_uid(component: &str, parent: &str) -> Option<String> {
    let first = component.split(':').next().unwrap_or_default();
    let uid = if let Some(slice) = first.strip_suffix(".slice") {
        if !slice.contains("kubepods") {
            return None;
        }
        slice.rsplit_once("-pod")?.1
    } else {
        let below = matches!(parent, "burstable" | "besteffort" | "guaranteed") || parent.contains("kubepods");
        first.strip_prefix("pod").filter(|_| below)?
    };
    let uid = uid.replace('_', "-");
    // A UUID, or for a static pod the hash of its manifest.
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    (digits == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')).then_some(uid)
}

/// Prefixes of names, those of monitors included: a monitor is no part of its container.
const PREFIXES: [(&str, Option<Runtime>); 11] = [
    ("docker-", Some(Runtime::Docker)),
    ("cri-containerd-", Some(Runtime::Containerd)),
    ("containerd-", Some(Runtime::Containerd)),
    ("nerdctl-", Some(Runtime::Containerd)),
    ("crio-conmon-", None),
    ("crio-", Some(Runtime::Crio)),
    ("libpod-conmon-", None),
    ("libpod-payload-", Some(Runtime::Podman)),
    ("libpod-", Some(Runtime::Podman)),
    ("kata_", Some(Runtime::Kata)),
    ("kata-", Some(Runtime::Kata)),
];

fn container(component: &str, parent: &str, in_pod: bool) -> Option<(Runtime, String)> {
    if let Some((_, rest)) = component.split_once(':') {
        let (prefix, id) = rest.split_once(':')?;
        let runtime = PREFIXES.iter().find(|(p, _)| p.trim_end_matches(['-', '_']) == prefix)?.1?;
        return is_id(id).then(|| (runtime, id.to_owned()));
    }
    let name = component.strip_suffix(".scope").unwrap_or(component);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = name.strip_prefix(prefix)
            && is_id(id)
        {
            return runtime.map(|runtime| (runtime, id.to_owned()));
        }
    }
    if is_id(name) {
        return bare_id_runtime(parent, in_pod).map(|runtime| (runtime, name.to_owned()));
    }
    named(component, name, parent)
}

/// Who made a container whose cgroup has just its id for a name. `None`: it is none, but a pod of Podman.
fn bare_id_runtime(parent: &str, in_pod: bool) -> Option<Runtime> {
    Some(match parent {
        "docker" => Runtime::Docker,
        "libpod_parent" => return None,
        "default" | "k8s.io" | "moby" => Runtime::Containerd,
        "vc" | "kata_overhead" => Runtime::Kata,
        _ if in_pod => Runtime::Cri,
        _ => Runtime::Unknown,
    })
}

/// Runtimes whose containers have names of their own kind.
fn named(component: &str, name: &str, parent: &str) -> Option<(Runtime, String)> {
    if let Some(lxc) = component.strip_prefix("lxc.payload.").filter(|name| !name.is_empty()) {
        return Some((Runtime::Lxc, lxc.to_owned()));
    }
    let nspawn = component.strip_prefix("systemd-nspawn@").and_then(|name| name.strip_suffix(".service"));
    let machine = component.strip_suffix(".scope").and_then(|name| name.strip_prefix("machine-"));
    if let Some(machine) = nspawn.or(machine).filter(|name| !name.is_empty()) {
        let machine = unescape(machine);
        // machined registers virtual machines of libvirt in the same way.
        return (!machine.starts_with("qemu-")).then_some((Runtime::Nspawn, machine));
    }
    match parent {
        "lxc" | "lxc.payload" => Some((Runtime::Lxc, component.to_owned())),
        "buildkit" => Some((Runtime::Buildkit, component.to_owned())),
        "mesos" if is_uuid(name) => Some((Runtime::Mesos, component.to_owned())),
        _ => {
            let (task, number) = component.split_once('-')?;
            let fargate = task.len() == 32 && is_hex(task) && number.len() >= 5 && is_decimal(number);
            (fargate && parent == task).then(|| (Runtime::Ecs, component.to_owned()))
        }
    }
}

/// Whether it is what most runtimes give a container for an id.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

fn is_decimal(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|g| g.len()).eq([8, 4, 4, 4, 12]) && groups.iter().all(|g| is_hex(g))
}

/// systemd's `\xNN` in unit names (systemd.unit(5)).
fn unescape(name: &str) -> String {
    let mut parts = name.split("\\x");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // Rust would take a sign for a number's beginning.
        let hex = part.get(..2).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if byte.is_ascii() => {
                text.push(char::from(byte));
                text += &part[2..];
            }
            _ => {
                text += "\\x";
                text += part;
            }
        }
    }
    text
}

/// The path that matters in the text of `/proc/PID/cgroup`: one that leads to a container if there is any, else that of
/// cgroup v2, else systemd's own (cgroups(7)). On hybrid hosts v1 and v2 differ, and either may be the only one that
/// the runtime uses.
#[must_use]
pub fn path_in_proc(text: &str) -> Option<&str> {
    let lines = || text.lines().filter_map(|line| line.splitn(3, ':').collect::<Vec<_>>().try_into().ok());
    let path = |wanted: &dyn Fn(&[&str; 3]) -> bool| lines().find(wanted).map(|[_, _, path]| path);
    path(&|[_, _, path]| !read_path(path).containers.is_empty())
        .or_else(|| path(&|[number, _, path]| *number == "0" && *path != "/"))
        .or_else(|| path(&|[_, controllers, _]| *controllers == "name=systemd"))
        .or_else(|| path(&|[number, _, _]| *number == "0"))
}

/// Which API it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimeApi {
    /// Docker Engine.
    Docker,
    /// Podman: Docker's API.
    Podman,
    /// Container Runtime Interface.
    Cri,
}

impl RuntimeApi {
    /// All.
    pub const ALL: [Self; 3] = [Self::Docker, Self::Podman, Self::Cri];

    /// Lower-case name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Cri => "cri",
        }
    }

    /// Who made a container of which it knows, where nothing else tells.
    #[must_use]
    pub fn runtime(self) -> Runtime {
        match self {
            Self::Docker => Runtime::Docker,
            Self::Podman => Runtime::Podman,
            Self::Cri => Runtime::Cri,
        }
    }

    /// Whether it may have made such a container.
    #[must_use]
    pub fn makes(self, runtime: Runtime) -> bool {
        match runtime {
            Runtime::Docker => self == Self::Docker,
            Runtime::Podman => self == Self::Podman,
            Runtime::Containerd | Runtime::Crio | Runtime::Cri | Runtime::Kata => self == Self::Cri,
            Runtime::Unknown => true,
            Runtime::Lxc | Runtime::Nspawn | Runtime::Buildkit | Runtime::Ecs | Runtime::Mesos => false,
        }
    }
}

/// Whether a cgroup is this user's, or anyone's where it is root's runtime that tells of it.
#[must_use]
pub fn is_of_user(owner_uid: Option<u32>, path: &str) -> bool {
    owner_uid.is_none_or(|uid| path.contains(&format!("/user-{uid}.slice/")))
}

/// Whether names are to be had from a runtime at all.
#[must_use]
pub fn can_be_asked(runtime: Runtime) -> bool {
    RuntimeApi::ALL.iter().any(|kind| kind.makes(runtime))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn picks_the_line_of_proc_that_tells_most() {
        let id = "4".repeat(64);
        let v1 = format!("12:pids:/docker/{id}\n1:name=systemd:/docker/{id}\n0::/system.slice/containerd.service\n");
        assert_eq!(path_in_proc(&v1), Some(format!("/docker/{id}").as_str()));
        assert_eq!(path_in_proc("1:name=systemd:/a.service\n0::/\n"), Some("/a.service"));
        assert_eq!(path_in_proc("0::/user.slice\n"), Some("/user.slice"));
        assert_eq!((path_in_proc("0::/\n"), path_in_proc("")), (Some("/"), None));
    }

    #[test]
    fn what_may_be_a_container_of_containerd_is_only_a_candidate() {
        let candidate = |path: &str| read_path(path).candidate.map(|c| format!("{} {}", c.namespace, c.id));
        assert_eq!(candidate("/default/plain1").as_deref(), Some("default plain1"));
        assert_eq!(candidate("/my-ns.2/a_b").as_deref(), Some("my-ns.2 a_b"));
        let id = "4".repeat(64);
        for path in ["/a", "/a/b/c", "/a/-b", "/a/", "/a/b..c", "/…/b", "/system.slice/a", "/a/b.service", "/lxc/web"]
        {
            assert_eq!(candidate(path), None, "{path}");
        }
        for path in [format!("/default/{id}"), format!("/a/{}", "n".repeat(77)), format!("/docker/{id}")] {
            assert_eq!(candidate(&path), None, "{path}");
        }
        assert!(read_path("/default/plain1").containers.is_empty());
    }

    #[test]
    fn unescapes_as_systemd_does() {
        assert_eq!(unescape(r"web\x2d1"), "web-1");
        assert_eq!(unescape(r"a\xzz\x"), r"a\xzz\x");
        assert_eq!(unescape(r"a\x+f"), r"a\x+f");
    }

    proptest! {
        #[test]
        fn arbitrary_paths_never_panic(path in ".{0,200}", text in "(([0-9]{1,2}:[a-z=]{0,9}:)?/.{0,50}\n){0,5}") {
            let _ = read_path(&path);
            let _ = path_in_proc(&text);
        }

        #[test]
        fn systemd_like_paths_never_panic(path in r"(/(docker-|libpod-|lxc\.payload\.|pod|machine-)?[0-9a-f\\x_:-]{0,70}(\.scope|\.slice|\.service)?){0,6}") {
            let _ = read_path(&path);
        }
    }
}
