//! The configuration of an agent that runs: what is in force, and another one without a restart.

use std::ffi::OsString;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, sync_channel};
use std::time::Duration;

use sockeye::api::events::{Change, Event, Question};
use sockeye::config::Config;
use sockeye::export::lines::Reopen;
use sockeye::export::messages::Heartbeat;
use sockeye::export::zmq::{self, ZmqOptions};
use sockeye::export::{ExportPort, endpoint::ServerKey};
use sockeye::log;
use sockeye::threads::Threads;
use sockeye_ctl::protocol::{Answer, Request, Table};
use sockeye_ctl::rows;

use crate::agent::{tuning, zmq_options};
use crate::cli::Args;
use crate::settings::{self, Setting, Settings};

/// What changes without a restart.
const AT_ONCE: [&str; 14] = [
    "zmq",
    "zmq_encryption_key",
    "zmq_format",
    "log_level",
    "report_interval",
    "active_timeout",
    "idle_timeout",
    "scan_interval",
    "closed_max",
    "closed_seconds",
    "ignore",
    "only",
    "no_loopback",
    "no_listening_ports",
];
/// Control takes a change between two rounds of its work.
const CHANGE_MAX: Duration = Duration::from_secs(5);

rows! {
    /// What is in force. Of what needs a restart, `next_start` has what the file says by now.
    struct Shown: "config" {
        /// as in the file
        key: Text = String,
        /// as on the command line; missing if nothing is set
        value: Text = Option<String>,
        /// command line, environment, file and line, or default
        from: Text = String,
        /// what will be in force after a restart, where that is another value
        next_start: Text = Option<String>,
    }
}

rows! {
    /// What the configuration has changed, and whether it is in force.
    struct Changed: "changes" {
        /// as in the file
        key: Text = String,
        /// what was in force
        before: Text = Option<String>,
        /// what is wanted now
        now: Text = Option<String>,
        /// at once, or after a restart
        applies: Text = &'static str,
    }
}

const KEPT: &str = "; the former configuration stays in force";

/// What the agent was told to do. Owned by the main thread.
pub(crate) struct Configuration {
    command_line: Vec<OsString>,
    /// As it was last read.
    settings: Settings,
    /// What is in force.
    in_force: Vec<Setting>,
    threads: Threads,
    heartbeat: Heartbeat,
    /// Files that are opened again with each reload.
    reopen: Reopen,
    control: Sender<Event>,
}

fn given(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

impl Configuration {
    pub(crate) fn new(
        command_line: Vec<OsString>,
        settings: Settings,
        threads: Threads,
        heartbeat: Heartbeat,
        reopen: Reopen,
        control: Sender<Event>,
    ) -> Self {
        tell_collectors(&heartbeat, &settings.args);
        let in_force = settings.all.clone();
        Self { command_line, settings, in_force, threads, heartbeat, reopen, control }
    }

    /// What the agent was started with.
    pub(crate) fn config(&self) -> &Config {
        &self.settings.config
    }

    pub(crate) fn answer(&mut self, question: &Question) {
        let answer = match question.request {
            Request::Reload => self.reload().inspect_err(|why| refused(why)),
            _ => Ok(self.show()),
        };
        let _ = question.reply.send(answer);
    }

    /// For whoever sends a signal: what comes of it is in the log.
    pub(crate) fn reload_and_log(&mut self) {
        if let Err(why) = self.reload() {
            refused(&why);
        }
    }

    fn show(&self) -> Answer {
        let rows = self.in_force.iter().map(|setting| Shown {
            key: setting.key.clone(),
            value: given(&setting.value),
            from: setting.from.clone(),
            next_start: self
                .wanted(&setting.key)
                .filter(|wanted| wanted.value != setting.value)
                .map(|wanted| given(&wanted.value).unwrap_or_else(|| "(none)".into())),
        });
        Answer { tables: vec![Table::of(rows)] }
    }

    fn wanted(&self, key: &str) -> Option<&Setting> {
        self.settings.all.iter().find(|wanted| wanted.key == key)
    }

    /// Reads the configuration again and applies what can be. A wrong one changes nothing.
    fn reload(&mut self) -> Result<Answer, String> {
        // Whoever has moved a file away wants that, whatever becomes of the rest.
        self.reopen.ask();
        let wanted = settings::read(&self.command_line).map_err(|refusal| refusal.text() + KEPT)?;
        self.apply(&wanted.args)?;
        let runtimes = wanted.config.runtimes != self.settings.config.runtimes;
        self.settings = wanted;
        let mut changed = Vec::new();
        for setting in &mut self.in_force {
            let Some(wanted) = self.settings.all.iter().find(|wanted| wanted.key == setting.key) else { continue };
            let at_once = AT_ONCE.contains(&setting.key.as_str());
            if wanted.value != setting.value {
                changed.push(Changed {
                    key: setting.key.clone(),
                    before: given(&setting.value),
                    now: given(&wanted.value),
                    applies: if at_once { "at once" } else { "after a restart" },
                });
            }
            if at_once || wanted.value == setting.value {
                setting.clone_from(wanted);
            }
        }
        if runtimes {
            let applies = "after a restart";
            changed.push(Changed { key: "runtimes".into(), before: None, now: None, applies });
        }
        report(&changed);
        Ok(Answer { tables: vec![Table::of(changed)] })
    }

    /// Everything that can fail comes first; then control takes all of it together.
    fn apply(&self, wanted: &Args) -> Result<(), String> {
        let (before, after) = (self.exporters(&self.settings.args), self.exporters(wanted));
        let is_in = |options: &ZmqOptions, all: &[ZmqOptions]| all.iter().any(|other| is_same(options, other));
        let gone: Vec<_> = before.iter().filter(|options| !is_in(options, &after)).collect();
        // One with another key or format at the same address can only be opened when the former one is closed.
        let address = |options: &ZmqOptions| options.endpoint.address.clone();
        let (later, at_once): (Vec<_>, Vec<_>) = after
            .iter()
            .filter(|options| !is_in(options, &before))
            .partition(|options| gone.iter().any(|gone| address(gone) == address(options)));
        let start = |options: &&ZmqOptions| zmq::start(&self.threads, (*options).clone());
        let mut new = Vec::new();
        for options in &at_once {
            match start(options) {
                Ok(port) => new.push(port),
                Err(err) => {
                    new.iter_mut().for_each(ExportPort::close);
                    return Err(format!("{err:#}{KEPT}"));
                }
            }
        }
        let gone = gone.into_iter().map(address).collect();
        self.change(wanted, gone, new).map_err(|why| why + KEPT)?.iter_mut().for_each(ExportPort::close);
        log::set_level(wanted.level());
        tell_collectors(&self.heartbeat, wanted);
        let reopened: Vec<ExportPort> = later
            .iter()
            .map(start)
            .collect::<Result<_, _>>()
            .map_err(|err| format!("{err:#}: nothing is exported there"))?;
        if !reopened.is_empty() {
            self.change(wanted, Vec::new(), reopened)?;
        }
        Ok(())
    }

    /// Hands a change to control. Returns the exporters that are not wanted any more.
    fn change(&self, wanted: &Args, gone: Vec<String>, new: Vec<ExportPort>) -> Result<Vec<ExportPort>, String> {
        let (reply, replied) = sync_channel(1);
        let change = Change { tuning: tuning(wanted), gone, new, reply };
        let failed = || "the agent is ending, or too busy to take another configuration".to_owned();
        self.control.send(Event::Change(Box::new(change))).map_err(|_| failed())?;
        replied.recv_timeout(CHANGE_MAX).map_err(|_| failed())?
    }

    fn exporters(&self, args: &Args) -> Vec<ZmqOptions> {
        zmq_options(args, &self.heartbeat)
    }
}

/// The key may come from a file that has another one now.
fn is_same(a: &ZmqOptions, b: &ZmqOptions) -> bool {
    let key = |options: &ZmqOptions| options.server_key.clone().map(|ServerKey(key)| key);
    a.endpoint == b.endpoint && a.format == b.format && key(a) == key(b)
}

/// What events tell of the configuration.
fn tell_collectors(heartbeat: &Heartbeat, args: &Args) {
    let agent = &heartbeat.agent;
    agent.exporters.store(args.zmq.len() as u64, Ordering::Relaxed);
    agent.lifetime_s.store(args.active_timeout, Ordering::Relaxed);
    agent.idle_s.store(args.idle_timeout, Ordering::Relaxed);
}

fn refused(why: &str) {
    tracing::error!("cannot reload: {why}");
}

fn report(changed: &[Changed]) {
    if changed.is_empty() {
        tracing::info!("reloaded: the configuration is what it was");
    }
    for Changed { key, before, now, applies } in changed {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
        tracing::info!("reloaded: {key} was {} and is {}, {applies}", text(before), text(now));
    }
}
