//! What is in force: the command line, before it the configuration file, before that the defaults.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _};
use sockeye::config::{Config, DEFAULT_PATH, FileOption};
use sockeye::log::complain;
use sockeye_ctl::exit;

use crate::cli::Args;

/// Options that a file cannot have: they say which file, or are a question.
const NOT_IN_FILES: [&str; 4] = ["config", "check_config", "help", "version"];

/// An option that is in force, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// As in the file.
    pub(crate) key: String,
    /// As on the command line; empty = not given.
    pub(crate) value: String,
    /// `default`, `command line`, `environment`, or file and line.
    pub(crate) from: String,
}

/// Everything that was asked for.
pub(crate) struct Settings {
    pub(crate) args: Args,
    pub(crate) config: Config,
    pub(crate) all: Vec<Setting>,
}

/// Why there are no settings.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The command line; or it asks for help.
    Usage(clap::Error),
    /// The file, in one sentence without its end.
    File(String),
}

impl From<clap::Error> for Refusal {
    fn from(err: clap::Error) -> Self {
        Self::Usage(err)
    }
}

impl Refusal {
    /// Says it. Returns the exit code.
    pub(crate) fn say(&self) -> ExitCode {
        match self {
            Self::Usage(err) => {
                let _ = err.print();
                if err.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS }
            }
            Self::File(why) => {
                complain(&format!("{why}."));
                ExitCode::from(exit::CONFIG)
            }
        }
    }

    /// The same for whoever asked from elsewhere.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Usage(err) => reason(err).unwrap_or_else(|| err.kind().to_string()),
            Self::File(why) => why.clone(),
        }
    }
}

/// Reads the command line and the file that it names.
///
/// # Errors
/// If either is not understood.
pub(crate) fn read(command_line: &[OsString]) -> Result<Settings, Refusal> {
    let matches = Args::command().try_get_matches_from(command_line)?;
    let named = matches.get_one::<PathBuf>("config").or(matches.get_one::<PathBuf>("check_config"));
    let keys: Vec<String> = keys().collect();
    let config = Config::load(named.map(PathBuf::as_path), &keys)
        .map_err(|err| Refusal::File(format!("{:#}", anyhow::Error::from(err))))?;
    let path = named.map_or(Path::new(DEFAULT_PATH), PathBuf::as_path);
    for option in &config.options {
        check(option).map_err(|why| {
            let FileOption { key, line, .. } = option;
            let path = path.display();
            Refusal::File(format!("the configuration {path} is not understood: line {line}: `{key}`: {why}"))
        })?;
    }
    let is_given =
        |key: &str| matches!(matches.value_source(key), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
    let from_file = config.options.iter().filter(|option| !is_given(&option.key)).flat_map(arguments);
    let (program, rest) = command_line.split_at(command_line.len().min(1));
    let merged: Vec<OsString> = program.iter().cloned().chain(from_file).chain(rest.iter().cloned()).collect();
    let merged = Args::command().try_get_matches_from(merged)?;
    let args = Args::from_arg_matches(&merged)?;
    let all = keys.iter().map(|key| setting(key, &matches, &merged, &config, path)).collect();
    Ok(Settings { args, config, all })
}

/// Each option alone, so that what is wrong with it is told by line and key.
fn check(option: &FileOption) -> Result<(), String> {
    if option.values.len() != 1 && !is_list(&option.key) {
        return Err("it takes one value".into());
    }
    let alone = [OsString::from("sockeye")].into_iter().chain(arguments(option));
    Args::command().try_get_matches_from(alone).map(drop).or_else(|err| reason(&err).map_or(Ok(()), Err))
}

/// Keys of all options that a file can have.
fn keys() -> impl Iterator<Item = String> {
    let ids: Vec<String> = Args::command().get_arguments().map(|arg| arg.get_id().to_string()).collect();
    ids.into_iter().filter(|id| !NOT_IN_FILES.contains(&id.as_str()))
}

/// Can be given several times.
fn is_list(key: &str) -> bool {
    let command = Args::command();
    command.get_arguments().any(|arg| arg.get_id() == key && matches!(arg.get_action(), ArgAction::Append))
}

/// As the command line has it.
fn arguments(option: &FileOption) -> Vec<OsString> {
    let name = option.key.replace('_', "-");
    let command = Args::command();
    let action =
        command.get_arguments().find(|arg| arg.get_id() == option.key.as_str()).map(|arg| arg.get_action().clone());
    let [value] = option.values.as_slice() else {
        return option.values.iter().map(|value| format!("--{name}={value}").into()).collect();
    };
    match (action, value.as_str(), value.parse::<usize>()) {
        (Some(ArgAction::SetTrue), "true", _) => vec![format!("--{name}").into()],
        (Some(ArgAction::SetTrue), "false", _) => Vec::new(),
        (Some(ArgAction::Count), _, Ok(times)) => vec![format!("--{name}").into(); times.min(9)],
        _ => vec![format!("--{name}={value}").into()],
    }
}

/// What is wrong with a value; `None` if the command line as a whole would be wrong: it may have the rest.
fn reason(err: &clap::Error) -> Option<String> {
    use clap::error::ErrorKind;
    if err.kind() == ErrorKind::MissingRequiredArgument {
        return None;
    }
    if let Some(why) = std::error::Error::source(err) {
        return Some(why.to_string());
    }
    let value = match err.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(value)) => format!("{value:?} is no value for it"),
        _ => "it is not understood".to_owned(),
    };
    let valid = match err.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => format!(": {} are known", values.join(", ")),
        _ => String::new(),
    };
    Some(format!("{value}{valid}"))
}

fn setting(key: &str, given: &ArgMatches, merged: &ArgMatches, config: &Config, path: &Path) -> Setting {
    let value = match merged.try_get_raw(key) {
        Ok(Some(values)) => values.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    };
    let in_file = config.options.iter().find(|option| option.key == key);
    let from = match (given.value_source(key), in_file) {
        (Some(ValueSource::CommandLine), _) => "command line".to_owned(),
        (Some(ValueSource::EnvVariable), _) => "environment".to_owned(),
        (_, Some(option)) => format!("{}:{}", path.display(), option.line),
        _ => "default".to_owned(),
    };
    // A key is a secret of the operator.
    let is_secret = key == "zmq_encryption_key" && !value.is_empty();
    let value = if is_secret { "(set)".to_owned() } else { value };
    Setting { key: key.to_owned(), value, from }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with_file(text: &str, more: &[&str]) -> Result<Settings, Refusal> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sockeye.toml");
        fs::write(&path, text).unwrap();
        let line = ["sockeye", "--config", path.to_str().unwrap()].into_iter().chain(more.iter().copied());
        read(&line.map(OsString::from).collect::<Vec<_>>())
    }

    fn find<'a>(settings: &'a Settings, key: &str) -> &'a Setting {
        settings.all.iter().find(|setting| setting.key == key).unwrap()
    }

    #[test]
    fn the_command_line_overrides_the_file_and_the_file_the_defaults() {
        let text = "idle_timeout = 5\nreport_interval = 7\nzmq = [\"tcp://127.0.0.1:1c\", \"tcp://127.0.0.1:2c\"]\nno_cgroup = true\nverbose = 2\n";
        let settings = with_file(text, &["--idle-timeout", "9"]).ok().unwrap();
        let args = &settings.args;
        assert_eq!((args.idle_timeout, args.report_interval, args.active_timeout), (9, 7, 60));
        assert_eq!((args.zmq.len(), args.no_cgroup, args.verbose), (2, true, 2));
        assert_eq!(find(&settings, "idle_timeout").from, "command line");
        assert!(find(&settings, "report_interval").from.ends_with("sockeye.toml:2"));
        assert_eq!(
            (find(&settings, "active_timeout").value.as_str(), &*find(&settings, "active_timeout").from),
            ("60", "default")
        );
        // A list is replaced as a whole.
        let settings = with_file(text, &["--zmq", "tcp://127.0.0.1:3c"]).ok().unwrap();
        assert_eq!(settings.args.zmq.len(), 1);
    }

    /// The file that is installed: every option, with its default, and valid when each is taken out of its comment.
    #[test]
    fn the_installed_file_has_every_option_with_its_default() {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/sockeye.toml")).unwrap();
        let is_key = |line: &&str| line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase());
        let keys_there: Vec<&str> =
            text.lines().filter(is_key).filter_map(|line| line[1..].split_once(" = ")).map(|(key, _)| key).collect();
        for key in keys() {
            assert!(keys_there.contains(&key.as_str()), "{key} is missing");
        }
        let plain = with_file("", &[]).ok().unwrap();
        assert_eq!(plain.config.options, []);
        let uncommented: String = text
            .lines()
            .map(|line| if is_key(&line) { &line[1..] } else { line })
            .fold(String::new(), |all, line| all + line + "\n");
        // A key, in place of a file that is not there (ZeroMQ's RFC 26 has it).
        let with_key = uncommented.replace("/etc/sockeye/ntopng.pub", "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7");
        let settings = with_file(&with_key, &[]).ok().unwrap();
        // Those without a default of their own are examples.
        let examples = [
            "zmq",
            "prometheus",
            "zmq_encryption_key",
            "json",
            "log_level",
            "control_group",
            "workers",
            "ring_kib",
            "ignore",
            "only",
        ];
        for setting in settings.all.iter().filter(|setting| !examples.contains(&setting.key.as_str())) {
            assert_eq!(setting.value, find(&plain, &setting.key).value, "{}", setting.key);
        }
    }

    #[test]
    fn what_is_wrong_in_the_file_is_a_fault_of_the_configuration() {
        for text in [
            "idle_timeout = 5000",
            "no_cgroup = 3",
            "zmq = \"nonsense\"",
            "zmq_format = \"xml\"",
            "config = \"x\"",
            "idle_timeout = [1, 2]",
        ] {
            let refused = with_file(text, &[]).err().unwrap();
            assert!(matches!(&refused, Refusal::File(why) if why.contains("sockeye.toml")), "{text}: {refused:?}");
        }
    }
}
