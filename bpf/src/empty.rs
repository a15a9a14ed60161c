//! The agent's hooks with nothing in them, for the load harness: what the kernel takes for calling them.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject};

use crate::empty_skel::EmptySkelBuilder;
use crate::kernel::{KernelError, bpf};

/// Which of the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooks {
    /// Those that the agent has.
    All,
    /// Its tracepoints.
    Tracepoints,
    /// Each packet of a socket.
    CgroupSkb,
}

/// Attached until it is dropped.
pub struct EmptyHooks {
    _links: Vec<Link>,
}

impl EmptyHooks {
    /// Loads and attaches them.
    ///
    /// # Errors
    /// If the kernel refuses, or the cgroup cannot be opened.
    pub fn attach(cgroup: &Path, hooks: Hooks) -> Result<Self, KernelError> {
        let mut storage: MaybeUninit<OpenObject> = MaybeUninit::uninit();
        let open = EmptySkelBuilder::default().open(&mut storage).map_err(bpf("cannot open the BPF object"))?;
        let skel = open.load().map_err(bpf("the kernel refused the empty programs"))?;
        let dir = File::open(cgroup)
            .map_err(|source| KernelError::Io { what: format!("cannot open {}", cgroup.display()), source })?;
        let p = &skel.progs;
        let traced = [&p.se_set_state, &p.se_destroy, &p.se_read, &p.se_probe].map(|program| (Hooks::Tracepoints, program));
        let packets = [&p.se_egress, &p.se_ingress].map(|program| (Hooks::CgroupSkb, program));
        let sockets = [&p.se_sock_create, &p.se_sock_release].map(|program| (Hooks::All, program));
        let links = traced
            .into_iter()
            .chain(packets)
            .chain(sockets)
            .filter(|(of, _)| hooks == Hooks::All || hooks == *of)
            .map(|(of, program)| match of {
                Hooks::Tracepoints => program.attach_trace(),
                _ => program.attach_cgroup(dir.as_raw_fd()),
            })
            .collect::<Result<_, _>>()
            .map_err(bpf("cannot attach the empty programs"))?;
        Ok(Self { _links: links })
    }
}
