//! A producer in the kernel for the load harness: fills the rings through the same code as the real programs, without
//! sockets, by running a program that is never attached.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapHandle, OpenObject};

use super::saturate_skel::SaturateSkelBuilder;
use crate::error::{KernelError, bpf};
use crate::kernel::{create_rings, create_udp_table, handle, put, read_cpu_stats};
use crate::records::CpuStats;
use crate::ring::Ring;
use crate::sys;

/// The producer. Dropping it unloads it.
pub struct Producer {
    program: OwnedFd,
    counts: MapHandle,
}

/// What to produce in one go.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// Records.
    pub records: u64,
    /// Flows that they are spread over evenly, at least 1.
    pub flows: u64,
    /// Number of the first record: what was produced before, so that times increase and the load can be repeated.
    pub seed: u64,
    /// Wake the worker if it waits for the ring; the agent's programs never do.
    pub wake: bool,
}

impl Producer {
    /// Loads the program. Returns the rings, one per CPU that is online, in their order.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load(ring_bytes: u32) -> Result<(Self, Vec<Ring>), KernelError> {
        let cpus = libbpf_rs::num_possible_cpus().map_err(bpf("cannot count the CPUs"))?;
        let mut storage: MaybeUninit<OpenObject> = MaybeUninit::uninit();
        let mut open = SaturateSkelBuilder::default().open(&mut storage).map_err(bpf("cannot open the BPF object"))?;
        open.maps.se_rings.set_max_entries(cpus as u32).map_err(bpf("cannot size the maps"))?;
        let skel = open.load().map_err(bpf("the kernel refused the producer"))?;
        let rings = create_rings(&skel.maps.se_rings, cpus, Some(ring_bytes))?;
        put(&skel.maps.se_udp, 0, &create_udp_table(1)?)?;
        let program = skel.progs.se_produce.as_fd().try_clone_to_owned();
        let program = program.map_err(|source| KernelError::Io { what: "cannot keep the producer".into(), source })?;
        Ok((Self { program, counts: handle(&skel.maps.se_counts)? }, rings))
    }

    /// Produces on the CPU that the calling thread runs on. Returns when all records were offered.
    ///
    /// # Errors
    /// If the kernel refuses to run the program.
    pub fn produce(&self, order: Order) -> Result<(), KernelError> {
        let mut arguments = [0u8; 32];
        for (bytes, value) in
            arguments.chunks_exact_mut(8).zip([order.records, order.flows, order.seed, u64::from(order.wake)])
        {
            bytes.copy_from_slice(&value.to_ne_bytes());
        }
        sys::run_program(self.program.as_fd(), &mut arguments)
            .map_err(|source| KernelError::Io { what: "cannot run the producer".into(), source })
    }

    /// How many records were offered and lost by now, on all CPUs.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn record_counters(&self) -> Result<(u64, u64), KernelError> {
        let cpus = read_cpu_stats(&self.counts)?;
        let of = |counts: fn(&CpuStats) -> &[u64]| cpus.iter().flat_map(counts).sum();
        Ok((of(|cpu| &cpu.offered), of(|cpu| &cpu.lost)))
    }
}
