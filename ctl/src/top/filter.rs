//! The filter that is typed: `key=value` or `key:value` with the names of `ctl flows`' options, and bare words.

use clap::ValueEnum;
use sockeye_ctl::protocol::{Direction, FlowsArguments, Protocol};

use super::cells::Row;

/// What a term may be called, and what its value is.
pub(crate) const TERMS: [(&str, &str); 18] = [
    ("process", "part of a name or path, or a pid"),
    ("pid", "a pid"),
    ("user", "name or uid"),
    ("port", "on either side"),
    ("name", "what the responder is called, as *.example.net"),
    ("address", "address, or a network such as 10.0.0.0/8"),
    ("state", "open, closed, refused, ..."),
    ("protocol", "tcp or udp"),
    ("direction", "out, in or local"),
    ("container", "name, id, namespace/pod/container, unit"),
    ("pod", "name, uid or namespace/name"),
    ("namespace", "of a pod"),
    ("workload", "name or Deployment/name"),
    ("label", "key=value or key"),
    ("min-bytes", "1500, 10kB, 5MB"),
    ("rtt-over", "500us, 20ms, 1s"),
    ("id", "of a flow"),
    ("text", "a word, as without a name"),
];

/// States that flows may have.
const STATES: [&str; 11] = [
    "connecting",
    "open",
    "closing",
    "closed",
    "refused",
    "unreachable",
    "timed out",
    "reset",
    "aborted",
    "idle",
    "vanished",
];

/// A filter that is understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    /// Only what chooses flows is set.
    pub(crate) flows: FlowsArguments,
    /// There is more than bare words.
    pub(crate) has_terms: bool,
}

impl Filter {
    /// Whether all of it can be asked of what listens: there is no flow yet.
    pub(crate) fn is_of_listeners(&self) -> bool {
        let FlowsArguments { process, pid, user, port, protocol, container, pod, workload, text, .. } =
            self.flows.clone();
        let asked = FlowsArguments {
            process,
            pid,
            user,
            port,
            protocol,
            container,
            pod,
            workload,
            text,
            ..FlowsArguments::default()
        };
        asked == self.flows
    }

    /// Whether a row of `ports` is wanted.
    pub(crate) fn is_listener(&self, row: &Row<'_>) -> bool {
        let wanted = &self.flows;
        let number = |column, numbers: &[u64]| any(numbers, |number| row.number(column) == Some(*number));
        let text = |column, texts: &[String]| any(texts, |text| row.text(column).contains(text.as_str()));
        let is_process = |text: &String| row.text("process").contains(text) || row.text("pid") == *text;
        let is_user = |text: &String| row.text("user") == *text;
        let is_protocol = |protocol: &Protocol| {
            protocol.to_possible_value().is_some_and(|name| row.text("protocol") == name.get_name())
        };
        wanted.text.iter().all(|word| row.has_text(word))
            && any(&wanted.process, is_process)
            && any(&wanted.user, is_user)
            && any(&wanted.protocol, is_protocol)
            && number("pid", &wanted.pid.iter().copied().map(u64::from).collect::<Vec<_>>())
            && number("port", &wanted.port.iter().copied().map(u64::from).collect::<Vec<_>>())
            && [&wanted.container, &wanted.pod, &wanted.workload].into_iter().all(|names| text("workload", names))
    }

    /// The bare words.
    pub(crate) fn words(&self) -> &[String] {
        &self.flows.text
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        !self.has_terms && self.flows.text.is_empty()
    }
}

/// Nothing was asked for, or one of several.
fn any<T>(wanted: &[T], is: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(is)
}

/// Reads what was typed so far.
///
/// # Errors
/// One sentence about the first term that is wrong.
pub(crate) fn parse(text: &str) -> Result<Filter, String> {
    let mut filter = Filter::default();
    for word in words(text) {
        match term(&word) {
            Some((name, value)) => {
                filter.has_terms |= name != "text";
                // It is being typed.
                if !value.is_empty() {
                    take(&mut filter.flows, name, value)?;
                }
            }
            None => filter.flows.text.push(word),
        }
    }
    Ok(filter)
}

/// Split at blanks; those between quotes belong to a word.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// Name and value, unless it is a bare word: addresses have colons, too.
fn term(word: &str) -> Option<(&str, &str)> {
    let at = word.find(['=', ':'])?;
    let (name, value) = (&word[..at], &word[at + 1..]);
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let is_address = word.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'));
    (is_name && !is_address).then_some((name, value))
}

fn take(flows: &mut FlowsArguments, name: &str, value: &str) -> Result<(), String> {
    let text = || value.to_owned();
    let number = |what: &str| format!("{name}: {value:?} is no {what}");
    match name {
        "process" => flows.process.push(text()),
        "pid" => flows.pid.push(value.parse().map_err(|_| number("pid"))?),
        "user" => flows.user.push(text()),
        "port" => flows.port.push(value.parse().map_err(|_| number("port"))?),
        "name" => flows.name.push(text()),
        "address" => flows.address.push(value.parse().map_err(|err| format!("{name}: {err}"))?),
        "state" => flows.state.push(one_of(name, &value.replace(['-', '_'], " "), &STATES)?),
        "protocol" => flows.protocol.push(value_of::<Protocol>(name, value)?),
        "direction" => flows.direction.push(value_of::<Direction>(name, value)?),
        "container" => flows.container.push(text()),
        "pod" => flows.pod.push(text()),
        "namespace" => flows.namespace.push(text()),
        "workload" => flows.workload.push(text()),
        "label" => flows.label.push(text()),
        "min-bytes" => {
            let size: bytesize::ByteSize = value.parse().map_err(|_| number("number of bytes such as 10kB"))?;
            flows.min_bytes = Some(size.as_u64());
        }
        "rtt-over" => {
            let time: humantime::Duration = value.parse().map_err(|_| number("time such as 20ms"))?;
            flows.rtt_over_us = Some(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
        "id" => {
            u64::from_str_radix(value, 16).map_err(|_| number("id of a flow"))?;
            flows.id.push(text());
        }
        "text" => flows.text.push(text()),
        unknown => {
            let known: Vec<_> = TERMS.iter().map(|(name, _)| *name).collect();
            return Err(format!("there is no term {unknown:?}: {}", known.join(" ")));
        }
    }
    Ok(())
}

fn one_of(name: &str, value: &str, known: &[&str]) -> Result<String, String> {
    let found = known.iter().find(|word| **word == value);
    found.map(|word| (*word).to_owned()).ok_or_else(|| format!("{name}: {}", known.join(", ")))
}

fn value_of<T: ValueEnum>(name: &str, value: &str) -> Result<T, String> {
    let known = || T::value_variants().iter().filter_map(|v| Some(v.to_possible_value()?.get_name().to_owned()));
    T::from_str(value, true).map_err(|_| format!("{name}: {}", known().collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn terms_and_words() {
        let filter = parse("nginx port=443 port:80 state=\"timed out\" rtt-over=20ms min-bytes=10kB 10.0.0.1").unwrap();
        let flows = &filter.flows;
        assert_eq!((&*flows.text, &*flows.port), (&["nginx".into(), "10.0.0.1".into()][..], &[443, 80][..]));
        assert_eq!((&*flows.state, flows.rtt_over_us), (&["timed out".to_owned()][..], Some(20_000)));
        assert_eq!((flows.min_bytes, filter.has_terms), (Some(10_000), true));
        assert_eq!(parse("label=app=cart").unwrap().flows.label, ["app=cart"]);
        assert_eq!(parse("protocol=TCP direction:out").unwrap().flows.protocol, [Protocol::Tcp]);
    }

    #[test]
    fn addresses_and_what_is_being_typed_are_no_terms() {
        for address in ["fe80::1", "10.0.0.1:443", "[::1]:80", "cafe::1", "::1"] {
            assert_eq!(parse(address).unwrap().words(), [address]);
        }
        let typing = parse("port=").unwrap();
        assert!(typing.has_terms && typing.flows.port.is_empty());
        assert!(parse("  ").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_the_remedy() {
        let why = |text| parse(text).unwrap_err();
        assert!(why("prot=tcp").contains("\"prot\"") && why("prot=tcp").contains("protocol"));
        assert!(why("port=http").contains("no port") && why("address=10.0.0").contains("no network"));
        assert!(why("protocol=sctp").contains("tcp, udp") && why("state=happy").contains("refused"));
        assert!(why("rtt-over=fast").contains("20ms") && why("id=flow").contains("no id"));
    }

    #[test]
    fn every_term_that_is_listed_is_known() {
        for (name, _) in TERMS {
            let why = parse(&format!("{name}=?")).err().unwrap_or_default();
            assert!(!why.contains("no term"), "{name}: {why}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_typed_panics(text in "[a-z=: \"0-9é.-]{0,40}") {
            let _ = parse(&text);
        }
    }
}
