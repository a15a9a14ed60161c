//! Loading and attaching the kernel programs. Dropping [`Kernel`] detaches everything: all links are file descriptors
//! of this process, so the kernel does the same when the process is killed.

use std::fs::File;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, MapMut, MapType, OpenObject, ProgramMut};
use rustix::time::{ClockId, clock_gettime};
use zerocopy::FromBytes;

use crate::charge::create_uncharged;
use crate::cpus;
use crate::error::{KernelError, bpf};
use crate::filter::{FilterMaps, SocketFilter};
use crate::programs::ProgramHandle;
use crate::records::{CpuStats, UdpKey, UdpValue};
use crate::ring::Ring;
use crate::scan::{HolderWalk, Scanner, UdpTables, run};
use crate::skel::MainSkelBuilder;

/// Keeps libbpf from printing: what goes wrong is in the errors.
pub fn silence_libbpf() {
    libbpf_rs::set_print(None);
}

/// How the kernel side is set up.
#[derive(Debug, Clone)]
pub struct KernelOptions {
    /// Mount point of cgroup v2. Without it UDP is not seen.
    pub cgroup: Option<PathBuf>,
    /// Bytes of each CPU's ring, a power of two and a multiple of the page size. By default [`ring_bytes_for`].
    pub ring_bytes: Option<u32>,
    /// Flows in the UDP table between two drains.
    pub udp_table_entries: u32,
    /// Processes of other pid namespaces cannot be seen: what is older than this call is not known beforehand.
    pub blind: bool,
    /// What is left out.
    pub filter: SocketFilter,
    /// Messages of DNS are copied.
    pub dns: bool,
    /// The first data of clients is.
    pub hello: bool,
    /// Programs on tracepoints that are not attached, for tests: as if the kernel left them out at each event.
    pub left_out: Vec<&'static str>,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self {
            cgroup: None,
            ring_bytes: None,
            udp_table_entries: 32768,
            blind: false,
            filter: SocketFilter::default(),
            dns: false,
            hello: false,
            left_out: Vec::new(),
        }
    }
}

/// Size of each ring on a host with so many CPUs online: 8 MiB, which take what comes in 5 ms at 10 million records a second,
/// in which a kernel thread may keep the worker from its CPU; from 3 CPUs on less, so that all take 16 MiB, but at least
/// 1 MiB each.
#[must_use]
pub fn ring_bytes_for(cpus: usize) -> u32 {
    let share = u32::try_from((16 << 20) / cpus.max(1)).unwrap_or(u32::MAX);
    let power_of_two = 1 << share.checked_ilog2().unwrap_or(0);
    power_of_two.clamp(1 << 20, 8 << 20)
}

/// Size of the ring that CPUs share which were not online when the agent was started.
const SHARED_RING_BYTES: u32 = 1 << 20;

/// The attached programs and their maps.
pub struct Kernel {
    scanner: Scanner,
    holders: HolderWalk,
    misses_orphans: bool,
    udp: Option<UdpTables>,
    filter: FilterMaps,
    counts: MapHandle,
    known: MapHandle,
    cgroups: MapHandle,
    programs: Vec<ProgramHandle>,
    charged: Option<io::Error>,
    _links: Vec<Link>,
}

impl Kernel {
    /// Loads and attaches everything, then marks the sockets that are older than this call. Returns the rings, one
    /// per CPU that is online, in their order, and then the one that all others share, if there are any.
    ///
    /// # Errors
    /// If the kernel refuses a program, map or attachment. Nothing stays attached then.
    pub fn start(options: &KernelOptions) -> Result<(Self, Vec<Ring>), KernelError> {
        let cpus = libbpf_rs::num_possible_cpus().map_err(bpf("cannot count the CPUs"))?;
        // The skeleton borrows this storage; one allocation per load lives as long as the process.
        let storage: &'static mut MaybeUninit<OpenObject> = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = MainSkelBuilder::default().open(storage).map_err(bpf("cannot open the BPF object"))?;
        let set = bpf("cannot size the maps");
        let udp_inner = create_udp_table(options.udp_table_entries)?;
        open.maps.se_rings.set_max_entries(cpus as u32).map_err(set)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.se_began_us = monotonic_us();
            constants.se_blind = u8::from(options.blind);
            constants.se_dns_wanted = u8::from(options.dns);
            constants.se_hello_wanted = u8::from(options.hello);
        }
        let charged = match create_uncharged(open.open_object(), &open.maps.se_socks) {
            Ok(map) => open.maps.se_socks.reuse_fd(map.as_fd()).map(|()| None).map_err(bpf("cannot use a map"))?,
            Err(why) => Some(why),
        };
        let skel = open.load().map_err(bpf("the kernel refused a program (run with -vv for the verifier's log)"))?;

        let rings = create_rings(&skel.maps.se_rings, cpus, options.ring_bytes)?;
        put(&skel.maps.se_udp, 0, &udp_inner)?;
        let mut filter = FilterMaps::new(handle(&skel.maps.se_filters)?, handle(&skel.maps.se_networks)?);
        filter.set(&options.filter)?;

        let mut links = attach_tracing(&skel.progs, &options.left_out)?;
        let progs = &skel.progs;
        // Each UDP socket is known before its packets are counted: those that are made from now on, and those that are there.
        if let Some(path) = &options.cgroup {
            links.extend(attach_cgroup([&progs.se_sock_create, &progs.se_sock_release], path)?);
        }
        seed(&progs.se_seed)?;
        if let Some(path) = &options.cgroup {
            links.extend(attach_cgroup([&progs.se_egress, &progs.se_ingress], path)?);
        }

        let misses_orphans = scan_kind().is_over_files();
        let scan = if misses_orphans {
            skel.progs.se_scan_files.attach_trace()
        } else {
            skel.progs.se_scan.attach_iter(skel.maps.se_socks.as_fd())
        };
        let scanner = Scanner::new(
            scan.map_err(bpf("cannot attach the socket scan"))?,
            ring_of(&skel.maps.se_scanned, 0, skel.maps.se_scanned.max_entries())?,
            handle(&skel.maps.se_scan_all)?,
            handle(&skel.maps.se_closes)?,
        );
        let holders = skel.progs.se_holders.attach_trace().map_err(bpf("cannot attach the walk over open files"))?;
        let holders = HolderWalk::new(holders, handle(&skel.maps.se_walk)?);
        let udp = UdpTables::new(handle(&skel.maps.se_udp)?, [udp_inner, create_udp_table(options.udp_table_entries)?]);
        let counts = handle(&skel.maps.se_counts)?;
        let (known, cgroups) = (handle(&skel.maps.se_known)?, handle(&skel.maps.se_cgroups)?);
        let loaded = skel.object().progs().filter(|p| p.autoload());
        let programs = loaded.map(|p| ProgramHandle::new(&p)).collect::<io::Result<_>>();
        let programs = programs.map_err(|source| KernelError::Io { what: "cannot keep a program".into(), source })?;
        let udp = Some(udp);
        Ok((
            Self {
                scanner,
                holders,
                misses_orphans,
                udp,
                filter,
                counts,
                known,
                cgroups,
                programs,
                charged,
                _links: links,
            },
            rings,
        ))
    }

    /// The UDP counters. They can be taken once, to be read on a thread of their own.
    pub fn take_udp_tables(&mut self) -> Option<UdpTables> {
        self.udp.take()
    }

    /// The reader of sockets.
    pub fn scanner(&mut self) -> &mut Scanner {
        &mut self.scanner
    }

    /// The walk that finds out who holds a socket.
    pub fn holders(&mut self) -> &mut HolderWalk {
        &mut self.holders
    }

    /// Whether a scan finds only sockets that a process has open, and not what is left of a connection after its close.
    #[must_use]
    pub fn misses_orphans(&self) -> bool {
        self.misses_orphans
    }

    /// How often a change of a TCP socket's state was not seen, because the program was already running on that CPU.
    #[must_use]
    pub fn states_missed(&self) -> u64 {
        let program = self.programs.iter().find(|program| program.name() == "se_set_state");
        program.and_then(|program| program.cost().ok()).map_or(0, |cost| cost.misses)
    }

    /// Judges what opens from now on, and every datagram, by another filter.
    ///
    /// # Errors
    /// If the kernel does not take it: there are more than [`NETWORKS_MAX`](crate::filter::NETWORKS_MAX) networks.
    pub fn set_filter(&mut self, filter: &SocketFilter) -> Result<(), KernelError> {
        self.filter.set(filter)
    }

    /// Bytes of the buffer that the scan goes through.
    #[must_use]
    pub fn scan_bytes(&self) -> usize {
        self.scanner.buffer_bytes()
    }

    /// The loaded programs.
    #[must_use]
    pub fn programs(&self) -> &[ProgramHandle] {
        &self.programs
    }

    /// Why the state of sockets is charged to this process's memory cgroup, if it is: then each connection costs its
    /// applications more.
    #[must_use]
    pub fn charged_because(&self) -> Option<&io::Error> {
        self.charged.as_ref()
    }

    /// A process is not remembered any more: the kernel tells of it again when it next has to do with a socket.
    pub fn forget_process(&self, pid: u32, start_ticks: u32) {
        // It may be gone from there, too, which is as good.
        let _ = self.known.delete(&(u64::from(pid) << 32 | u64::from(start_ticks)).to_ne_bytes());
    }

    /// The same of a cgroup, which is told of again with a process in it.
    pub fn forget_cgroup(&self, id: u64) {
        let _ = self.cgroups.delete(&id.to_ne_bytes());
    }

    /// The counters of each possible CPU.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn cpu_stats(&self) -> Result<Vec<CpuStats>, KernelError> {
        read_cpu_stats(&self.counts)
    }
}

pub(crate) fn read_cpu_stats(counts: &impl MapCore) -> Result<Vec<CpuStats>, KernelError> {
    let values = counts
        .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
        .map_err(bpf("cannot read the kernel's counters"))?
        .unwrap_or_default();
    let read = |v: &Vec<u8>| CpuStats::read_from_prefix(v).map_or_else(|_| CpuStats::default(), |(stats, _)| stats);
    Ok(values.iter().map(read).collect())
}

/// A second owner of a map's descriptor, independent of the skeleton.
pub(crate) fn handle(map: &MapMut<'_>) -> Result<MapHandle, KernelError> {
    MapHandle::try_from(map).map_err(bpf("cannot keep a map"))
}

fn create_opts() -> bpf_map_create_opts {
    bpf_map_create_opts {
        sz: mem::size_of::<bpf_map_create_opts>() as libbpf_rs::libbpf_sys::size_t,
        ..Default::default()
    }
}

pub(crate) fn create_udp_table(entries: u32) -> Result<MapHandle, KernelError> {
    let (key, value) = (mem::size_of::<UdpKey>() as u32, mem::size_of::<UdpValue>() as u32);
    MapHandle::create(MapType::Hash, Some("se_udp_table"), key, value, entries, &create_opts())
        .map_err(bpf("cannot create a UDP table"))
}

pub(crate) fn put(outer: &impl MapCore, slot: u32, inner: &MapHandle) -> Result<(), KernelError> {
    let fd = inner.as_fd().as_raw_fd().to_ne_bytes();
    outer.update(&slot.to_ne_bytes(), &fd, MapFlags::ANY).map_err(bpf("cannot fill a map of maps"))
}

/// A ring for each CPU that is online, in their order, and then one, as if of the CPU after the last possible one, that all others
/// share: a virtual machine may have 128 of which four are there, and one that comes later finds room there.
pub(crate) fn create_rings(
    outer: &impl MapCore,
    possible: usize,
    bytes: Option<u32>,
) -> Result<Vec<Ring>, KernelError> {
    let online: Vec<usize> = cpus::online().into_iter().filter(|cpu| *cpu < possible).collect();
    let online = if online.is_empty() { (0..possible).collect() } else { online };
    let bytes = bytes.unwrap_or_else(|| ring_bytes_for(online.len()));
    let create = |bytes| {
        MapHandle::create(MapType::RingBuf, Some("se_ring"), 0, 0, bytes, &create_opts())
            .map_err(bpf("cannot create a ring buffer"))
    };
    let mut rings = Vec::with_capacity(online.len() + 1);
    for &cpu in &online {
        let map = create(bytes)?;
        put(outer, cpu as u32, &map)?;
        rings.push(ring_of(&map, cpu, bytes)?);
    }
    let others: Vec<usize> = (0..possible).filter(|cpu| !online.contains(cpu)).collect();
    if !others.is_empty() {
        let bytes = bytes.min(SHARED_RING_BYTES);
        let map = create(bytes)?;
        others.iter().try_for_each(|cpu| put(outer, *cpu as u32, &map))?;
        rings.push(ring_of(&map, possible, bytes)?);
    }
    Ok(rings)
}

fn ring_of(map: &impl AsFd, cpu: usize, bytes: u32) -> Result<Ring, KernelError> {
    let fd: OwnedFd = map
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| KernelError::Io { what: "cannot keep a ring buffer".into(), source })?;
    Ring::new(cpu, bytes as usize, fd).map_err(|source| KernelError::Ring { cpu, source })
}

/// The clock of TCP sockets.
fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000 + now.tv_nsec.cast_unsigned() / 1000
}

fn attach_tracing(progs: &crate::skel::MainProgs<'_>, left_out: &[&str]) -> Result<Vec<Link>, KernelError> {
    [&progs.se_set_state, &progs.se_destroy, &progs.se_read, &progs.se_probe]
        .into_iter()
        .filter(|program| !left_out.iter().any(|name| program.name() == *name))
        .map(|program| program.attach_trace().map_err(bpf("cannot attach a BTF tracepoint")))
        .collect()
}

fn attach_cgroup(programs: [&ProgramMut<'_>; 2], path: &Path) -> Result<Vec<Link>, KernelError> {
    let dir = File::open(path)
        .map_err(|source| KernelError::Io { what: format!("cannot open the cgroup {}", path.display()), source })?;
    programs
        .into_iter()
        .map(|program| program.attach_cgroup(dir.as_raw_fd()).map_err(bpf("cannot attach to the root cgroup")))
        .collect()
}

/// How sockets are scanned, and why so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanKind {
    /// Over the states of all sockets: it finds connections that no process has open any more, too.
    OverStates,
    /// Over open files: this kernel can free a state under the other walk (see `se_scan_files` in `scan.h`).
    OverFiles,
    /// Over open files: the kernel's types cannot be read, so nobody knows.
    OverFilesUnknown,
}

impl ScanKind {
    fn is_over_files(self) -> bool {
        self != Self::OverStates
    }

    /// In words.
    #[must_use]
    pub fn why(self) -> &'static str {
        match self {
            Self::OverStates => "over the states of all sockets: the kernel has no bpf_selem_unlink_nofail",
            Self::OverFiles => {
                "over open files: the kernel has bpf_selem_unlink_nofail, with which the faster walk is not safe"
            }
            Self::OverFilesUnknown => {
                "over open files: the kernel's types cannot be read, and this walk is safe everywhere"
            }
        }
    }
}

/// By what the kernel has, not by its version: a vendor's may carry a change under an older number.
#[must_use]
pub fn scan_kind() -> ScanKind {
    match Btf::from_vmlinux() {
        Ok(btf) if btf.type_by_name::<Func<'_>>("bpf_selem_unlink_nofail").is_some() => ScanKind::OverFiles,
        Ok(_) => ScanKind::OverStates,
        Err(_) => ScanKind::OverFilesUnknown,
    }
}

/// Runs the iterator over all open files once: it marks the sockets that it finds.
fn seed(program: &ProgramMut<'_>) -> Result<(), KernelError> {
    let link = program.attach_trace().map_err(bpf("cannot attach the seed iterator"))?;
    run(&link, "the seed iterator")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_of_many_cpus_are_smaller() {
        let mib = |cpus| ring_bytes_for(cpus) >> 20;
        assert_eq!([0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 4096].map(mib), [8, 8, 8, 4, 4, 2, 2, 1, 1, 1, 1]);
    }
}
