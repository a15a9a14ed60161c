//! What the host must offer, found out before anything is loaded: probe, then decide.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use caps::{CapSet, Capability};
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;

/// One need of the agent and whether the host meets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Short name.
    pub name: &'static str,
    /// What was found, or what is missing.
    pub finding: String,
    /// What to do about it; `None` when the need is met.
    pub remedy: Option<String>,
}

impl Need {
    fn met(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, finding: finding.into(), remedy: None }
    }

    fn unmet(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, finding: finding.into(), remedy: Some(remedy.into()) }
    }
}

/// Name of the need for privileges.
pub const CAPABILITIES: &str = "capabilities";
/// Name of the need for cgroup v2.
pub const CGROUP: &str = "cgroup v2";
/// Where the kernel publishes its types.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Probes everything.
#[must_use]
pub fn probe() -> Vec<Need> {
    vec![
        capabilities(|cap| caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false)),
        btf(Path::new(BTF_PATH)),
        cgroup(find_cgroup2().as_deref(), is_in_container()),
    ]
}

/// What the agent does without if it must, one by one: what is lost without each.
#[must_use]
pub fn optional_capabilities() -> Vec<Need> {
    optional(|cap| caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false))
}

fn optional(has: impl Fn(Capability) -> bool) -> Vec<Need> {
    let wanted = [
        (
            "CAP_SYS_PTRACE",
            Capability::CAP_SYS_PTRACE,
            "packages of programs in containers, and, in a container, the names of the host's users",
        ),
        (
            "CAP_DAC_READ_SEARCH",
            Capability::CAP_DAC_READ_SEARCH,
            "packages of programs in containers of other users, where CAP_DAC_OVERRIDE is missing, too",
        ),
        ("CAP_DAC_OVERRIDE", Capability::CAP_DAC_OVERRIDE, "names of containers of users' own engines"),
        (
            "CAP_SYS_NICE",
            Capability::CAP_SYS_NICE,
            "priority on a host that is short of CPU: collectors may miss the agent",
        ),
        ("CAP_SYS_ADMIN", Capability::CAP_SYS_ADMIN, "run time of the kernel programs in ctl stats"),
    ];
    wanted
        .into_iter()
        .map(|(name, cap, lost)| {
            if has(cap) {
                Need::met(name, "held")
            } else {
                Need::unmet(
                    name,
                    format!("without it there is less: {lost}"),
                    format!("grant {name}, if that is wanted"),
                )
            }
        })
        .collect()
}

/// Without it the entry of a packet in the table of translated connections cannot be found.
const CAST: &str = "bpf_cast_to_kern_ctx";

/// What else the kernel may refuse, or lack.
#[must_use]
pub fn kernel_limits() -> Vec<Need> {
    let lockdown = match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(text) if text.contains("[confidentiality]") => Need::unmet(
            "lockdown",
            "the kernel is locked down: programs may not read its memory",
            "boot with lockdown=integrity, or without",
        ),
        Ok(text) => Need::met("lockdown", text.trim()),
        Err(_) => Need::met("lockdown", "none"),
    };
    let translation = match Btf::from_vmlinux().map(|btf| btf.type_by_name::<Func<'_>>(CAST).is_some()) {
        Ok(true) => Need::met("conntrack", format!("UDP that is translated on its way is told as one flow ({CAST})")),
        Ok(false) => Need::unmet(
            "conntrack",
            format!(
                "the kernel has no {CAST}: UDP that is translated on its way is one flow for connected sockets only"
            ),
            "boot Linux 6.2 or newer",
        ),
        Err(_) => Need::met("conntrack", "not known: the kernel's types cannot be read"),
    };
    vec![lockdown, translation]
}

/// Whether the process is in a container, as far as can be told.
#[must_use]
pub fn is_in_container() -> bool {
    !is_in_hosts_pid_namespace()
        || ["/.dockerenv", "/run/.containerenv"].iter().any(|file| Path::new(file).exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// What cannot be seen from where the process runs, although all needs are met: each with a remedy. For containers.
#[must_use]
pub fn limits(with_cgroup: bool) -> Vec<Need> {
    let pid = (!is_in_hosts_pid_namespace()).then(|| {
        Need::unmet(
            "pid namespace",
            "the agent is not in the host's pid namespace: sockets that were open before it came have no process until one \
             uses them, and of processes it knows only what the kernel tells",
            "run it with the host's (docker run --pid=host, in Kubernetes hostPID: true)",
        )
    });
    let mount = find_cgroup2().filter(|mount| with_cgroup && !is_cgroup_root(mount));
    let cgroup = mount.map(|mount| {
        Need::unmet(
            "cgroup root",
            format!("{} is not the root of the host's cgroups: UDP of processes outside of it is not seen", mount.display()),
            "run it with the host's cgroup namespace (docker run --cgroupns=host), or mount the host's /sys/fs/cgroup there",
        )
    });
    [pid, cgroup].into_iter().flatten().collect()
}

/// Number of the first pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const HOSTS_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Whether processes of all pid namespaces are seen. True if nobody can tell.
#[must_use]
pub fn is_in_hosts_pid_namespace() -> bool {
    fs::metadata("/proc/self/ns/pid").map_or(true, |ns| ns.ino() == HOSTS_PID_NAMESPACE)
}

/// Every cgroup but the root has a type.
#[must_use]
pub fn is_cgroup_root(mount: &Path) -> bool {
    !mount.join("cgroup.type").exists()
}

/// Kinds of programs and maps that the agent is made of, each tried with the kernel. Not tracing programs: they can only be
/// tried by loading them.
#[must_use]
pub fn features() -> Vec<Need> {
    let programs = [
        ("cgroup_skb", ProgramType::CgroupSkb, "boot a kernel with CONFIG_CGROUP_BPF=y, or run with --no-cgroup"),
        ("cgroup_sock", ProgramType::CgroupSock, "boot a kernel with CONFIG_CGROUP_BPF=y, or run with --no-cgroup"),
    ];
    let maps = [
        ("ring buffers", MapType::RingBuf),
        ("socket storage", MapType::SkStorage),
        ("maps of maps", MapType::ArrayOfMaps),
        ("LRU hashes", MapType::LruHash),
    ];
    let programs = programs
        .map(|(name, kind, remedy)| feature(name, is_program_supported(kind).map_err(|err| err.to_string()), remedy));
    let maps = maps.map(|(name, kind)| {
        feature(name, is_map_supported(kind).map_err(|err| err.to_string()), "boot Linux 6.1 or newer")
    });
    let storage = is_helper_supported(ProgramType::CgroupSkb, BpfHelper::BPF_FUNC_sk_storage_get);
    let storage = feature("UDP state", storage.map_err(|err| err.to_string()), "boot Linux 6.1 or newer");
    programs.into_iter().chain(maps).chain([storage]).collect()
}

/// What the kernel says of a feature. One that it does not want to be asked about shows itself when programs are loaded.
fn feature(name: &'static str, answer: Result<bool, String>, remedy: &str) -> Need {
    match answer {
        Ok(true) => Need::met(name, "supported"),
        Ok(false) => Need::unmet(name, format!("this kernel has no {name}"), remedy),
        Err(why) => Need::met(name, format!("not known: {why}")),
    }
}

/// `has` tells whether the process holds a capability. `CAP_SYS_ADMIN` implies all that are needed.
fn capabilities(has: impl Fn(Capability) -> bool) -> Need {
    const NAME: &str = CAPABILITIES;
    if has(Capability::CAP_SYS_ADMIN) {
        return Need::met(NAME, "CAP_SYS_ADMIN");
    }
    let missing: Vec<String> = [Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN]
        .into_iter()
        .filter(|cap| !has(*cap))
        .map(|cap| cap.to_string())
        .collect();
    if missing.is_empty() {
        return Need::met(NAME, "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN");
    }
    Need::unmet(
        NAME,
        format!("the process lacks {}", missing.join(", ")),
        "run as root, or grant CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN",
    )
}

fn btf(path: &Path) -> Need {
    const NAME: &str = "BTF";
    match fs::metadata(path) {
        Ok(meta) if meta.len() > 0 => Need::met(NAME, path.display().to_string()),
        _ => Need::unmet(
            NAME,
            format!("the kernel does not publish its types ({} is missing)", path.display()),
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of Debian 11 and newer are",
        ),
    }
}

fn cgroup(mount: Option<&Path>, is_in_container: bool) -> Need {
    const NAME: &str = CGROUP;
    match mount {
        Some(path) => Need::met(NAME, path.display().to_string()),
        None => Need::unmet(
            NAME,
            "no cgroup v2 hierarchy is mounted",
            if is_in_container {
                "give the container the host's /sys/fs/cgroup (docker run -v /sys/fs/cgroup:/sys/fs/cgroup:ro, in Kubernetes \
                 a hostPath), or run with --no-cgroup, without UDP"
            } else {
                "mount one (mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified), or run with \
             --no-cgroup, without UDP"
            },
        ),
    }
}

/// The mount point of cgroup v2, on unified and on hybrid hosts.
#[must_use]
pub fn find_cgroup2() -> Option<PathBuf> {
    let mounts = cgroup2_in(&fs::read_to_string("/proc/self/mounts").ok()?);
    mounts.iter().find(|mount| is_cgroup_root(mount)).or(mounts.first()).cloned()
}

/// The mounts of type cgroup2 in `/proc/self/mounts` format. A container may have its own part of it, and the host's root.
fn cgroup2_in(text: &str) -> Vec<PathBuf> {
    mounts(text).filter(|mount| mount.kind == "cgroup2").map(|mount| mount.path()).collect()
}

/// A line of `/proc/self/mounts`.
pub(crate) struct Mount<'a> {
    path: &'a str,
    /// Type of the file system.
    pub(crate) kind: &'a str,
    /// Separated by commas.
    pub(crate) options: &'a str,
}

impl Mount<'_> {
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(unescape(self.path))
    }
}

/// The lines of `/proc/self/mounts` (fstab(5)); what is no such line is left out. By hand: procfs 0.18 leaves `\040` as it
/// is, and reads nothing at all if one line is odd.
pub(crate) fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some(Mount { path: fields.next()?, kind: fields.next()?, options: fields.next()? })
    })
}

/// Blanks, tabs, newlines and backslashes are octal escapes there.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_on_unified_and_hybrid_hosts() {
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(cgroup2_in(unified), [PathBuf::from("/sys/fs/cgroup")]);
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_in(hybrid), [PathBuf::from("/sys/fs/cgroup/unified")]);
        assert!(cgroup2_in("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n").is_empty());
        assert_eq!(cgroup2_in("none /mnt/a\\040b cgroup2 rw 0 0\n"), [PathBuf::from("/mnt/a b")]);
    }

    #[test]
    fn names_what_is_missing() {
        let need = capabilities(|cap| cap == Capability::CAP_BPF);
        assert_eq!(need.finding, "the process lacks CAP_PERFMON, CAP_NET_ADMIN");
        assert!(need.remedy.is_some());
        assert!(capabilities(|cap| cap == Capability::CAP_SYS_ADMIN).remedy.is_none());
        let lost: Vec<_> = optional(|cap| cap == Capability::CAP_SYS_NICE)
            .into_iter()
            .filter(|need| need.remedy.is_some())
            .map(|need| need.name)
            .collect();
        assert_eq!(lost, ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
        assert!(btf(Path::new("/nonexistent")).remedy.is_some());
        assert!(cgroup(None, false).remedy.unwrap().contains("mount -t cgroup2"));
        let in_container = cgroup(None, true).remedy.unwrap();
        assert!(in_container.contains("hostPath") && !in_container.contains("mkdir"), "{in_container}");
    }
}
