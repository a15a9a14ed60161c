//! CPUs that do not sleep. A virtual CPU that halts is slow to wake, and whether it halts hangs on microseconds: without
//! this a slow-down of bulk traffic is anything between -40 and 40 %, with an agent or with none.

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::load::pin;
use crate::tether::{Tethered, until_input_ends};

/// A process on each of the first CPUs that spins when nothing else wants to run (SCHED_IDLE). They end with this.
pub(crate) struct Awake(Vec<Tethered>);

impl Awake {
    pub(crate) fn keep(cpus: usize) -> Result<Self> {
        let mut awake = Self(Vec::new());
        for cpu in 0..cpus {
            let child = Command::new("chrt")
                .args(["--idle", "0"])
                .arg(std::env::current_exe()?)
                .args(["keep-awake", &cpu.to_string()])
                .stdin(Stdio::piped())
                .spawn()
                .context("cannot start chrt (util-linux)")?;
            awake.0.push(Tethered(child));
        }
        Ok(awake)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    cpu: usize,
}

/// The other side: spins until its input ends.
pub(crate) fn spin(options: &Options) {
    let over = until_input_ends();
    pin(options.cpu);
    while !over.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}
