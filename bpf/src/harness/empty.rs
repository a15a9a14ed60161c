//! What the kernel charges for the mechanisms that the agent is made of, without its work: for the load harness.

use std::fs::File;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject};

use super::empty_skel::EmptySkelBuilder;
use crate::charge::create_uncharged;
use crate::error::{KernelError, bpf};
use crate::kernel::{create_rings, create_udp_table, put};
use crate::ring::Ring;

/// Which of the agent's hooks, and what is in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// All of them, with nothing.
    All,
    /// Its tracepoints, with nothing.
    Tracepoints,
    /// Each packet of a socket, with nothing.
    CgroupSkb,
    /// All of them, with a state for each TCP socket and a record in a ring for each connection that ends.
    Bare,
}

/// Attached until it is dropped.
pub struct EmptyHooks {
    _links: Vec<Link>,
    rings: Vec<Ring>,
}

impl EmptyHooks {
    /// Loads and attaches them, with rings of the agent's size.
    ///
    /// # Errors
    /// If the kernel refuses, or the cgroup cannot be opened.
    pub fn attach(cgroup: &Path, hooks: Hooks) -> Result<Self, KernelError> {
        let cpus = libbpf_rs::num_possible_cpus().map_err(bpf("cannot count the CPUs"))?;
        let mut storage: MaybeUninit<OpenObject> = MaybeUninit::uninit();
        let mut open = EmptySkelBuilder::default().open(&mut storage).map_err(bpf("cannot open the BPF object"))?;
        open.maps.se_rings.set_max_entries(cpus as u32).map_err(bpf("cannot size the maps"))?;
        open.maps.rodata_data.as_deref_mut().expect("the object has a constant").se_bare = hooks == Hooks::Bare;
        if let Ok(map) = create_uncharged(open.open_object(), &open.maps.se_socks) {
            open.maps.se_socks.reuse_fd(map.as_fd()).map_err(bpf("cannot use a map"))?;
        }
        let skel = open.load().map_err(bpf("the kernel refused the empty programs"))?;
        let rings = create_rings(&skel.maps.se_rings, cpus, None)?;
        put(&skel.maps.se_udp, 0, &create_udp_table(1)?)?;
        let dir = File::open(cgroup)
            .map_err(|source| KernelError::Io { what: format!("cannot open {}", cgroup.display()), source })?;
        let p = &skel.progs;
        let traced = [&p.se_set_state, &p.se_destroy, &p.se_read, &p.se_probe].map(|p| (Hooks::Tracepoints, p));
        let packets = [&p.se_egress, &p.se_ingress].map(|p| (Hooks::CgroupSkb, p));
        let sockets = [&p.se_sock_create, &p.se_sock_release].map(|p| (Hooks::All, p));
        let links = traced
            .into_iter()
            .chain(packets)
            .chain(sockets)
            .filter(|(of, _)| matches!(hooks, Hooks::All | Hooks::Bare) || hooks == *of)
            .map(|(of, program)| match of {
                Hooks::Tracepoints => program.attach_trace(),
                _ => program.attach_cgroup(dir.as_raw_fd()),
            })
            .collect::<Result<_, _>>()
            .map_err(bpf("cannot attach the empty programs"))?;
        Ok(Self { _links: links, rings })
    }

    /// The rings, one per possible CPU. They can be taken once.
    pub fn take_rings(&mut self) -> Vec<Ring> {
        mem::take(&mut self.rings)
    }
}
