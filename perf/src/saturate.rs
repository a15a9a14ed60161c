//! `perf saturate`: how many records a second go through ring, worker and shard, and from which rate on some are lost.
//!
//! A kernel program is the producer, so no socket costs anything. Everything after the ring is the agent's own code:
//! `Worker` with `Delta`, and for `--stage merge` the control thread's `FlowTable`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use core_affinity::CoreId;
use serde_json::{Value, json};
use sockeye_bpf::preflight;

use crate::lab::{Lab, Placement, Stage, Wake};
use crate::table::{Report, Table, progress, round2};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Live flows that the records are spread over; repeatable.
    #[arg(long, value_name = "FLOWS", default_values_t = [1_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    flows: Vec<u64>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// KiB of the ring, a power of two; the first is that of the main table. Repeatable.
    #[arg(long, default_values_t = [1024, 256, 4096, 16384], value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ring_kib: Vec<u32>,
    /// How far records go: drain (bytes are looked at), shard (the worker's table), merge (control's table, too).
    #[arg(long, value_enum, default_values_t = [Stage::Drain, Stage::Shard, Stage::Merge])]
    stage: Vec<Stage>,
    /// Number of the first record.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A quarter of a second each, 1,000 flows: for checking the books, not for figures.
    #[arg(long)]
    quick: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.1..=60.0).contains(s)).ok_or_else(|| "expected 0.1 to 60".into())
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    for need in preflight::probe().into_iter().filter(|need| need.name == preflight::CAPABILITIES) {
        if let Some(remedy) = need.remedy {
            bail!("{}: {remedy}", need.finding);
        }
    }
    sockeye_bpf::kernel::silence_libbpf();
    if core_affinity::get_core_ids().context("cannot list the CPUs")?.len() < 2 {
        bail!("two CPUs are needed, one to produce and one to drain");
    }
    let (flows, seconds) = if options.quick { (&[1_000][..], 0.25) } else { (&options.flows[..], options.seconds) };
    let lab = Lab {
        stage: Stage::Shard,
        placement: Placement::Other,
        wake: Wake::Nap,
        rings: 1,
        flows: if options.quick { 1_000 } else { 100_000 },
        ring_bytes: options.ring_kib[0] * 1024,
        seed: options.seed,
    };
    let mut labs = Vec::new();
    for &stage in &options.stage {
        for placement in [Placement::Other, Placement::Same] {
            labs.extend(flows.iter().map(|&flows| Lab { stage, placement, flows, ..lab }));
        }
    }
    let mut variants = vec![Lab { wake: Wake::Event, ..lab }, Lab { wake: Wake::Busy, ..lab }];
    variants.extend(options.ring_kib[1..].iter().map(|kib| Lab { ring_bytes: kib * 1024, ..lab }));
    variants.extend([1, 2].map(|rings| Lab { rings, placement: Placement::Same, ..lab }));
    let bar = progress("saturate", (labs.len() + variants.len()) as u64 + LOSS_RATES.len() as u64);
    let rows = |labs: &[Lab]| -> Result<Table> {
        let mut table = Table::new(&COLUMNS);
        for lab in labs {
            table.push(row(lab, seconds)?);
            bar.inc(1);
        }
        Ok(table)
    };
    let table = rows(&labs)?;
    let more = vec![
        ("one thing changed: wake-up, ring size, number of rings", rows(&variants)?),
        ("loss against the offered rate", losses(&lab, seconds, &bar)?),
    ];
    bar.finish_and_clear();
    let mut notes = vec![format!(
        "Each row: offered = delivered + lost, checked. {seconds} s each, seed {}. One worker for each ring, one producer in \
         the kernel for each ring. With the worker on the same CPU the two take turns. Records are those of live sockets; \
         \"loss-free\" is the highest rate, paced in steps of 20 us, of which nothing is lost in two of three runs of {} s. \
         The further tables are of the shard with {} live flows, the loss with the worker on another CPU.",
        options.seed,
        seconds / 4.0,
        lab.flows,
    )];
    notes.push(format!(
        "A busy thread on the worker's CPU, while the other CPU was busy, too, did not run for up to {:.2} ms in {seconds} s: \
         what comes in that time must find room in the ring, which bounds \"loss-free\".",
        longest_stall(seconds)?.as_secs_f64() * 1e3,
    ));
    Ok(Report { title: "saturate", table, more, notes })
}

/// The longest time in which a thread that wants to run does not, with both CPUs busy.
fn longest_stall(seconds: f64) -> Result<Duration> {
    let cpus = core_affinity::get_core_ids().context("cannot list the CPUs")?;
    let spin = |cpu: CoreId| {
        move || {
            core_affinity::set_for_current(cpu);
            let (began, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
            while began.elapsed().as_secs_f64() < seconds {
                let now = Instant::now();
                longest = longest.max(now - last);
                last = now;
            }
            longest
        }
    };
    let threads: Vec<_> = cpus[..2].iter().map(|cpu| thread::spawn(spin(*cpu))).collect();
    let stalls: Vec<_> = threads.into_iter().map(|t| t.join().unwrap_or_default()).collect();
    Ok(stalls[1])
}

const COLUMNS: [&str; 11] = [
    "stage",
    "worker on",
    "flows",
    "ring KiB",
    "worker is",
    "rings",
    "flat out: offered/s",
    "delivered/s",
    "lost",
    "loss-free up to",
    "ns per record",
];

/// Shares of the ceiling at which losses are counted.
const LOSS_RATES: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5];

fn losses(lab: &Lab, seconds: f64, bar: &indicatif::ProgressBar) -> Result<Table> {
    let ceiling = lab.measure(None, seconds)?.delivered_per_s();
    let mut table = Table::new(&["aimed at/s", "offered/s", "lost %"]);
    for share in LOSS_RATES {
        let sample = lab.measure(Some(share * ceiling), seconds / 2.0)?;
        table.push(vec![
            json!((share * ceiling) as u64),
            json!(sample.offered_per_s() as u64),
            round2(100.0 * sample.lost as f64 / sample.offered.max(1) as f64),
        ]);
        bar.inc(1);
    }
    Ok(table)
}

fn row(lab: &Lab, seconds: f64) -> Result<Vec<Value>> {
    let flat_out = lab.measure(None, seconds)?;
    let delivered = flat_out.delivered_per_s();
    let loss_free = match flat_out.lost {
        0 => json!("void: the producer did not outrun it"),
        _ => json!(lab.loss_free_rate(delivered, seconds)? as u64),
    };
    Ok(vec![
        json!(format!("{:?}", lab.stage).to_lowercase()),
        json!(if lab.placement == Placement::Same { "the same CPU" } else { "another CPU" }),
        json!(lab.flows),
        json!(lab.ring_bytes / 1024),
        json!(if lab.stage == Stage::Drain { "the bare ring, with naps" } else { lab.wake.name() }),
        json!(lab.rings),
        json!(flat_out.offered_per_s() as u64),
        json!(delivered as u64),
        json!(flat_out.lost),
        loss_free,
        round2(1e9 / delivered),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(parse_seconds("2"), Ok(2.0));
        assert!(parse_seconds("0").is_err() && parse_seconds("nan").is_err() && parse_seconds("1e9").is_err());
    }
}
