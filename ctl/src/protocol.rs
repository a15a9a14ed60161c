//! What goes over the control socket.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

pub use crate::arguments::{
    Direction, DnsArguments, DnsBy, DnsSort, FlowsArguments, GroupBy, Network, OwnerSort, OwnersArguments, Pair,
    PeersArguments, Protocol, RttArguments, SortBy, keep,
};
use crate::subscription::{EVERY_MS, REQUESTS_MAX};
pub use crate::subscription::{Outcome, Subscription, Update};

/// Version of the protocol. Agent and client must agree on it.
pub const VERSION: u32 = 2;
/// Longest request line, bytes.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// All figures about the agent.
    Stats,
    /// The most important ones: they cost next to nothing.
    Overview,
    /// Answers again and again.
    Subscribe(Subscription),
    /// The flows of the host.
    Flows(Box<FlowsArguments>),
    /// Processes with flows.
    Processes(OwnersArguments),
    /// Containers with flows, and services.
    Containers(OwnersArguments),
    /// Pods with flows.
    Pods(OwnersArguments),
    /// What containers are a part of, and services.
    Workloads(OwnersArguments),
    /// Who talks to whom.
    Peers(PeersArguments),
    /// Sockets that listen.
    Ports,
    /// Distributions of round-trip times.
    Rtt(RttArguments),
    /// Questions to DNS servers.
    Dns(DnsArguments),
    /// What is configured.
    Config,
    /// Read the configuration again.
    Reload,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Not a JSON object of the expected shape.
    #[error("the request is not understood: {0}")]
    Malformed(String),
    /// Another version of the protocol.
    #[error(
        "the client speaks version {client} of the control protocol and this agent version {VERSION}: use the ctl that was installed with the agent"
    )]
    Version {
        /// What the client said.
        client: u32,
    },
    /// No such request.
    #[error(
        "there is no request {0:?}: stats, overview, flows, processes, containers, pods, workloads, peers, ports, rtt, dns, config, reload and subscribe are known"
    )]
    Unknown(String),
    /// The arguments do not fit the request.
    #[error("the arguments of {request} are not understood: {why}")]
    Arguments {
        /// Which request.
        request: String,
        /// What is wrong.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u32,
    request: String,
    #[serde(default)]
    arguments: Value,
}

impl Request {
    /// Reads a request line.
    ///
    /// # Errors
    /// One sentence for the client.
    pub fn parse(line: &[u8]) -> Result<Self, RequestError> {
        // The version first: another version may have another shape.
        let value: Value = serde_json::from_slice(line).map_err(|err| RequestError::Malformed(err.to_string()))?;
        // serde reads an array as well, in which the version has no name.
        if !value.is_object() {
            return Err(RequestError::Malformed("it is no object".into()));
        }
        if let Some(client) = value.get("version").and_then(Value::as_u64)
            && client != u64::from(VERSION)
        {
            return Err(RequestError::Version { client: u32::try_from(client).unwrap_or(u32::MAX) });
        }
        let envelope: Envelope =
            serde_json::from_value(value).map_err(|err| RequestError::Malformed(err.to_string()))?;
        let arguments = Arguments { request: &envelope.request, value: envelope.arguments };
        if envelope.request == "subscribe" { arguments.subscription() } else { Self::read(&arguments) }
    }

    /// Any but a subscription.
    fn read(arguments: &Arguments<'_>) -> Result<Self, RequestError> {
        Ok(match arguments.request {
            "stats" => arguments.none(Self::Stats)?,
            "overview" => arguments.none(Self::Overview)?,
            "ports" => arguments.none(Self::Ports)?,
            "config" => arguments.none(Self::Config)?,
            "reload" => arguments.none(Self::Reload)?,
            "flows" => Self::Flows(Box::new(arguments.read()?)),
            "processes" => Self::Processes(arguments.read()?),
            "containers" => Self::Containers(arguments.read()?),
            "pods" => Self::Pods(arguments.read()?),
            "workloads" => Self::Workloads(arguments.read()?),
            "peers" => Self::Peers(arguments.read()?),
            "rtt" => Self::Rtt(arguments.read()?),
            "dns" => Self::Dns(arguments.read()?),
            unknown => return Err(RequestError::Unknown(unknown.to_owned())),
        })
    }

    /// The request as a line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        let (request, arguments) = self.parts();
        let envelope = Envelope { version: VERSION, request: request.into(), arguments };
        serde_json::to_string(&envelope).unwrap_or_default()
    }

    /// Its name, and its arguments.
    fn parts(&self) -> (&'static str, Value) {
        fn value(arguments: &impl Serialize) -> Value {
            serde_json::to_value(arguments).unwrap_or(Value::Null)
        }
        match self {
            Self::Stats => ("stats", Value::Null),
            Self::Overview => ("overview", Value::Null),
            Self::Subscribe(Subscription { id, every_ms, requests }) => {
                let inner = |request: &Self| {
                    let (request, arguments) = request.parts();
                    Inner { request: request.into(), arguments }
                };
                let requests = requests.iter().map(inner).collect();
                ("subscribe", value(&SubscribeArguments { id: *id, every_ms: *every_ms, requests }))
            }
            Self::Ports => ("ports", Value::Null),
            Self::Config => ("config", Value::Null),
            Self::Reload => ("reload", Value::Null),
            Self::Flows(arguments) => ("flows", value(arguments)),
            Self::Processes(arguments) => ("processes", value(arguments)),
            Self::Containers(arguments) => ("containers", value(arguments)),
            Self::Pods(arguments) => ("pods", value(arguments)),
            Self::Workloads(arguments) => ("workloads", value(arguments)),
            Self::Peers(arguments) => ("peers", value(arguments)),
            Self::Rtt(arguments) => ("rtt", value(arguments)),
            Self::Dns(arguments) => ("dns", value(arguments)),
        }
    }
}

/// A subscription as it is on the wire.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscribeArguments {
    #[serde(default)]
    id: u64,
    every_ms: u64,
    requests: Vec<Inner>,
}

/// A request within it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inner {
    request: String,
    #[serde(default)]
    arguments: Value,
}

/// The arguments of a request, not read yet.
struct Arguments<'a> {
    request: &'a str,
    value: Value,
}

impl Arguments<'_> {
    fn is_empty(&self) -> bool {
        self.value.is_null() || self.value.as_object().is_some_and(Map::is_empty)
    }

    fn refused(&self, why: String) -> RequestError {
        RequestError::Arguments { request: self.request.to_owned(), why }
    }

    /// For requests without arguments.
    fn none(&self, request: Request) -> Result<Request, RequestError> {
        if self.is_empty() { Ok(request) } else { Err(self.refused("it takes none".into())) }
    }

    fn subscription(&self) -> Result<Request, RequestError> {
        let read = SubscribeArguments::deserialize(&self.value).map_err(|err| self.refused(err.to_string()))?;
        if !EVERY_MS.contains(&read.every_ms) {
            let why =
                format!("every_ms is {}: from {} to {} is known", read.every_ms, EVERY_MS.start(), EVERY_MS.end());
            return Err(self.refused(why));
        }
        if read.requests.is_empty() || read.requests.len() > REQUESTS_MAX {
            return Err(self.refused(format!("{} requests: from 1 to {REQUESTS_MAX} are known", read.requests.len())));
        }
        let requests = read.requests.into_iter().map(|Inner { request, arguments }| match request.as_str() {
            "subscribe" | "config" | "reload" => Err(self.refused(format!("{request} is not told again and again"))),
            _ => Request::read(&Arguments { request: &request, value: arguments }),
        });
        let requests = requests.collect::<Result<_, _>>()?;
        Ok(Request::Subscribe(Subscription { id: read.id, every_ms: read.every_ms, requests }))
    }

    fn read<T: Default + for<'de> Deserialize<'de>>(&self) -> Result<T, RequestError> {
        if self.is_empty() {
            return Ok(T::default());
        }
        T::deserialize(&self.value).map_err(|err| self.refused(err.to_string()))
    }
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// Why there is no answer.
    pub error: Option<String>,
    /// The answer, unless there is an error.
    pub answer: Option<Answer>,
}

/// Tables, in the order in which they should be shown.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Answer {
    /// All tables.
    pub tables: Vec<Table>,
}

impl Answer {
    /// The table of a name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// The rows of a table as objects; none where there is no such table.
    #[must_use]
    pub fn rows(&self, name: &str) -> Vec<Map<String, Value>> {
        self.table(name).map(|table| table.objects().collect()).unwrap_or_default()
    }
}

/// A table that explains itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Stable name.
    pub name: String,
    /// What it shows.
    pub help: String,
    /// Columns in order.
    pub columns: Vec<Column>,
    /// One value per column and row, null for what is unknown.
    pub rows: Vec<Vec<Value>>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Key in the rows.
    pub name: String,
    /// What the numbers count.
    pub unit: Unit,
    /// What it means.
    pub help: String,
}

/// Units of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Not a number.
    Text,
    /// A number of things.
    Count,
    /// A number without a scale, such as a pid.
    Id,
    /// Bytes.
    Bytes,
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Hundredths.
    Percent,
    /// A unit that this client does not know.
    #[serde(other)]
    Other,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(name: &str, help: &str, columns: &[(&str, Unit, &str)]) -> Self {
        Self {
            name: name.into(),
            help: help.into(),
            columns: columns
                .iter()
                .map(|(name, unit, help)| Column { name: (*name).into(), unit: *unit, help: (*help).into() })
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: one value per column, null for what is unknown.
    pub fn push(&mut self, values: impl IntoIterator<Item = Value>) {
        self.rows.push(values.into_iter().collect());
    }

    /// The rows as objects, whose keys are the names of the columns. What is unknown is missing.
    pub fn objects(&self) -> impl Iterator<Item = Map<String, Value>> {
        let named = |row: &Vec<Value>| {
            let known = self.columns.iter().zip(row).filter(|(_, value)| !value.is_null());
            known.map(|(column, value)| (column.name.clone(), value.clone())).collect()
        };
        self.rows.iter().map(named)
    }

    /// The table for programs: as it is, but with rows that are objects.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rows: Vec<_> = self.objects().collect();
        serde_json::json!({"name": self.name, "help": self.help, "columns": self.columns, "rows": rows})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_survive_the_wire() {
        let flows = FlowsArguments {
            user: vec!["alice".into()],
            port: vec![443, 80],
            address: vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()],
            by: Some(GroupBy::Label("app".into())),
            sort: SortBy::Rtt,
            ..Default::default()
        };
        let rtt = RttArguments { by: GroupBy::Pod, ..Default::default() };
        let requests = [
            Request::Stats,
            Request::Flows(flows.into()),
            Request::Pods(OwnersArguments { sort: OwnerSort::Rtt, ..Default::default() }),
            Request::Peers(PeersArguments::default()),
            Request::Ports,
            Request::Rtt(rtt),
            Request::Dns(DnsArguments { sort: DnsSort::LatencyP99, reverse: true, ..Default::default() }),
            Request::Overview,
            Request::Subscribe(Subscription {
                id: 7,
                every_ms: 1000,
                requests: vec![Request::Overview, Request::Peers(PeersArguments { history: 12, ..Default::default() })],
            }),
        ];
        for request in requests {
            assert_eq!(Request::parse(request.to_line().as_bytes()), Ok(request));
        }
    }

    #[test]
    fn faults_are_named() {
        let error = |line: &str| Request::parse(line.as_bytes()).unwrap_err().to_string();
        assert!(error("nonsense").contains("not understood"));
        assert!(error(r#"{"version":7,"request":"stats"}"#).contains("version 7"));
        assert!(error(r#"[7,"stats",null]"#).contains("no object"));
        assert!(error(r#"{"version":2,"request":"reboot"}"#).contains("\"reboot\""));
        assert!(error(r#"{"version":2,"request":"flows","arguments":{"prot":80}}"#).contains("`prot`"));
        assert!(error(r#"{"version":2,"request":"stats","arguments":{"x":1}}"#).contains("takes none"));
        assert!(error(r#"{"version":2,"request":"stats","more":1}"#).contains("`more`"));
        let subscribe = |every_ms: u64, requests: &str| {
            let arguments = format!(r#"{{"every_ms":{every_ms},"requests":[{requests}]}}"#);
            error(&format!(r#"{{"version":2,"request":"subscribe","arguments":{arguments}}}"#))
        };
        let overview = r#"{"request":"overview"}"#;
        assert!(subscribe(100, overview).contains("from 250 to 60000"));
        assert!(
            subscribe(1000, "").contains("0 requests")
                && subscribe(1000, &[overview; 5].join(",")).contains("5 requests")
        );
        assert!(subscribe(1000, r#"{"request":"reload"}"#).contains("reload is not told again"));
        assert!(subscribe(1000, r#"{"request":"subscribe","arguments":{}}"#).contains("subscribe is not told again"));
        assert!(subscribe(1000, r#"{"request":"flows","arguments":{"prot":1}}"#).contains("`prot`"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::parse(&line);
            let _ = serde_json::from_slice::<Response>(&line);
        }

        #[test]
        fn arbitrary_json_never_panics(version in 0u32..3, request in ".{0,8}", key in ".{0,8}", value in any::<i64>()) {
            let line = serde_json::json!({"version": version, "request": request, "arguments": {key: value}}).to_string();
            let _ = Request::parse(line.as_bytes());
        }
    }
}
