//! What only collectors ask of a TCP flow: its round-trip samples up to the first report, windows, congestion control.

use sockeye_bpf::records::CONGESTION_LEN;

use crate::model::flow::{Side, TcpObservation};
use crate::model::rtt::{RttStats, RttSummary};

/// Samples that are kept as they are; a close brings as many at most.
const FEW: usize = 8;

/// Of one flow, by side. Lies in the flow itself: every TCP flow has it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Details {
    /// The largest window that each side has offered, bytes.
    pub(super) window_max: [u16; 2],
    /// Beginning of the name of each side's congestion control.
    pub(super) congestion: [[u8; CONGESTION_LEN]; 2],
}

impl Details {
    /// Takes what one end sees.
    pub(super) fn observe(&mut self, side: Side, o: &TcpObservation) {
        let [local, remote] = o.windows;
        for (side, window) in [(side, local), (side.other(), remote)] {
            let max = &mut self.window_max[side as usize];
            *max = window.max(*max);
        }
        self.congestion[side as usize] = o.congestion;
    }

    /// Takes what is known of the same flow from elsewhere.
    pub(super) fn add(&mut self, other: &Self) {
        for i in 0..2 {
            self.window_max[i] = self.window_max[i].max(other.window_max[i]);
            if self.congestion[i] == [0; _] {
                self.congestion[i] = other.congestion[i];
            }
        }
    }

    pub(super) fn reverse(&mut self) {
        self.window_max.reverse();
        self.congestion.reverse();
    }
}

/// Round-trip samples until the first report of their flow: collectors take such figures from the first one only, so
/// later ones would be memory for nobody.
#[derive(Debug, Clone)]
pub(super) enum FlowRtt {
    Few { count: u8, samples_us: [u32; FEW] },
    Many(Box<(u32, RttStats)>),
    Reported(Option<RttSummary>),
}

impl Default for FlowRtt {
    fn default() -> Self {
        Self::Few { count: 0, samples_us: [0; FEW] }
    }
}

impl FlowRtt {
    pub(super) fn record(&mut self, new_us: &[u32]) {
        match self {
            Self::Few { count, samples_us } => {
                let held = usize::from(*count);
                if let Some(room) = samples_us.get_mut(held..held + new_us.len()) {
                    room.copy_from_slice(new_us);
                    *count += new_us.len() as u8;
                } else {
                    let mut many = Self::Many(Box::new((u32::MAX, RttStats::default())));
                    many.record(&samples_us[..held]);
                    many.record(new_us);
                    *self = many;
                }
            }
            Self::Many(many) => {
                many.0 = new_us.iter().fold(many.0, |min, sample| min.min(*sample));
                many.1.record(new_us);
            }
            Self::Reported(_) => {}
        }
    }

    /// The figures, which stay as they are from now on.
    pub(super) fn settle(&mut self) -> Option<RttSummary> {
        let summary = match self {
            Self::Reported(summary) => return *summary,
            Self::Few { count, samples_us } => few(&samples_us[..usize::from(*count)]),
            Self::Many(many) => {
                let (min_us, stats) = (many.0, &many.1);
                let p99_us = stats.quantile_us(0.99) as u32;
                Some(RttSummary {
                    samples: u32::try_from(stats.samples()).unwrap_or(u32::MAX),
                    min_us,
                    mean_us: stats.mean_us().round() as u32,
                    p99_us: p99_us.max(min_us),
                })
            }
        };
        *self = Self::Reported(summary);
        summary
    }
}

/// Of less than a hundred samples none lies between the 99 % quantile and the greatest.
fn few(samples_us: &[u32]) -> Option<RttSummary> {
    let sum: u64 = samples_us.iter().map(|sample| u64::from(*sample)).sum();
    let samples = samples_us.len() as u64;
    Some(RttSummary {
        samples: samples as u32,
        min_us: *samples_us.iter().min()?,
        mean_us: ((sum + samples / 2) / samples) as u32,
        p99_us: *samples_us.iter().max()?,
    })
}

/// Congestion controls of the kernel (net/ipv4/tcp_*.c and their `tcp_congestion_ops.name`).
const CONGESTION: [&str; 17] = [
    "bbr",
    "bic",
    "cdg",
    "cubic",
    "dctcp",
    "highspeed",
    "htcp",
    "hybla",
    "illinois",
    "lp",
    "nv",
    "reno",
    "scalable",
    "vegas",
    "veno",
    "westwood",
    "yeah",
];

/// The one name that begins so.
pub(super) fn congestion_name(begin: [u8; CONGESTION_LEN]) -> Option<&'static str> {
    let begin = begin.split(|b| *b == 0).next().unwrap_or_default();
    let mut found = CONGESTION.iter().filter(|name| !begin.is_empty() && name.as_bytes().starts_with(begin));
    found.next().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_congestion_control_is_known_by_its_beginning() {
        for name in CONGESTION {
            let mut begin = [0; CONGESTION_LEN];
            begin.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
            assert_eq!(congestion_name(begin), Some(name));
        }
        assert_eq!((congestion_name([0; _]), congestion_name(*b"xyz")), (None, None));
    }

    proptest! {
        #[test]
        fn a_summary_is_that_of_the_samples(batches in prop::collection::vec(prop::collection::vec(1u32..60_000_000, 1..30), 0..20)) {
            let mut rtt = FlowRtt::default();
            batches.iter().for_each(|batch| rtt.record(batch));
            let mut all = batches.concat();
            all.sort_unstable();
            let summary = rtt.settle();
            rtt.record(&[1]);
            prop_assert_eq!(rtt.settle(), summary, "what was told stays");
            let Some(summary) = summary else { prop_assert!(all.is_empty()); return Ok(()) };
            prop_assert_eq!((summary.samples, summary.min_us), (all.len() as u32, all[0]));
            let mean = all.iter().map(|s| f64::from(*s)).sum::<f64>() / all.len() as f64;
            prop_assert!((f64::from(summary.mean_us) - mean).abs() <= 1.0);
            let p99 = f64::from(all[(all.len() * 99).div_ceil(100) - 1]);
            prop_assert!((f64::from(summary.p99_us) - p99).abs() <= p99 * 0.07 + 1.0, "{summary:?} {p99}");
        }
    }
}
