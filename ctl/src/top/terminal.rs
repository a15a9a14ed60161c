//! The terminal is left as it was found, however the program ends.

use std::io::{self, Stdout, Write, stdout};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{DisableMouseCapture, EnableMouseCapture, Event};
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::crossterm::{cursor, execute};
use ratatui::layout::Rect;
use signal_hook::consts::signal::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::app::Input;

/// Longest text that goes into the clipboard: terminals ignore longer ones.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// The terminal is ours. A panic in any thread and the end of the program both give it back, once.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What comes from the terminal, and from those who want the program to end.
pub(crate) enum Happening {
    Input(Input),
    Signal(i32),
    /// The terminal is gone.
    Gone,
}

/// The terminal, until it goes out of scope.
pub(crate) struct Screen {
    pub(crate) terminal: Terminal<CrosstermBackend<Stdout>>,
    mouse: bool,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn take(mouse: bool) -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |why| {
            give_back();
            before(why);
        }));
        let mut screen = Self { terminal: Terminal::new(CrosstermBackend::new(stdout()))?, mouse };
        screen.enter()?;
        Ok(screen)
    }

    fn enter(&mut self) -> io::Result<()> {
        TAKEN.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(stdout(), EnterAlternateScreen, cursor::Hide)?;
        if self.mouse {
            execute!(stdout(), EnableMouseCapture)?;
        }
        // clear() would ask the terminal where the cursor is, and the answer would go to the thread that reads keys.
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::new(0, 0, size.width, size.height))
    }

    /// The mouse is ours, or not.
    pub(crate) fn mouse(&mut self, wanted: bool) -> io::Result<()> {
        self.mouse = wanted;
        if wanted { execute!(stdout(), EnableMouseCapture) } else { execute!(stdout(), DisableMouseCapture) }
    }

    /// Stops, as Ctrl-Z does, and goes on when the shell says so.
    pub(crate) fn suspend(&mut self) -> io::Result<()> {
        give_back();
        emulate_default_handler(SIGTSTP)?;
        self.enter()
    }

    /// Into the clipboard of the terminal, if it takes that (OSC 52).
    pub(crate) fn copy(&self, text: &str) -> io::Result<()> {
        let end = text.floor_char_boundary(COPY_BYTES_MAX);
        let mut out = stdout().lock();
        write!(out, "\x1b]52;c;{}\x07", STANDARD.encode(&text[..end]))?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// As it was. Nothing of it can be mended if it fails: the terminal is gone then.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(stdout(), DisableMouseCapture, LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}

/// Starts the threads that wait for keys and for signals.
///
/// # Errors
/// If there are no threads, or no signals.
pub(crate) fn listen(events: &Sender<Happening>) -> io::Result<()> {
    let of_keys = events.clone();
    thread::Builder::new().name("keys".into()).spawn(move || {
        loop {
            let event = match ratatui::crossterm::event::read() {
                Ok(Event::Key(key)) => Happening::Input(Input::Key(key)),
                Ok(Event::Mouse(mouse)) => Happening::Input(Input::Mouse(mouse)),
                Ok(Event::Resize(columns, rows)) => Happening::Input(Input::Resize(columns, rows)),
                Ok(_) => continue,
                Err(_) => Happening::Gone,
            };
            let is_last = matches!(event, Happening::Gone);
            if of_keys.send(event).is_err() || is_last {
                return;
            }
        }
    })?;
    let mut signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT])?;
    let of_signals = events.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if of_signals.send(Happening::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
