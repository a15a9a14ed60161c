//! `ctl peers`: who talks to whom.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use sockeye_ctl::protocol::{Answer, GroupBy, OwnerSort, PeersArguments, Table};
use sockeye_ctl::rows;

use super::owners::{Recent, quantiles};
use super::pass::rows_at_most;
use super::who::{group_of_talker, named_responder};
use super::{round2, summary};
use crate::flows::conversations::{Conversations, Figures, RATES};
use crate::model::rate::Window;

rows! {
    /// Who talks to whom, since the agent was started. Who is not on this host is shown by its network.
    struct Peer: "peers" {
        /// who connected, or sent first; missing: it is on this host, and belongs to none
        initiator: Text = Option<String>,
        /// who answered, likewise
        responder: Text = Option<String>,
        /// address that the initiator asked for, where something else has answered
        service: Text = Option<String>,
        /// flows
        flows: Count = u64,
        /// payload from the initiator
        sent: Bytes = u64,
        /// payload to the initiator
        received: Bytes = u64,
        /// segments and datagrams from the initiator
        packets_sent: Count = u64,
        /// segments and datagrams to the initiator
        packets_received: Count = u64,
        /// segments sent again by those of both that are on this host
        retrans: Count = u64,
        /// payload from the initiator per second, over the last ten seconds
        sent_per_second: Bytes = u64,
        /// payload to the initiator per second, over the last ten seconds
        received_per_second: Bytes = u64,
        /// packets of both directions per second, over the last ten seconds
        packets_per_second: Count = f64,
        /// new flows per second, over the last ten seconds
        flows_per_second: Count = f64,
        /// smoothed round-trip time that the initiator has measured, one of each report: half are shorter
        rtt_out_p50: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        rtt_out_p99: Microseconds = Option<u64>,
        /// the same as the responder has measured: half are shorter
        rtt_in_p50: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        rtt_in_p99: Microseconds = Option<u64>,
        /// payload from the initiator per second in each 5 s of the last minutes, the oldest first, where that was asked for
        history_sent: Bytes = Option<Vec<u64>>,
        /// payload to the initiator per second, likewise
        history_received: Bytes = Option<Vec<u64>>,
        /// new flows per second, likewise
        history_flows: Count = Option<Vec<f64>>,
    }
}

/// Initiator, responder, service.
type Pair = (Option<String>, Option<String>, Option<String>);

/// Pairs of what both sides belong to.
#[must_use]
pub fn peers(conversations: &Conversations, window: Window, a: &PeersArguments, now_ns: u64) -> Answer {
    let mut pairs: BTreeMap<Pair, Figures> = BTreeMap::new();
    for pair in conversations.iter() {
        let [initiator, mut responder] = pair.talkers.each_ref().map(|talker| group_of_talker(&a.by, talker));
        responder = named_responder(&a.by, pair.name.as_deref()).or(responder);
        let is_named = |name: &Option<String>, wanted: &str| name.as_ref().is_some_and(|name| name.contains(wanted));
        let is_wanted =
            a.name.as_deref().is_none_or(|wanted| is_named(&initiator, wanted) || is_named(&responder, wanted));
        if is_wanted {
            let service = pair.service.filter(|_| a.by != GroupBy::Host).map(|endpoint| endpoint.to_string());
            pairs.entry((initiator, responder, service)).or_default().add(&pair.figures);
        }
    }
    let others = conversations.others();
    if others.flows > 0 && a.name.is_none() {
        let name = Some("others, quiet for long".to_owned());
        pairs.entry((name.clone(), name, None)).or_default().add(others);
    }
    let mut pairs: Vec<(Pair, Figures)> = pairs.into_iter().collect();
    let matching = pairs.len();
    // By the initiator's name they are in order already.
    match a.sort {
        OwnerSort::Responder => pairs.sort_by(|(one, _), (other, _)| one.1.cmp(&other.1)),
        OwnerSort::Service => pairs.sort_by(|(one, _), (other, _)| one.2.cmp(&other.2)),
        sort if sort.is_text() => {}
        _ => pairs.sort_by_key(|(_, figures)| Reverse(sort_key(figures, a.sort, window, now_ns))),
    }
    if a.reverse {
        pairs.reverse();
    }
    pairs.truncate(rows_at_most(a.limit));
    let summary = summary(matching, pairs.len());
    let recent = Recent { parts: a.history, window, now_ns };
    let rows = pairs.into_iter().map(|(pair, figures)| row(pair, &figures, recent));
    Answer { tables: vec![summary, Table::of(rows)] }
}

fn sort_key(figures: &Figures, sort: OwnerSort, window: Window, now_ns: u64) -> u64 {
    let rtt = |quantile| figures.rtt.iter().flatten().map(|rtt| rtt.quantile_us(quantile)).max().unwrap_or(0);
    let rate = |of: fn([f64; RATES]) -> f64| (1000.0 * of(figures.rates.per_second(window, now_ns))) as u64;
    match sort {
        OwnerSort::Bytes => figures.bytes.iter().sum(),
        OwnerSort::Sent => figures.bytes[0],
        OwnerSort::Received => figures.bytes[1],
        // Which of them are open, nobody counts.
        OwnerSort::Flows | OwnerSort::Open => figures.flows,
        OwnerSort::Retrans => figures.retrans.iter().sum(),
        OwnerSort::Rtt => rtt(0.5),
        OwnerSort::RttP99 => rtt(0.99),
        OwnerSort::Rate => rate(|[sent, received, ..]| sent + received),
        OwnerSort::SentRate => rate(|rates| rates[0]),
        OwnerSort::ReceivedRate => rate(|rates| rates[1]),
        OwnerSort::PacketRate => rate(|rates| rates[2]),
        OwnerSort::FlowRate => rate(|rates| rates[3]),
        _ => 0,
    }
}

fn row((initiator, responder, service): Pair, figures: &Figures, recent: Recent) -> Peer {
    let (history_sent, history_received, history_flows) = recent.of(figures.history.as_deref());
    let [rtt_out, rtt_in] = figures.rtt.each_ref().map(Option::as_deref);
    let [rtt_out_p50, _, rtt_out_p99] = quantiles(rtt_out);
    let [rtt_in_p50, _, rtt_in_p99] = quantiles(rtt_in);
    let [sent, received, packets, flows] = figures.rates.per_second(recent.window, recent.now_ns);
    Peer {
        initiator,
        responder,
        service,
        flows: figures.flows,
        sent: figures.bytes[0],
        received: figures.bytes[1],
        packets_sent: figures.packets[0],
        packets_received: figures.packets[1],
        retrans: figures.retrans.iter().sum(),
        sent_per_second: sent as u64,
        received_per_second: received as u64,
        packets_per_second: round2(packets),
        flows_per_second: round2(flows),
        rtt_out_p50,
        rtt_out_p99,
        rtt_in_p50,
        rtt_in_p99,
        history_sent,
        history_received,
        history_flows,
    }
}
