//! Where lines go, as the command line says it.

use std::fmt;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use crate::model::text::clean;

/// Longest path of a Unix socket, bytes (unix(7), without the NUL).
const SOCKET_PATH_MAX: usize = 107;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `-`: standard output.
    Stdout,
    /// A file, which is made if there is none, and appended to.
    File(PathBuf),
    /// `unix:PATH`: a stream socket at which somebody listens.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdout);
        }
        let Some(path) = text.strip_prefix("unix:") else {
            return if text.is_empty() {
                Err("give a file, - or unix:PATH".into())
            } else {
                Ok(Self::File(text.into()))
            };
        };
        // unix:///run/x.sock, as others have it.
        let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
        if !path.starts_with('/') {
            return Err(format!("{:?} is no path of a socket: write unix:/PATH", clean(path.as_bytes())));
        }
        if path.len() > SOCKET_PATH_MAX {
            return Err(format!(
                "the path of a socket has {SOCKET_PATH_MAX} bytes at most, and this one {}",
                path.len()
            ));
        }
        Ok(Self::Unix(path.into()))
    }
}

impl Target {
    /// Whoever reads need not be there yet.
    pub(super) fn may_come_later(&self) -> bool {
        match self {
            Self::Stdout => false,
            Self::File(path) => fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo()),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::File(path) => clean(path.as_os_str().as_encoded_bytes()).fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", clean(path.as_os_str().as_encoded_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_shown() {
        let read = |text: &str| text.parse::<Target>();
        assert_eq!(read("-"), Ok(Target::Stdout));
        assert_eq!(read("flows.json"), Ok(Target::File("flows.json".into())));
        for text in ["unix:/run/x.sock", "unix:///run/x.sock"] {
            let target = read(text).unwrap();
            assert_eq!((&target, &*target.to_string()), (&Target::Unix("/run/x.sock".into()), "unix:/run/x.sock"));
        }
        assert_eq!(read("").unwrap_err(), "give a file, - or unix:PATH");
        assert!(read("unix:x").unwrap_err().contains("write unix:/PATH"));
        assert!(
            read(&format!("unix:/{}", "x".repeat(107))).unwrap_err().contains("107 bytes at most, and this one 108")
        );
    }
}
