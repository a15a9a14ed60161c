//! Command lines: the only place where the agent reads them, and where it is decided how much of them it keeps.

use crate::model::text::{clean, truncate};
use crate::owners::process::CMDLINE_MAX;
use crate::owners::secrets::{self, MASK};

/// How much of a command line is kept, and with that told to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum CommandLines {
    /// All of it, secrets as well.
    Full,
    /// All, with *** in place of what looks like a secret.
    #[default]
    Masked,
    /// The program, without its arguments.
    Program,
    /// Nothing.
    Off,
}

impl CommandLines {
    /// `/proc/PID/cmdline` format: NUL-terminated arguments. Blanks between them here, at most [`CMDLINE_MAX`] bytes of
    /// clean text. `cut`: more follows that is not known.
    #[must_use]
    pub fn read(self, args: &[u8], cut: bool) -> String {
        let end = args.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        let mut arguments = args[..end].split(|b| *b == 0);
        let mut text = match self {
            Self::Off => String::new(),
            Self::Full => joined(arguments.map(clean), end),
            Self::Program => {
                let program = arguments.next().unwrap_or_default();
                // A process that has given itself a title has one argument, which tells more than its program.
                let is_title = arguments.next().is_none();
                let words = program.split(|b| is_title && b.is_ascii_whitespace()).next().unwrap_or_default();
                masked(std::iter::once(words), cut && is_title)
            }
            Self::Masked => masked(arguments, cut),
        };
        truncate(&mut text, CMDLINE_MAX);
        text
    }

    /// Whether a command line that was cut may be the beginning of this one.
    #[must_use]
    pub(crate) fn is_beginning(self, cut: &str, of: &str) -> bool {
        // What is behind the beginning of a value may show that it is no secret.
        let shown = if self == Self::Full { cut } else { cut.trim_end().strip_suffix(MASK).unwrap_or(cut) };
        of.starts_with(shown)
    }

    /// Whether more of a command line is worth asking for.
    #[must_use]
    pub(crate) fn lacks(self, cut: bool) -> bool {
        cut && self != Self::Off
    }
}

fn joined(arguments: impl Iterator<Item = String>, length: usize) -> String {
    let mut text = String::with_capacity(length);
    for (i, argument) in arguments.enumerate() {
        if i > 0 {
            text.push(' ');
        }
        text.push_str(&argument);
    }
    text
}

fn masked<'a>(arguments: impl Iterator<Item = &'a [u8]>, cut: bool) -> String {
    // Before the text is made clean: a line break ends a word as well.
    let arguments: Vec<_> = arguments.map(String::from_utf8_lossy).collect();
    let masked = secrets::mask(&arguments, cut);
    let length = masked.iter().map(|argument| argument.len() + 1).sum();
    joined(masked.iter().map(|argument| clean(argument.as_bytes())), length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &[u8] = b"/usr/bin/mysql\0-uroot\0-ps3cret\0--host=db\0\0\0";

    #[test]
    fn as_much_as_is_wanted() {
        let read = |how: CommandLines| how.read(LINE, false);
        assert_eq!(read(CommandLines::Full), "/usr/bin/mysql -uroot -ps3cret --host=db");
        assert_eq!(read(CommandLines::Masked), "/usr/bin/mysql -uroot -p*** --host=db");
        assert_eq!(read(CommandLines::Program), "/usr/bin/mysql");
        assert_eq!(read(CommandLines::Off), "");
        assert_eq!(CommandLines::Program.read(b"postgres: alice shop 10.0.0.1(4000) SELECT", false), "postgres:");
        assert_eq!(CommandLines::Program.read(b"/opt/My App/run\0-x\0", false), "/opt/My App/run");
        assert_eq!(
            CommandLines::Masked.read(b"sh\0-c\0mysql\n-ps3cret\ndb\0", false),
            "sh -c mysql\u{fffd}-p***\u{fffd}db"
        );
    }

    proptest! {
        #[test]
        fn anything_is_read(args in proptest::collection::vec(any::<u8>(), 0..6000), cut: bool) {
            for how in [CommandLines::Full, CommandLines::Masked, CommandLines::Program, CommandLines::Off] {
                let text = how.read(&args, cut);
                prop_assert!(text.len() <= CMDLINE_MAX && !text.chars().any(sockeye_ctl::human::is_unsafe));
            }
        }
    }
}
