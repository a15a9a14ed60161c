//! `perf saturate`: how many records a second go through ring, worker and shard, and from which rate on some are lost.
//!
//! A kernel program is the producer, so no socket costs anything. Everything after the ring is the agent's own code:
//! `Worker` with `Shard`, and for `--stage merge` the control thread's `FlowTable`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use core_affinity::CoreId;
use serde_json::{Value, json};
use sockeye_ctl::human;

use crate::agent::may_load_programs;
use crate::args::parse_seconds;
use crate::lab::{Lab, Placement, Reader, Sample, Stage, Wake};
use crate::stats::quantile;
use crate::table::{Report, Table, progress, round2};
use crate::{distance, scaling};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Live flows that the records are spread over; repeatable.
    #[arg(long, value_name = "FLOWS", default_values_t = [1_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    flows: Vec<u64>,
    /// Seconds of each measurement; a quarter of it at each rate that is tried.
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds)]
    seconds: f64,
    /// How often each setting is measured, all of them in turn. The figures are medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// KiB of the ring, a power of two; the first is that of the main table. Repeatable.
    #[arg(long, default_values_t = [8192, 256, 1024, 4096], value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ring_kib: Vec<u32>,
    /// How far records go: drain (bytes are looked at), shard (the worker's table), merge (control's table, too).
    #[arg(long, value_enum, default_values_t = [Stage::Drain, Stage::Shard, Stage::Merge])]
    stage: Vec<Stage>,
    /// Readers of the bare ring, side by side: ours, aya's, libbpf's.
    #[arg(long, value_enum, default_values_t = [Reader::Own, Reader::Aya, Reader::Libbpf])]
    reader: Vec<Reader>,
    /// Number of the first record.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Once, a quarter of a second each, 1,000 flows: for checking the counters, not for figures.
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    may_load_programs()?;
    sockeye_bpf::kernel::silence_libbpf();
    if core_affinity::get_core_ids().context("cannot list the CPUs")?.len() < 2 {
        bail!("two CPUs are needed, one to produce and one to drain");
    }
    let (flows, seconds, rounds) =
        if options.quick { (&[1_000][..], 0.25, 1) } else { (&options.flows[..], options.seconds, options.rounds) };
    let lab = Lab {
        stage: Stage::Shard,
        placement: Placement::Other,
        wake: Wake::Poll,
        reader: Reader::Own,
        rings: 1,
        flows: if options.quick { 1_000 } else { 100_000 },
        ring_bytes: options.ring_kib[0] * 1024,
        seed: options.seed,
    };
    let mut main = Vec::new();
    for &stage in &options.stage {
        for placement in [Placement::Other, Placement::Same] {
            main.extend(flows.iter().map(|&flows| Series::new(Lab { stage, placement, flows, ..lab })));
        }
    }
    let mut variants: Vec<_> = [Wake::Event, Wake::Busy].map(|wake| Series::new(Lab { wake, ..lab })).into();
    variants.extend(options.ring_kib[1..].iter().map(|kib| Series::new(Lab { ring_bytes: kib * 1024, ..lab })));
    variants.extend([1, 2].map(|rings| Series::new(Lab { rings, placement: Placement::Same, ..lab })));
    let mut readers = Vec::new();
    for placement in [Placement::Other, Placement::Same] {
        let bare = Lab { stage: Stage::Drain, placement, ..lab };
        readers.extend(options.reader.iter().map(|&reader| Series::new(Lab { reader, ..bare })));
    }
    let mut all = main.iter_mut().chain(&mut variants).chain(&mut readers).collect::<Vec<_>>();
    let bar = progress("saturate", all.len() as u64 * rounds + LOSS_RATES.len() as u64);
    for _ in 0..rounds {
        for series in &mut all {
            series.measure(seconds)?;
            bar.inc(1);
        }
    }
    let rows = |series: &[Series]| {
        let mut table = Table::new(&COLUMNS);
        series.iter().for_each(|series| table.push(series.row()));
        table
    };
    let more = vec![
        ("one thing changed: wake-up, ring size, number of rings", rows(&variants)),
        ("the bare ring by reader", rows(&readers)),
        ("loss against the offered rate", losses(&lab, seconds, &bar)?),
    ];
    bar.finish_and_clear();
    let distances_ns: Vec<f64> =
        main.iter().chain(&variants).flat_map(|series| &series.found).map(|found| found.line_ns).collect();
    let [scaling, least, most] = spread(variants.iter().flat_map(|s| &s.found).filter_map(|f| f.scaling).collect());
    let notes = vec![
        format!(
            "Each run: offered = delivered + lost, checked. {rounds} rounds of {seconds} s, seed {}; medians, with the lowest \
             and the highest. One worker for each ring, one producer in the kernel for each ring. With the worker on the same \
             CPU the two take turns. Records are those of live sockets; \"loss-free\" is the highest rate, paced in steps of \
             20 us, of which nothing is lost in {} s; \">=\": nothing was lost flat out, the producer did not outrun the \
             worker, and how much more it would take is not known. The further tables are of the shard with {} live flows, the loss with \
             the worker on another CPU.",
            options.seed,
            seconds / 4.0,
            lab.flows,
        ),
        format!(
            "From CPU to CPU a cache line took {}: it bounds what one CPU can take from another, also with the bare ring.",
            distance::in_words(&distances_ns)
        ),
        format!(
            "Two loops that share nothing did {scaling:.2} times ({least:.2} to {most:.2}) as much on two CPUs as one does on \
             one, right before the runs with two rings: it bounds what two workers can do.",
        ),
        format!(
            "A busy thread on the worker's CPU, while the other CPU was busy, too, did not run for up to {:.2} ms in {seconds} \
             s: what comes in that time must find room in the ring, which bounds \"loss-free\".",
            longest_stall(seconds)?.as_secs_f64() * 1e3,
        ),
    ];
    Ok(Report { title: "saturate", table: rows(&main), more, notes })
}

/// One setting, and what each round found.
struct Series {
    lab: Lab,
    found: Vec<Round>,
}

/// A round.
struct Round {
    flat_out: Sample,
    loss_free_per_s: f64,
    /// Nothing was lost flat out: the producer did not outrun the worker, whose ceiling is not known.
    loss_free_flat_out: bool,
    /// How far the CPUs were apart right before.
    line_ns: f64,
    /// With two rings: what two CPUs did together of what one does, right before.
    scaling: Option<f64>,
}

impl Series {
    fn new(lab: Lab) -> Self {
        Self { lab, found: Vec::new() }
    }

    fn measure(&mut self, seconds: f64) -> Result<()> {
        let line_ns = distance::line_ns();
        let scaling = (self.lab.rings == 2).then(scaling::of_two_cpus);
        let flat_out = self.lab.measure(None, seconds)?;
        let loss_free_flat_out = flat_out.lost == 0;
        let loss_free_per_s = if loss_free_flat_out {
            flat_out.offered_per_s()
        } else {
            self.lab.loss_free_rate(flat_out.delivered_per_s(), seconds / 4.0)?
        };
        self.found.push(Round { flat_out, loss_free_per_s, loss_free_flat_out, line_ns, scaling });
        Ok(())
    }

    fn row(&self) -> Vec<Value> {
        let (lab, found) = (&self.lab, &self.found);
        let of = |figure: fn(&Round) -> f64| spread(found.iter().map(figure).collect());
        let delivered = of(|found| found.flat_out.delivered_per_s());
        let loss_free = of(|found| found.loss_free_per_s).map(|rate| {
            let flat_out = found.iter().any(|found| found.loss_free_per_s == rate && found.loss_free_flat_out);
            if flat_out { json!(format!(">= {}", human::count(rate as u64))) } else { json!(rate as u64) }
        });
        let mut row = vec![
            json!(format!("{:?}", lab.stage).to_lowercase()),
            json!(if lab.placement == Placement::Same { "the same CPU" } else { "another CPU" }),
            json!(lab.flows),
            json!(lab.ring_bytes / 1024),
            json!(lab.reader.name()),
            json!(if lab.stage == Stage::Drain { "the bare ring, with the agent's sleeps" } else { lab.wake.name() }),
            json!(lab.rings),
            json!(of(|found| found.flat_out.offered_per_s())[0] as u64),
        ];
        row.extend(delivered.map(|rate| json!(rate as u64)));
        row.push(json!(found.iter().map(|found| found.flat_out.lost).sum::<u64>()));
        row.extend(loss_free);
        row.push(round2(1e9 / delivered[0]));
        row
    }
}

/// Median, lowest and highest.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    [0.5, 0.0, 1.0].map(|share| quantile(&mut values, share))
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

const COLUMNS: [&str; 16] = [
    "stage",
    "worker on",
    "flows",
    "ring KiB",
    "reader",
    "worker is",
    "rings",
    "flat out: offered/s",
    "delivered/s",
    "lowest",
    "highest",
    "lost",
    "loss-free up to",
    "at worst",
    "at best",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_and_extremes() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), [2.0, 1.0, 3.0]);
    }
}
