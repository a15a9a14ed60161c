//! Manual pages and completions of a program, from its own command line: whoever builds a package runs
//! `PROGRAM --generate-pages DIR`. No help mentions it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

use crate::exit;

const OPTION: &str = "--generate-pages";

/// What no command line says of itself, for the program's own page: roff.
const MORE: &str = r#".SH FILES
.TP
.I /etc/sockeye/sockeye.toml
Configuration of the agent. It explains each of its keys.
.TP
.I /run/sockeye/ctl.sock
Control socket of the agent. Its owner and the members of its group may ask.
.SH "EXIT STATUS"
0 done, 1 refused by the agent, 64 wrong command line, 69 something that is needed is not there, 70 a fault of the
program, 74 a connection broke, 76 agent and client do not understand each other, 77 permissions are missing, 78 wrong
configuration.
.SH "SEE ALSO"
.BR sockeye (8),
.BR sockeyectl (1),
.BR sockeye\-perf (1),
.I /usr/share/doc/sockeye
"#;

/// Writes both if the program was started as `PROGRAM --generate-pages DIR`, and says how that went. `name` is what the
/// program is called where it is installed, `section` that of its manual page.
#[must_use]
pub fn generate_if_asked(command: Command, name: &'static str, section: &str) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let dir = arguments.next().filter(|option| option == OsStr::new(OPTION)).and_then(|_| arguments.next())?;
    Some(match generate(command.name(name), name, section, Path::new(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{name}: cannot write manual pages and completions below {}: {err}.", dir.display());
            ExitCode::from(exit::IO)
        }
    })
}

/// Into `DIR/man`, `DIR/bash`, `DIR/zsh` and `DIR/fish`.
fn generate(command: Command, name: &str, section: &str, dir: &Path) -> io::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let place = dir.join(shell.to_string());
        fs::create_dir_all(&place)?;
        generate_to(shell, &mut command.clone(), name, place)?;
    }
    // Debian's bash-completion loads a file that is called as the command.
    fs::rename(dir.join(format!("bash/{name}.bash")), dir.join("bash").join(name))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    fs::create_dir_all(dir.join("man"))?;
    write_pages(&command, section, &dir.join("man"), MORE)
}

/// A page for the command, and one for each of its subcommands.
fn write_pages(command: &Command, section: &str, dir: &Path, more: &str) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write_pages(subcommand, section, dir, "")?;
    }
    let page = Man::new(command.clone()).section(section);
    let mut text = Vec::new();
    page.render(&mut text)?;
    text.extend_from_slice(more.as_bytes());
    fs::write(dir.join(page.get_filename()), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page_and_every_shell_a_completion() {
        let hidden = Command::new("secret").hide(true);
        let command =
            Command::new("tool").about("Does it").subcommand(Command::new("flows").about("All")).subcommand(hidden);
        let dir = tempfile::tempdir().unwrap();
        generate(command.name("sockeyectl"), "sockeyectl", "1", dir.path()).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        let mut pages: Vec<_> =
            fs::read_dir(dir.path().join("man")).unwrap().flatten().map(|file| file.file_name()).collect();
        pages.sort();
        assert_eq!(pages, ["sockeyectl-flows.1", "sockeyectl.1"]);
        let page = read("man/sockeyectl.1");
        assert!(page.contains("Does it") && page.contains("EXIT STATUS") && !page.contains("secret"), "{page}");
        for completion in ["bash/sockeyectl", "zsh/_sockeyectl", "fish/sockeyectl.fish"] {
            assert!(read(completion).contains("flows"), "{completion}");
        }
    }
}
