//! Every metric that is served: its name, kind, labels and meaning. The reference page is made of this.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows while the agent lives.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counters of how many were at most so large.
    Histogram,
    /// Always 1: its labels tell.
    Info,
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metric {
    /// Its name without unit and without what its kind adds.
    pub(super) stem: &'static str,
    /// Seconds, bytes or ratio; empty = a number of things.
    pub(super) unit: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

/// Name, unit, labels, meaning.
pub(super) const fn counter(
    stem: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { stem, unit, kind: Kind::Counter, labels, help }
}

/// The same.
pub(super) const fn gauge(
    stem: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { stem, unit, kind: Kind::Gauge, labels, help }
}

/// Labels of an end of a flow.
const END: &[&str] = &["process", "container", "pod", "namespace", "workload", "role"];

pub(super) const OPENED: Metric =
    counter("sockeye_flows_opened", "", END, "Flows that were reported for the first time");
pub(super) const ENDED: Metric = counter(
    "sockeye_flows_ended",
    "",
    &["process", "container", "pod", "namespace", "workload", "role", "state"],
    "Flows that have ended, by how; a state that no flow of these labels has had is left out",
);
pub(super) const BYTES: Metric = counter(
    "sockeye_traffic",
    "bytes",
    &["process", "container", "pod", "namespace", "workload", "role", "direction"],
    "Payload of TCP and UDP",
);
pub(super) const PACKETS: Metric = counter(
    "sockeye_traffic_packets",
    "",
    &["process", "container", "pod", "namespace", "workload", "role", "direction"],
    "Segments and datagrams",
);
pub(super) const RETRANS: Metric =
    counter("sockeye_retransmissions", "", END, "Segments that this end sent again; they are among its packets");
pub(super) const RESETS: Metric = counter(
    "sockeye_resets",
    "",
    &["process", "container", "pod", "namespace", "workload", "role", "direction"],
    "Connections that were torn down by a reset, by whether this end sent it, or the other one, or nobody knows",
);
pub(super) const FAILED: Metric = counter(
    "sockeye_connections_failed",
    "",
    &["process", "container", "pod", "namespace", "workload", "role", "reason"],
    "Connections that were never established, by why; those that the program itself gave up are flows that ended as aborted",
);
pub(super) const RTT: Metric = Metric {
    stem: "sockeye_rtt",
    unit: "seconds",
    kind: Kind::Histogram,
    labels: &["namespace", "workload", "role"],
    help: "Round-trip times of TCP, each sample that the kernel took; sum and count are exact, a bucket's bound is to 6 %",
};
/// Labels of who has asked which DNS server.
const DNS: &[&str] = &["process", "container", "pod", "namespace", "workload", "server"];

pub(super) const DNS_QUERIES: Metric =
    counter("sockeye_dns_queries", "", DNS, "Questions to DNS servers; one that is asked again is another one");
pub(super) const DNS_ANSWERS: Metric = counter(
    "sockeye_dns_answers",
    "",
    &["process", "container", "pod", "namespace", "workload", "server", "rcode"],
    "Answers of DNS servers, by their verdict; one that nobody was given is left out",
);
pub(super) const DNS_TRUNCATED: Metric =
    counter("sockeye_dns_truncated", "", DNS, "Answers that did not fit, and were asked for again over TCP");
pub(super) const DNS_RETRIED: Metric =
    counter("sockeye_dns_retried", "", DNS, "Questions that were asked again before there was an answer");
pub(super) const DNS_TIMEOUTS: Metric =
    counter("sockeye_dns_timeouts", "", DNS, "Questions without an answer within 5 s");
pub(super) const DNS_LATENCY: Metric = Metric {
    stem: "sockeye_dns_latency",
    unit: "seconds",
    kind: Kind::Histogram,
    labels: DNS,
    help: "From a question to its answer, as the asker's socket saw both",
};
pub(super) const NAME_OPENED: Metric = counter(
    "sockeye_name_flows_opened",
    "",
    &["name"],
    "Flows to what is called so, reported for the first time; those of which the name is not known for sure are in none",
);
pub(super) const NAME_BYTES: Metric = counter(
    "sockeye_name_traffic",
    "bytes",
    &["name", "direction"],
    "Payload to and from what is called so; direction: as this host sees it",
);

pub(super) const REPORTED_BYTES: Metric = counter(
    "sockeye_reported",
    "bytes",
    &["sender"],
    "Payload of all flows, each flow once, whether one or both of its ends are on this host",
);
pub(super) const REPORTED_PACKETS: Metric =
    counter("sockeye_reported_packets", "", &["sender"], "Segments and datagrams, likewise");
pub(super) const LABEL_SETS: Metric = gauge(
    "sockeye_label_sets",
    "",
    &["of", "state"],
    "Label sets of flows (of: ends), of round-trip times (rtt), of DNS (dns) and names of far ends (names): shown, hidden because they are quiet, forgotten",
);
pub(super) const LABEL_SETS_MAX: Metric = gauge(
    "sockeye_label_sets_limit",
    "",
    &["of"],
    "Most that are shown, as --prometheus-series-max and --prometheus-names-max say",
);
pub(super) const FOLDED: Metric = counter(
    "sockeye_label_sets_folded",
    "",
    &["of"],
    "How often figures were added to the labels \"other\" because theirs had no place",
);
pub(super) const TABLE_ENTRIES: Metric =
    gauge("sockeye_table_entries", "", &["table"], "Entries in the agent's tables");
pub(super) const TABLE_LIMIT: Metric = gauge("sockeye_table_entries_limit", "", &["table"], "Most that a table takes");
pub(super) const UNNAMED: Metric =
    gauge("sockeye_containers_unnamed", "", &[], "Containers of which only the id is known by now");
pub(super) const THREAD_CPU: Metric =
    counter("sockeye_thread_cpu", "seconds", &["thread"], "CPU time of the agent's threads, by their names");
pub(super) const THREAD_QUIET: Metric = gauge(
    "sockeye_thread_quiet",
    "seconds",
    &["thread"],
    "Since a thread last began or finished something; of threads of one name the longest",
);
pub(super) const THREAD_WORKING: Metric =
    gauge("sockeye_thread_working", "", &["thread"], "Threads that have something to do, by their names");
pub(super) const THREAD_RESTARTS: Metric =
    counter("sockeye_thread_restarts", "", &["thread"], "How often a thread has died and was started again");
pub(super) const DATA_PATH: Metric =
    gauge("sockeye_data_path_healthy", "", &[], "1 while all threads of the data path make progress, as /healthz says");
pub(super) const PORTION: Metric = gauge(
    "sockeye_scrape_control_longest",
    "seconds",
    &[],
    "Longest time that the control thread was away from its other work for a scrape",
);
pub(super) const REQUESTS: Metric =
    counter("sockeye_http_requests", "", &["code"], "Requests of scrapers and probes, by the answer");
pub(super) const CLIENTS_CUT: Metric =
    counter("sockeye_http_clients_cut", "", &[], "Clients that were cut off: too slow, or one too many");
pub(super) const BPF_STATS: Metric = gauge(
    "sockeye_bpf_stats_enabled",
    "",
    &[],
    "1 while the kernel counts runs of BPF programs (kernel.bpf_stats_enabled); ctl stats turns it on for a while, too",
);
pub(super) const BUILD: Metric =
    Metric { stem: "sockeye_build", unit: "", kind: Kind::Info, labels: &["version"], help: "The agent's version" };
pub(super) const PROCESS_CPU: Metric = counter("process_cpu", "seconds", &[], "CPU time of the whole agent");
pub(super) const PROCESS_MEMORY: Metric =
    gauge("process_resident_memory", "bytes", &[], "Resident memory of the agent");
pub(super) const PROCESS_START: Metric =
    gauge("process_start_time", "seconds", &[], "When the agent was started, since the epoch");
pub(super) const PROCESS_FDS: Metric = gauge("process_open_fds", "", &[], "Files that the agent has open");
pub(super) const PROCESS_FDS_MAX: Metric = gauge("process_max_fds", "", &[], "Most files that it may open");
