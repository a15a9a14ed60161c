//! An agent that needs no kernel: it answers what `ctl top` asks, in the agent's own words.

use serde_json::{Value, json};
use sockeye_ctl::protocol::{
    Answer, DnsBy, FlowsArguments, GroupBy, Outcome, Request, Subscription, Table, Unit, Update, VERSION,
};

/// What it says.
pub(super) struct Fake {
    pub(super) lost: u64,
    pub(super) flows: usize,
    /// The first flow is this one.
    pub(super) turn: usize,
    pub(super) hostile: bool,
    updates: u64,
}

impl Default for Fake {
    fn default() -> Self {
        Self { lost: 0, flows: 100, turn: 0, hostile: false, updates: 0 }
    }
}

fn table(name: &str, rows: &[Vec<(&str, Unit, Value)>]) -> Table {
    let empty = Vec::new();
    let first = rows.first().unwrap_or(&empty);
    let columns: Vec<_> = first.iter().map(|(name, unit, _)| (*name, *unit, "what it means")).collect();
    let mut table = Table::new(name, "What there is.", &columns);
    rows.iter().for_each(|row| table.push(row.iter().map(|(_, _, value)| value.clone())));
    table
}

impl Fake {
    pub(super) fn update(&mut self, subscription: &Subscription) -> Update {
        self.updates += 1;
        let answers = subscription.requests.iter().map(|request| {
            let mut answer = self.answer(request);
            if self.hostile {
                answer.tables.iter_mut().for_each(make_hostile);
            }
            Outcome { answer: Some(answer), error: None }
        });
        let answers = answers.collect();
        let Subscription { id, every_ms, .. } = *subscription;
        Update { version: VERSION, id, update: self.updates, skipped: 0, every_ms, answers }
    }

    fn answer(&self, request: &Request) -> Answer {
        match request {
            Request::Overview => self.overview(),
            Request::Flows(flows) => self.flows(flows),
            Request::Processes(_) => listed("processes", &|i| {
                let names = ["nginx", "postgres", "a-process-with-15"];
                let place = ["nginx.service", "data/db-0/server", "shop/cart-0/app"][i % 3];
                let own = [
                    ("process", Unit::Text, json!(names[i % 3])),
                    ("pid", Unit::Id, json!(1000 + i)),
                    ("user", Unit::Text, json!("www-data")),
                    ("uid", Unit::Id, json!(33)),
                    ("cmdline", Unit::Text, json!("/usr/sbin/program --with many --options=given")),
                    ("started", Unit::Seconds, json!(500)),
                    ("workload", Unit::Text, json!(place)),
                ];
                with_figures(&own, i)
            }),
            Request::Containers(_) => listed("containers", &|i| {
                let own = [
                    ("container", Unit::Text, json!(format!("server-{i}"))),
                    ("id", Unit::Text, json!(format!("{i:064x}"))),
                    ("image", Unit::Text, json!("registry.example/postgres:16")),
                    ("pod", Unit::Text, if i == 1 { Value::Null } else { json!("db-0") }),
                    ("slice", Unit::Text, json!("system.slice")),
                    ("cgroup", Unit::Text, json!("/a/b")),
                    ("state", Unit::Text, json!(if i == 2 { "gone" } else { "running" })),
                ];
                with_figures(&own, i)
            }),
            Request::Pods(_) => listed("pods", &|i| {
                let own = [
                    ("pod", Unit::Text, json!(format!("cart-{i}"))),
                    ("namespace", Unit::Text, json!("shop")),
                    ("uid", Unit::Text, json!(format!("uid-{i}"))),
                    ("state", Unit::Text, json!("running")),
                ];
                with_figures(&own, i)
            }),
            Request::Workloads(_) => listed("workloads", &|i| {
                let own = [
                    ("workload", Unit::Text, json!(format!("shop/Deployment/cart{i}"))),
                    ("kind", Unit::Text, json!("Deployment")),
                    ("pods", Unit::Count, json!(i + 1)),
                    ("state", Unit::Text, json!("running")),
                ];
                with_figures(&own, i)
            }),
            Request::Peers(_) => listed("peers", &|i| {
                let own = [
                    ("initiator", Unit::Text, json!("shop/Deployment/cart")),
                    ("responder", Unit::Text, json!(format!("10.20.{i}.0/24"))),
                    ("service", Unit::Text, if i == 0 { json!("10.96.0.80:80") } else { Value::Null }),
                    ("flows", Unit::Count, json!(120 + i)),
                ];
                with_figures(&own, i)
            }),
            Request::Ports => Answer { tables: vec![table("ports", &(0..5).map(port).collect::<Vec<_>>())] },
            Request::Dns(dns) => listed("dns", &|i| {
                let name = match dns.by {
                    DnsBy::Process => format!("curl[{}]", 4000 + i),
                    DnsBy::Container => format!("shop/cart-{i}/app"),
                    DnsBy::Server => format!("10.0.0.{}", 53 + i),
                    DnsBy::Name => {
                        ["downloads.example.net", "no.example.net", "a-name-of-a-host.example.org"][i].into()
                    }
                    DnsBy::Host => "host".into(),
                };
                question(&name, i)
            }),
            _ => self.stats(),
        }
    }

    fn overview(&self) -> Answer {
        let recent: Vec<_> = (0..60).map(|i| json!(i * i * 1000)).collect();
        let row = vec![
            ("host", Unit::Text, json!("web-1.example")),
            ("uptime", Unit::Seconds, json!(11_220)),
            ("cpu_time", Unit::Nanoseconds, json!(40_000_000_000u64 + self.updates * 4_000_000)),
            ("cpu", Unit::Percent, json!(0.36)),
            ("memory", Unit::Bytes, json!(45_200_000)),
            ("flows", Unit::Count, json!(1234)),
            ("flows_per_second", Unit::Count, json!(12.3)),
            ("out_per_second", Unit::Bytes, json!(1_230_000)),
            ("in_per_second", Unit::Bytes, json!(345_000)),
            ("local_per_second", Unit::Bytes, json!(1000)),
            ("rtt_p50", Unit::Microseconds, json!(350)),
            ("rtt_p99", Unit::Microseconds, json!(20_100)),
            ("history_out", Unit::Bytes, Value::Array(recent.clone())),
            ("history_in", Unit::Bytes, Value::Array(recent.clone())),
            ("history_local", Unit::Bytes, Value::Array(recent)),
        ];
        let verdict = vec![("verdict", Unit::Text, json!("all is well")), ("lost", Unit::Count, json!(self.lost))];
        let loss = |reason: &str, weight: &str, count: u64| {
            vec![
                ("reason", Unit::Text, json!(reason)),
                ("count", Unit::Count, json!(count)),
                ("weight", Unit::Text, json!(weight)),
            ]
        };
        let mut losses = vec![loss("args_unreadable", "detail", 3)];
        if self.lost > 0 {
            losses.push(loss("flow_table_full", "lost", self.lost));
        }
        let tables = vec![table("overview", &[row]), table("verdict", &[verdict]), table("losses", &losses)];
        Answer { tables }
    }

    fn stats(&self) -> Answer {
        let verdict = vec![(
            "verdict",
            Unit::Text,
            json!("nothing lost, CPU 0.4 %, 45.2 MB, 1234 flows, no exports, 9 threads well"),
        )];
        let loss = |reason: &str, count: u64| {
            vec![
                ("reason", Unit::Text, json!(reason)),
                ("count", Unit::Count, json!(count)),
                ("effect", Unit::Text, json!("it is so")),
            ]
        };
        let losses = [loss("ring_full_close", self.lost), loss("args_unreadable", 3)];
        let privilege = |what: &str, threads: u64, names: &[&str]| {
            vec![
                ("privilege", Unit::Text, json!(what)),
                ("threads", Unit::Count, json!(threads)),
                ("of", Unit::Count, json!(9)),
                ("names", Unit::Text, json!(names)),
            ]
        };
        let privileges = [
            privilege("user sockeye", 9, &["all"]),
            privilege("no_new_privs", 9, &["all"]),
            privilege("landlock", 3, &["sockeye-w0", "sockeye-ctl", "sockeye-udp"]),
            privilege("CAP_SYS_PTRACE", 9, &["all"]),
            privilege("CAP_SYS_ADMIN", 1, &["sockeye-control"]),
        ];
        let tables = [table("verdict", &[verdict]), table("losses", &losses), table("privileges", &privileges)];
        Answer { tables: tables.into() }
    }

    fn flows(&self, wanted: &FlowsArguments) -> Answer {
        if wanted.pairs {
            return listed("pairs", &|i| {
                let own = [
                    ("initiator", Unit::Text, json!("shop/Deployment/cart")),
                    ("responder", Unit::Text, json!(format!("10.20.{i}.0/24"))),
                ];
                with_figures(&own, i)
            });
        }
        if wanted.by.is_some() {
            return listed("groups", &|i| {
                let name = match wanted.by {
                    Some(GroupBy::Process) => "nginx[12]",
                    Some(GroupBy::Network) => "10.20.0.0/24",
                    Some(GroupBy::Service) => "10.96.0.80:80",
                    _ => "shop/cart-0",
                };
                with_figures(&[("name", Unit::Text, json!(name))], i)
            });
        }
        let numbers = (0..self.flows).map(|i| i + self.turn);
        let rows: Vec<_> = numbers.map(flow).filter(|row| wanted.id.is_empty() || wanted.id[0] == row[0].2).collect();
        let rows: Vec<_> = rows.into_iter().take(wanted.limit).collect();
        Answer { tables: vec![summary(self.flows, rows.len()), table("flows", &rows)] }
    }
}

fn summary(matching: usize, shown: usize) -> Table {
    table("summary", &[vec![("matching", Unit::Count, json!(matching)), ("shown", Unit::Count, json!(shown))]])
}

fn listed(name: &str, row: &dyn Fn(usize) -> Vec<(&'static str, Unit, Value)>) -> Answer {
    Answer { tables: vec![summary(3, 3), table(name, &(0..3).map(row).collect::<Vec<_>>())] }
}

fn with_figures(own: &[(&'static str, Unit, Value)], i: usize) -> Vec<(&'static str, Unit, Value)> {
    let recent: Vec<_> = (0..24).map(|part| json!(part * 100 * (i + 1))).collect();
    let mut row = own.to_vec();
    row.extend([
        ("open", Unit::Count, json!(7 * i)),
        ("flows_per_second", Unit::Count, json!(0.5 * i as f64)),
        ("sent", Unit::Bytes, json!(1_000_000 * i)),
        ("received", Unit::Bytes, json!(9_876_543)),
        ("sent_per_second", Unit::Bytes, json!(12_300 / (i + 1))),
        ("received_per_second", Unit::Bytes, json!(999_000 / (i + 1))),
        ("retrans", Unit::Count, json!(i)),
        ("rtt_out_p50", Unit::Microseconds, json!(350)),
        ("rtt_out_p99", Unit::Microseconds, json!(20_000)),
        ("rtt_in_p50", Unit::Microseconds, Value::Null),
        ("rtt_in_p99", Unit::Microseconds, Value::Null),
        ("history_sent", Unit::Bytes, Value::Array(recent.clone())),
        ("history_received", Unit::Bytes, Value::Array(recent)),
    ]);
    row
}

fn question(name: &str, i: usize) -> Vec<(&'static str, Unit, Value)> {
    let count = |name, number: usize| (name, Unit::Count, json!(number));
    vec![
        ("name", Unit::Text, json!(name)),
        count("queries", 123_456 / (i + 1)),
        count("answers", 120_000 / (i + 1)),
        count("noerror", 119_000 / (i + 1)),
        count("nxdomain", 990 * i),
        count("servfail", 7 * i),
        count("refused", 3),
        count("other", 0),
        count("truncated", 12 * i),
        count("retried", 40 * i),
        count("timeouts", 31 * i),
        ("latency_p50", Unit::Microseconds, json!(220 * (i + 1))),
        ("latency_p90", Unit::Microseconds, json!(1200)),
        ("latency_p99", Unit::Microseconds, if i == 2 { Value::Null } else { json!(20_100) }),
    ]
}

fn port(i: usize) -> Vec<(&'static str, Unit, Value)> {
    vec![
        ("protocol", Unit::Text, json!(if i == 4 { "udp" } else { "tcp" })),
        ("address", Unit::Text, json!(if i.is_multiple_of(2) { "0.0.0.0" } else { "::" })),
        ("port", Unit::Id, json!([443, 22, 80, 5432, 53][i])),
        ("process", Unit::Text, json!(["nginx", "sshd", "nginx", "postgres", "named"][i])),
        ("pid", Unit::Id, json!(100 + i)),
        ("user", Unit::Text, json!("root")),
        ("package", Unit::Text, json!("package")),
        ("workload", Unit::Text, json!("some.service")),
        ("netns", Unit::Id, json!(4_026_531_840u32)),
    ]
}

fn flow(i: usize) -> Vec<(&'static str, Unit, Value)> {
    let state = ["open", "open", "closed", "refused", "connecting"][i % 5];
    let local = i.is_multiple_of(3);
    let name = match i % 10 {
        1 => Some(("downloads.example.net", "process")),
        4 => Some(("www.example.org or downloads.example.net", "host")),
        _ => None,
    };
    let responder = |value: Value| if local { value } else { Value::Null };
    vec![
        ("id", Unit::Text, json!(format!("{:016x}", 0xf0 + i))),
        ("protocol", Unit::Text, json!(if i % 4 == 3 { "udp" } else { "tcp" })),
        ("initiator", Unit::Text, json!(format!("192.168.100.{}:{}", i % 250, 40_000 + i))),
        (
            "responder",
            Unit::Text,
            json!(if i.is_multiple_of(2) { "10.96.0.80:443" } else { "[2001:db8::1234:5678]:443" }),
        ),
        ("translated_initiator", Unit::Text, json!("10.88.0.1:1234")),
        ("translated_responder", Unit::Text, json!("10.88.0.7:8443")),
        ("responder_name", Unit::Text, name.map_or(Value::Null, |(name, _)| json!(name))),
        ("name_source", Unit::Text, name.map_or(Value::Null, |(_, source)| json!(source))),
        ("direction", Unit::Text, json!(if local { "local" } else { "out" })),
        ("state", Unit::Text, json!(state)),
        ("initiator_process", Unit::Text, json!("curl")),
        ("initiator_pid", Unit::Id, json!(4000 + i)),
        ("initiator_user", Unit::Text, json!("alice")),
        ("initiator_uid", Unit::Id, json!(1000)),
        ("initiator_cmdline", Unit::Text, json!("curl -s https://service.example/path")),
        ("initiator_workload", Unit::Text, json!("shop/cart-0/app")),
        ("initiator_exe", Unit::Text, json!("/usr/bin/curl")),
        ("initiator_package", Unit::Text, json!("curl 7.88")),
        ("initiator_parents", Unit::Text, json!("bash[3999] < sshd[900] < systemd[1]")),
        ("initiator_container", Unit::Text, json!("app")),
        ("initiator_image", Unit::Text, json!("registry.example/cart:3")),
        ("initiator_pod", Unit::Text, json!("cart-0")),
        ("initiator_namespace", Unit::Text, json!("shop")),
        ("initiator_workload_name", Unit::Text, json!("shop/Deployment/cart")),
        ("initiator_labels", Unit::Text, json!(["app=cart", "tier=web"])),
        ("responder_process", Unit::Text, responder(json!("nginx"))),
        ("responder_pid", Unit::Id, responder(json!(22))),
        ("responder_user", Unit::Text, responder(json!("www-data"))),
        ("responder_parents", Unit::Text, responder(json!("nginx[21] < systemd[1]"))),
        ("responder_unit", Unit::Text, responder(json!("nginx.service"))),
        ("responder_workload", Unit::Text, responder(json!("nginx.service"))),
        ("sent", Unit::Bytes, json!(78 * (i + 1))),
        ("received", Unit::Bytes, json!(943_000 / (i + 1))),
        ("packets_sent", Unit::Count, json!(12)),
        ("packets_received", Unit::Count, json!(640)),
        ("sent_per_second", Unit::Bytes, json!(if i < 5 { 78 } else { 0 })),
        ("received_per_second", Unit::Bytes, json!(if i < 5 { 94_300 / (i + 1) } else { 0 })),
        ("packets_per_second", Unit::Count, json!(65.2)),
        ("retrans", Unit::Count, json!(i % 7)),
        ("rtt", Unit::Microseconds, json!(350 + 10 * i)),
        ("rtt_var", Unit::Microseconds, json!(20)),
        ("age", Unit::Seconds, json!(95 + i)),
        ("quiet", Unit::Seconds, json!(i)),
        (
            "forgotten_in",
            Unit::Seconds,
            if matches!(state, "closed" | "refused") { json!(299 - i) } else { Value::Null },
        ),
        ("before_agent", Unit::Text, json!("no")),
    ]
}

/// Every text becomes one that would do something to a terminal.
fn make_hostile(table: &mut Table) {
    const HOSTILE: &str = "\u{1b}]52;c;AAAA\u{7}\u{202e}\r\n\u{1b}[2J";
    for column in &mut table.columns {
        column.help += HOSTILE;
    }
    for value in table.rows.iter_mut().flatten() {
        if let Value::String(text) = value {
            text.push_str(HOSTILE);
        }
    }
}
