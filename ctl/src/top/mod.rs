//! `ctl top`: what this host is doing on the network, and who suffers.

mod app;
mod cells;
mod connection;
mod draw;
mod drill;
mod filter;
mod flow_page;
mod header;
mod keys;
mod screen;
mod terminal;
#[cfg(test)]
mod tests;
mod theme;
mod views;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use signal_hook::consts::signal::{SIGCONT, SIGTSTP};
use sockeye_ctl::protocol::Request;
use sockeye_ctl::{Client, exit};

use app::{App, Effect, Input, Options};
use connection::Connection;
use terminal::{Happening, Screen, listen};
use theme::{Colours, Theme};
use views::View;

/// The clock of the header moves at least so often.
const TICK: Duration = Duration::from_secs(1);

/// For tests, as the agent has it: it panics with the first picture.
const PANIC_VARIABLE: &str = "SOCKEYE_TEST_PANIC";

/// Options of `ctl top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Time between two updates: 250ms, 1s, 1m.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    every: humantime::Duration,
    /// The view to begin with.
    #[arg(long, value_enum, default_value_t = View::Flows)]
    view: View,
    /// Filter to begin with, as it is typed after /.
    #[arg(long, value_name = "FILTER", default_value = "")]
    filter: String,
    /// Colours. Without this, dark; none with NO_COLOR.
    #[arg(long, value_enum)]
    colours: Option<Colours>,
    /// Draw with ASCII characters only. Without this, where the locale is not UTF-8.
    #[arg(long)]
    ascii: bool,
    /// Leave the mouse to the terminal.
    #[arg(long)]
    no_mouse: bool,
}

fn interval(text: &str) -> Result<humantime::Duration, String> {
    let time: humantime::Duration = text.parse().map_err(|_| "a time such as 500ms or 2s".to_owned())?;
    let (least, most) = sockeye_ctl::subscription::EVERY_MS.into_inner();
    let fits = (u128::from(least)..=u128::from(most)).contains(&time.as_millis());
    if fits { Ok(time) } else { Err(format!("from {least}ms to {}s", most / 1000)) }
}

impl Top {
    fn options(&self) -> Options {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let colours = match self.colours {
            Some(colours) => colours,
            None if is_set("NO_COLOR") => Colours::Mono,
            None => Colours::Dark,
        };
        Options {
            theme: Theme::of(colours),
            ascii: self.ascii || !is_utf8(),
            mouse: !self.no_mouse,
            every_ms: u64::try_from(self.every.as_millis()).unwrap_or(1000),
        }
    }
}

/// What the locale says of characters.
fn is_utf8() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| std::env::var(name).ok());
    let locale = locale.filter(|value| !value.is_empty()).map(|value| value.to_lowercase()).next();
    locale.is_some_and(|locale| locale.contains("utf-8") || locale.contains("utf8"))
}

/// Shows until the user, or a signal, ends it.
pub(crate) fn run(top: &Top, socket: &Path) -> ExitCode {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        complain!("ctl: top needs a terminal: ctl flows and its like, with --json or ctl watch, do not.");
        return ExitCode::from(exit::USAGE);
    }
    // Who has no agent learns it in the same words as from any other command.
    if let Err(err) = Client::new(socket).ask(&Request::Overview) {
        complain!("ctl: {err}.");
        return ExitCode::from(err.exit_code());
    }
    let mut app = App::new(top.options(), top.view);
    if let Some(wrong) = app.filter(&top.filter) {
        complain!("ctl: the filter is not understood: {wrong}.");
        return ExitCode::from(exit::USAGE);
    }
    match show(&mut app, socket) {
        Ok(code) => code,
        Err(err) => {
            complain!("ctl: the terminal cannot be used: {err}.");
            ExitCode::from(exit::IO)
        }
    }
}

fn show(app: &mut App, socket: &Path) -> io::Result<ExitCode> {
    let began = Instant::now();
    let (events, received) = channel();
    listen(&events)?;
    let mut screen = Screen::take(app.options.mouse)?;
    let (inputs, of_connection) = channel();
    let connection = Connection::start(socket, began, inputs)?;
    let hand_on = events;
    thread::Builder::new().name("updates".into()).spawn(move || {
        for input in of_connection {
            if hand_on.send(Happening::Input(input)).is_err() {
                return;
            }
        }
    })?;
    let size = screen.terminal.size()?;
    let mut pending = vec![Happening::Input(Input::Resize(size.width, size.height))];
    loop {
        for event in pending.drain(..) {
            let effects = match event {
                Happening::Gone => return Ok(ExitCode::SUCCESS),
                Happening::Signal(SIGTSTP) => vec![Effect::Suspend],
                Happening::Signal(SIGCONT) => Vec::new(),
                Happening::Signal(signal) => return Ok(ExitCode::from(128 + u8::try_from(signal).unwrap_or(0))),
                Happening::Input(input) => app.handle(input),
            };
            for effect in effects {
                match effect {
                    Effect::Quit => return Ok(ExitCode::SUCCESS),
                    effect => perform(effect, app, &mut screen, &connection)?,
                }
            }
        }
        screen.terminal.draw(|frame| app.draw(frame))?;
        if std::env::var_os(PANIC_VARIABLE).is_some_and(|name| name == "top") {
            panic!("{PANIC_VARIABLE} asks for it");
        }
        pending = wait(&received);
        pending.insert(0, Happening::Input(Input::Tick(began.elapsed())));
    }
}

/// All that has happened: however much it is, it is drawn once.
fn wait(received: &Receiver<Happening>) -> Vec<Happening> {
    match received.recv_timeout(TICK) {
        Ok(first) => std::iter::once(first).chain(received.try_iter()).collect(),
        Err(RecvTimeoutError::Timeout) => Vec::new(),
        Err(RecvTimeoutError::Disconnected) => vec![Happening::Gone],
    }
}

fn perform(effect: Effect, app: &mut App, screen: &mut Screen, connection: &Connection) -> io::Result<()> {
    match effect {
        Effect::Subscribe(subscription) => connection.subscribe(subscription),
        Effect::Copy(text) => screen.copy(&text)?,
        Effect::Mouse(wanted) => screen.mouse(wanted)?,
        Effect::Suspend => screen.suspend()?,
        Effect::Save(name, text) => {
            app.message = Some(match save(&name, &text) {
                Ok(file) => format!("written to {file}"),
                Err(err) => format!("cannot write {name}: {err}"),
            });
        }
        Effect::Quit => {}
    }
    Ok(())
}

/// Into a new file where the program was started; nothing is overwritten.
fn save(name: &str, text: &str) -> io::Result<String> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("{name}-{seconds}.json");
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&name)?;
    file.write_all(text.as_bytes())?;
    Ok(name)
}
