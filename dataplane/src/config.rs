//! The configuration file: TOML, small, and strict. What is misspelt is an error that names the nearest valid key.
//!
//! Its keys are the options of the command line, with `_` for `-`, and the table of container runtimes. The command line reads
//! the values of options as it reads its own.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::model::text::{clean, truncated};

/// Read without being asked to, where it exists.
pub const DEFAULT_PATH: &str = "/etc/sockeye/sockeye.toml";

/// Everything that can be configured in a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where container runtimes are asked for names.
    pub runtimes: Runtimes,
    /// Options of the command line, in the order of the file.
    #[serde(skip)]
    pub options: Vec<FileOption>,
}

/// An option, as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOption {
    /// Its key.
    pub key: String,
    /// Its line, from 1 on.
    pub line: usize,
    /// What the command line would have: `true` and `false` of a switch, one or more values of any other.
    pub values: Vec<String>,
}

/// Sockets of the runtimes, `unix:///PATH`. A list that is given replaces the usual places; an empty one asks nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Runtimes {
    /// Docker Engine API.
    pub docker: Option<Vec<Socket>>,
    /// Podman's API, which is Docker's.
    pub podman: Option<Vec<Socket>>,
    /// Kubernetes' Container Runtime Interface: containerd, CRI-O, cri-dockerd.
    pub cri: Option<Vec<Socket>>,
}

/// Path of a Unix socket, from `unix:///PATH`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Socket(pub PathBuf);

impl TryFrom<String> for Socket {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self(path.into())),
            _ => Err(format!("{:?} is no socket: write unix:///PATH", shown(&text, 80))),
        }
    }
}

/// Why a configuration cannot be used. One sentence.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or of the wrong type.
    #[error("the configuration {} is not understood: {why}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// A key that does not exist.
    #[error("the configuration {} has an unknown key `{key}` in line {line}: did you mean `{nearest}`?", path.display())]
    UnknownKey {
        /// Which.
        path: PathBuf,
        /// Where.
        line: usize,
        /// The key, with its table.
        key: String,
        /// The valid key that is spelt most alike.
        nearest: String,
    },
}

/// Every valid key that is no option.
const KEYS: [&str; 4] = ["runtimes", "runtimes.docker", "runtimes.podman", "runtimes.cri"];

impl Config {
    /// Reads the file that was named, or the one in the usual place if there is any. `options`: keys of the command line.
    ///
    /// # Errors
    /// If it cannot be read or is not understood.
    pub fn load(named: Option<&Path>, options: &[String]) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        if named.is_none() && !path.exists() {
            return Ok(Self::default());
        }
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path, options)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// If it is not understood.
    pub fn parse(text: &str, path: &Path, options: &[String]) -> Result<Self, ConfigError> {
        let refused = |why: &toml::de::Error| {
            let line = why.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let why = shown(&why.message().replace('\n', " "), 500);
            ConfigError::Parse { path: path.to_owned(), why: format!("line {line}: {}", why.trim_end_matches('.')) }
        };
        let table: toml::Table = toml::from_str(text).map_err(|err| refused(&err))?;
        check_keys(&table, "", &Known { path, text, options })?;
        let mut config: Self = toml::from_str(text).map_err(|err| refused(&err))?;
        for (key, value) in table.iter().filter(|(key, _)| !KEYS.contains(&key.as_str())) {
            let line = line_of(text, key);
            let why = |what: &str| format!("line {line}: `{key}` takes {what}");
            let values =
                values_of(value).map_err(|what| ConfigError::Parse { path: path.to_owned(), why: why(what) })?;
            config.options.push(FileOption { key: key.clone(), line, values });
        }
        config.options.sort_by_key(|option| option.line);
        Ok(config)
    }
}

/// As a command line has them.
fn values_of(value: &toml::Value) -> Result<Vec<String>, &'static str> {
    match value {
        toml::Value::String(text) => Ok(vec![text.clone()]),
        toml::Value::Integer(number) => Ok(vec![number.to_string()]),
        toml::Value::Boolean(is) => Ok(vec![is.to_string()]),
        toml::Value::Array(list) => {
            let nested = |value: &toml::Value| value.is_array() || value.is_table();
            if list.iter().any(nested) {
                return Err("a list of texts");
            }
            Ok(list.iter().map(values_of).collect::<Result<Vec<_>, _>>()?.concat())
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => {
            Err("a text, a whole number, true or false, or a list")
        }
    }
}

/// The line in which a key gets its value.
fn line_of(text: &str, key: &str) -> usize {
    let has = |line: &str| {
        let rest = line.trim_start().trim_start_matches(['[', '"', '\'']).strip_prefix(key);
        rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(['=', ']', '.']))
    };
    text.lines().position(has).map_or(0, |at| at + 1)
}

struct Known<'a> {
    path: &'a Path,
    text: &'a str,
    options: &'a [String],
}

/// What was written, as a part of a sentence on a terminal: at most so many bytes.
fn shown(text: &str, most: usize) -> String {
    truncated(&clean(text.as_bytes()), most).to_owned()
}

fn check_keys(table: &toml::Table, prefix: &str, known: &Known<'_>) -> Result<(), ConfigError> {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        let valid = || KEYS.into_iter().chain(known.options.iter().map(String::as_str));
        if !valid().any(|valid| valid == key) {
            let likeness = |valid: &&str| (strsim::jaro_winkler(valid, &key) * 1e6) as u64;
            let nearest = valid().max_by_key(likeness).map_or_else(String::new, ToString::to_string);
            let line = line_of(known.text, name);
            return Err(ConfigError::UnknownKey { path: known.path.to_owned(), line, key: shown(&key, 300), nearest });
        }
        if let toml::Value::Table(inner) = value
            && KEYS.contains(&key.as_str())
        {
            check_keys(inner, &format!("{key}."), known)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Config, String> {
        let options = ["zmq", "idle_timeout", "no_cgroup"].map(String::from);
        Config::parse(text, Path::new("x.toml"), &options).map_err(|err| err.to_string())
    }

    #[test]
    fn reads_sockets() {
        let config = parse("[runtimes]\ndocker = [\"unix:///run/a.sock\"]\ncri = []\n").unwrap();
        assert_eq!(config.runtimes.docker, Some(vec![Socket("/run/a.sock".into())]));
        assert_eq!((config.runtimes.cri, config.runtimes.podman), (Some(vec![]), None));
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn reads_options_of_the_command_line() {
        let text = "# comment\nidle_timeout = 5\n\nzmq = [\"tcp://a:1\", \"tcp://b:2\"]\n\"no_cgroup\" = true\n";
        let options = parse(text).unwrap().options;
        let option = |key: &str, line, values: &[&str]| FileOption {
            key: key.into(),
            line,
            values: values.iter().map(ToString::to_string).collect(),
        };
        let expected = [
            option("idle_timeout", 2, &["5"]),
            option("zmq", 4, &["tcp://a:1", "tcp://b:2"]),
            option("no_cgroup", 5, &["true"]),
        ];
        assert_eq!(options, expected);
        assert!(parse("idle_timeout = 1.5").unwrap_err().contains("line 1: `idle_timeout` takes a text"));
        assert!(parse("[idle_timeout]\nx = 1").unwrap_err().contains("line 1: `idle_timeout` takes"));
        assert!(
            parse("\nidle_timeuot = 5").unwrap_err().contains("`idle_timeuot` in line 2: did you mean `idle_timeout`?")
        );
    }

    #[test]
    fn faults_are_named_with_the_remedy() {
        let fault = |text: &str| parse(text).unwrap_err();
        let misspelt = fault("[runtimes]\ndokcer = []");
        assert!(misspelt.contains("`runtimes.dokcer` in line 2: did you mean `runtimes.docker`?"), "{misspelt}");
        assert!(fault("[runtime]\n").contains("did you mean `runtimes`?"));
        assert!(fault("[runtimes]\ndocker = [\"tcp://1.2.3.4:5\"]").contains("write unix:///PATH"));
        assert!(fault("[runtimes]\n\ndocker = 5").contains("line 3"));
        assert!(fault("runtimes = ").contains("not understood"));
        for text in ["[runtimes]\ndokcer = []", "runtimes = ", "[runtimes]\ndocker = 5"] {
            assert_eq!(fault(text).lines().count(), 1);
        }
    }

    #[test]
    fn what_is_shown_of_a_fault_is_short_and_clean() {
        let long = "x".repeat(1 << 20);
        let socket = format!("[runtimes]\ncri = [\"{long}\"]");
        for text in ["\"\\u001b[2J\\n\" = 1", &format!("{long} = 1"), &socket, "[runtimes]\ndocker = \"\\u202e\\n\""] {
            let fault = parse(text).unwrap_err();
            assert!(fault.len() < 1000 && !fault.chars().any(sockeye_ctl::human::is_unsafe), "{fault:?}");
        }
        assert!(parse(&socket).unwrap_err().contains("write unix:///PATH"));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
