//! The agent's hooks with nothing in them, for the load harness: what the kernel takes for calling them.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject};

use crate::empty_skel::EmptySkelBuilder;
use crate::kernel::{KernelError, bpf};

/// Attached until it is dropped.
pub struct EmptyHooks {
    _links: Vec<Link>,
}

impl EmptyHooks {
    /// Loads and attaches them.
    ///
    /// # Errors
    /// If the kernel refuses, or the cgroup cannot be opened.
    pub fn attach(cgroup: &Path) -> Result<Self, KernelError> {
        let mut storage: MaybeUninit<OpenObject> = MaybeUninit::uninit();
        let open = EmptySkelBuilder::default().open(&mut storage).map_err(bpf("cannot open the BPF object"))?;
        let skel = open.load().map_err(bpf("the kernel refused the empty programs"))?;
        let dir = File::open(cgroup)
            .map_err(|source| KernelError::Io { what: format!("cannot open {}", cgroup.display()), source })?;
        let p = &skel.progs;
        let traced = [&p.se_set_state, &p.se_destroy, &p.se_read].into_iter().map(|program| program.attach_trace());
        let in_cgroup = [&p.se_sock_create, &p.se_sock_release, &p.se_egress, &p.se_ingress, &p.se_sockops]
            .into_iter()
            .map(|program| program.attach_cgroup(dir.as_raw_fd()));
        let links =
            traced.chain(in_cgroup).collect::<Result<_, _>>().map_err(bpf("cannot attach the empty programs"))?;
        Ok(Self { _links: links })
    }
}
