//! In which order rows come: the largest figure first, names from a to z.

use serde::{Deserialize, Serialize};

/// Orders of processes, containers, pods, workloads and peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OwnerSort {
    /// Bytes of both directions.
    #[default]
    Bytes,
    /// Median round-trip time of the worse side.
    Rtt,
    /// Retransmitted segments.
    Retrans,
    /// Flows.
    Flows,
    /// Bytes per second of both directions, over the last ten seconds.
    Rate,
    /// Bytes sent.
    Sent,
    /// Bytes received.
    Received,
    /// Bytes sent per second.
    SentRate,
    /// Bytes received per second.
    ReceivedRate,
    /// Packets per second of both directions.
    PacketRate,
    /// New flows per second.
    FlowRate,
    /// Flows that are open now.
    Open,
    /// 99th percentile of the round-trip time of the worse side.
    RttP99,
    /// Name; of pairs, that of the initiator.
    Name,
    /// Of pairs, the name of the responder.
    Responder,
    /// Of pairs, the address that was asked for.
    Service,
    /// Process id.
    Pid,
    /// User.
    User,
    /// Where it lives: container, pod or unit of a process, pod or slice of a container, namespace of a pod.
    Place,
    /// Command line.
    Command,
    /// Image.
    Image,
    /// Running, or gone.
    State,
    /// Of workloads, their pods.
    Pods,
}

impl OwnerSort {
    /// From a to z, instead of the largest first.
    #[must_use]
    pub fn is_text(self) -> bool {
        use OwnerSort::{Command, Image, Name, Pid, Place, Responder, Service, State, User};
        matches!(self, Name | Responder | Service | Pid | User | Place | Command | Image | State)
    }
}

/// Orders of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SortBy {
    /// Bytes of both directions.
    #[default]
    Bytes,
    /// Round-trip time.
    Rtt,
    /// Retransmitted segments.
    Retrans,
    /// Bytes per second of both directions, since its last reports.
    Rate,
    /// The most recently active first.
    Active,
    /// The oldest first.
    Age,
    /// Bytes from the initiator.
    Sent,
    /// Bytes to the initiator.
    Received,
    /// Bytes from the initiator per second.
    SentRate,
    /// Bytes to the initiator per second.
    ReceivedRate,
    /// Packets per second of both directions.
    PacketRate,
    /// Name of the process; of the initiator, where it is on this host.
    Process,
    /// User of that process.
    User,
    /// Container, pod or unit of that process.
    Place,
    /// Address of the initiator.
    Initiator,
    /// Address of the responder.
    Responder,
    /// Port of the responder.
    Port,
    /// How it stands.
    State,
    /// Transport protocol.
    Protocol,
    /// Those that are open first; of groups, how many are.
    Open,
    /// Round-trip time; of groups, its 99th percentile.
    RttP99,
}

impl SortBy {
    /// The same of flows that are added up.
    #[must_use]
    pub fn of_groups(self) -> OwnerSort {
        match self {
            Self::Rtt => OwnerSort::Rtt,
            Self::Retrans => OwnerSort::Retrans,
            Self::Rate => OwnerSort::Rate,
            Self::Sent => OwnerSort::Sent,
            Self::Received => OwnerSort::Received,
            Self::SentRate => OwnerSort::SentRate,
            Self::ReceivedRate => OwnerSort::ReceivedRate,
            Self::PacketRate => OwnerSort::PacketRate,
            Self::Open => OwnerSort::Open,
            Self::RttP99 => OwnerSort::RttP99,
            Self::Bytes | Self::Active | Self::Age | Self::State | Self::Protocol => OwnerSort::Bytes,
            Self::Responder => OwnerSort::Responder,
            Self::Process | Self::User | Self::Place | Self::Initiator | Self::Port => OwnerSort::Name,
        }
    }
}

/// Orders of figures of DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DnsSort {
    /// Questions.
    #[default]
    Queries,
    /// Questions without an answer, or with one that does not help.
    Failures,
    /// Median time from question to answer.
    Latency,
    /// 99th percentile of that.
    LatencyP99,
    /// Answers.
    Answers,
    /// Answers that there is no such name.
    Nxdomain,
    /// Questions without an answer.
    Timeouts,
    /// Answers that did not fit.
    Truncated,
    /// Questions that were asked again before there was an answer.
    Retried,
    /// Name of the row.
    Name,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn the_wire_and_the_command_line_have_the_same_words() {
        let on_the_wire = |value: serde_json::Value| value.as_str().expect("a word").to_owned();
        for sort in SortBy::value_variants() {
            let word = sort.to_possible_value().expect("none is hidden").get_name().to_owned();
            assert_eq!(on_the_wire(serde_json::to_value(sort).expect("JSON")), word);
        }
        for sort in OwnerSort::value_variants() {
            let word = sort.to_possible_value().expect("none is hidden").get_name().to_owned();
            assert_eq!(on_the_wire(serde_json::to_value(sort).expect("JSON")), word);
        }
        for sort in DnsSort::value_variants() {
            let word = sort.to_possible_value().expect("none is hidden").get_name().to_owned();
            assert_eq!(on_the_wire(serde_json::to_value(sort).expect("JSON")), word);
        }
    }
}
