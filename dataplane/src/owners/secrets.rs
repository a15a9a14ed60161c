//! Secrets in command lines: which parts they are, and what stands there instead.
//!
//! Read from left to right, once. What tells of a secret is the name of an option, a variable or a field (`names.rs`),
//! an option or argument of a known program (`clients.rs`), a URL with a password, or the form of a token. In doubt
//! the value is masked.

mod clients;
mod fields;
mod names;
#[cfg(test)]
mod tests;

use std::ops::Range;

use self::clients::{Arguments, Client, Form};

/// What stands in place of a secret.
pub const MASK: &str = "***";

/// How much of a value is secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// All of it.
    Secret,
    /// What follows the first of these: `user:password`.
    After(char),
    /// As openssl has them: `pass:` is followed by the secret, `file:`, `env:` and `fd:` say where it is.
    Reference,
    /// All, unless it is a path.
    NoPath,
    /// All, unless it is a number.
    NoNumber,
    /// All, unless it describes where the secret comes from: `id=NAME,src=PATH`.
    NoList,
    /// All, unless it is the name of a file: cookies have a `=`.
    Cookie,
}

/// Masks the secrets in the arguments of a process, the program first; bytes that are shown stay as they are. `cut`: the
/// last argument goes on beyond what is known, so that it may not show yet that it has a secret.
#[must_use]
pub fn mask<T: AsRef<str>>(arguments: &[T], cut: bool) -> Vec<String> {
    let mut masker = Masker::default();
    let mut is_script = arguments.len() == 1;
    let last = arguments.len().saturating_sub(1);
    let mask = |(index, argument): (usize, &T)| {
        let argument = argument.as_ref();
        masker.cut = cut && index == last;
        // A title that a process has given itself, or the script of a shell, is a command line of its own.
        let whole = !(is_script && argument.contains(char::is_whitespace));
        is_script = is_script_option(argument);
        masker.argument(argument, whole)
    };
    arguments.iter().enumerate().map(mask).collect()
}

/// `-c`, `-lc`: of a shell and its like.
fn is_script_option(argument: &str) -> bool {
    let letters = argument.strip_prefix('-').and_then(|rest| rest.strip_suffix('c'));
    letters.is_some_and(|letters| letters.len() < 6 && letters.bytes().all(|b| b.is_ascii_lowercase()))
}

/// What was read so far.
#[derive(Default)]
struct Masker {
    client: Option<&'static Client>,
    /// The word after which the client's rules hold was there.
    is_after: bool,
    /// Arguments of the client that are no options, since they are counted.
    positions: Option<usize>,
    /// What the next word is.
    wanted: Option<Value>,
    /// SQL: `IDENTIFIED`.
    identified: bool,
    cut: bool,
}

impl Masker {
    /// `whole`: it is one argument, blanks and all, of a program; else words, as of a shell.
    fn argument(&mut self, text: &str, whole: bool) -> String {
        let mut out = String::with_capacity(text.len());
        self.identified = false;
        if whole
            && !is_long_option(text)
            && let Some(value) = self.wanted.take()
            && self.value(value, text, &mut out)
        {
            // An option after all, as in `--password -a SECRET`, still has its value.
            self.wanted =
                self.option(text, &(0..text.len())).filter(|(at, _)| *at == text.len()).map(|(_, value)| value);
            return out;
        }
        let mut at = 0;
        while at < text.len() {
            let word = at + text[at..].find(|c: char| !c.is_whitespace()).unwrap_or(text.len() - at);
            out.push_str(&text[at..word]);
            let end = word + text[word..].find(char::is_whitespace).unwrap_or(text.len() - word);
            at = if word < end { self.word(text, word..end, whole && word == 0, &mut out) } else { end };
        }
        out
    }

    /// Masks a word, and what belongs to it beyond; returns where it goes on.
    fn word(&mut self, text: &str, word: Range<usize>, first: bool, out: &mut String) -> usize {
        let is_value = !is_long_option(&text[word.clone()]);
        if is_value && let Some(value) = self.wanted.take() {
            let end = self.value_end(text, word.start);
            if self.value(value, &text[word.start..end], out) {
                return end;
            }
        }
        self.wanted = None;
        if let Some((begin, value)) = self.option(text, &word) {
            out.push_str(&text[word.start..begin]);
            if begin == word.end {
                self.wanted = Some(value);
                return word.end;
            }
            let end = if first { text.len() } else { self.value_end(text, begin) };
            if self.value(value, &text[begin..end], out) {
                return end;
            }
            return self.fields(text, begin..word.end, first, out);
        }
        if self.position(&text[word.clone()], out) {
            return word.end;
        }
        self.fields(text, word, first, out)
    }

    /// Whether a word is an option with a secret, and where that begins: at the end of the word, if it is the next one.
    fn option(&mut self, text: &str, word: &Range<usize>) -> Option<(usize, Value)> {
        let all = &text[word.clone()];
        let shown = all.trim_start_matches(is_opening);
        let begin = word.end - shown.len();
        if let Some(client) = self.client.filter(|client| client.after.is_none() || self.is_after) {
            let found = client.rules.iter().find_map(|rule| {
                let rest = after_option(shown, rule.option, client.switches)?;
                let rest = rest.strip_prefix('=').filter(|_| rule.option.len() > 2).unwrap_or(rest);
                match (rest.is_empty(), rule.form) {
                    (true, Form::Next | Form::Both) => Some((word.end, rule.value)),
                    (false, Form::Glued | Form::Both) => Some((word.end - rest.len(), rule.value)),
                    _ => None,
                }
            });
            if found.is_some() {
                return found;
            }
        }
        let name = shown.trim_end_matches(is_opening);
        let is_name = |name: &str| name.bytes().all(is_of_name);
        if let Some(name) = name.strip_prefix('-') {
            return is_name(name).then(|| names::value_of(name)).flatten().map(|value| (word.end, value));
        }
        if self.client.is_some_and(|client| client.arguments == Arguments::Named) && is_name(name) {
            return names::value_of(name).map(|value| (word.end, value));
        }
        // SQL: PASSWORD 'secret', IDENTIFIED BY 'secret'.
        let rest = text[word.end..].trim_start();
        let is_sql =
            rest.starts_with(['\'', '"']) && (self.identified && name.eq_ignore_ascii_case("by") || is_name(name));
        self.identified |= name.eq_ignore_ascii_case("identified");
        if is_sql && begin == word.start {
            let by = self.identified && ["by", "as"].iter().any(|word| name.eq_ignore_ascii_case(word));
            let value = if by { Some(Value::Secret) } else { names::value_of(name) };
            return value.map(|value| (word.end, value));
        }
        None
    }

    /// Takes a word that is no option: it may be a program, or a secret by where it stands. Whether it was written.
    fn position(&mut self, word: &str, out: &mut String) -> bool {
        let bare = word.trim_matches(is_opening);
        if bare.starts_with('-') {
            return false;
        }
        let client = self.client;
        match client.map(|client| client.arguments) {
            Some(Arguments::Nth(_, nth))
                if self.positions.is_some_and(|seen| seen + 1 == nth) && !(nth == 1 && bare.contains('=')) =>
            {
                self.positions = None;
                self.value(Value::Secret, word, out);
                return true;
            }
            Some(Arguments::Oracle)
                if bare.find(['/', '@']).is_some_and(|at| at > 0 && bare[at..].starts_with('/')) =>
            {
                let begin = word.find('/').map_or(word.len(), |at| at + 1);
                let end = word[begin..].find('@').map_or(word.len(), |at| begin + at);
                out.push_str(&word[..begin]);
                self.value(Value::Secret, &word[begin..end], out);
                out.push_str(&word[end..]);
                return true;
            }
            _ => {}
        }
        self.positions = self.positions.map(|seen| seen + 1);
        if let Some(client) = client {
            self.is_after |= client.after == Some(bare);
            if matches!(client.arguments, Arguments::Nth(words, _) if words.contains(&bare)) {
                self.positions = Some(0);
            }
        }
        let name = bare.rsplit(['/', '\\']).next().unwrap_or_default();
        let name = name.strip_suffix(".exe").unwrap_or(name);
        if let Some(client) = clients::find(name) {
            self.client = Some(client);
            self.is_after = false;
            self.positions = matches!(client.arguments, Arguments::Nth([], _)).then_some(0);
        }
        false
    }

    /// Masks what is secret by its form or by the name before it, anywhere in a word. `first`: the word begins a whole
    /// argument. Returns where it goes on.
    fn fields(&mut self, text: &str, word: Range<usize>, first: bool, out: &mut String) -> usize {
        let mut at = word.start;
        // Whether the argument is `name=`, or several of them, up to here: then its value is all the rest.
        let mut is_chain = first;
        while at < word.end {
            let byte = text.as_bytes()[at];
            if !is_of_name(byte) {
                is_chain &= byte == b'=';
                let next = at + text[at..].chars().next().map_or(1, char::len_utf8);
                out.push_str(&text[at..next]);
                at = next;
                continue;
            }
            let end = at + text[at..].bytes().position(|b| !is_of_name(b)).unwrap_or(text.len() - at);
            let name = &text[at..end];
            let secret = self.token(text, at..end).or_else(|| self.address(text, at..end, &word));
            let secret =
                secret.or_else(|| self.field(text, at..end, is_chain).map(|(begin, end, value)| (begin..end, value)));
            if let Some((span, value)) = secret
                && self.secret_of(value, &text[span.clone()]).is_some()
            {
                out.push_str(&text[at..span.start]);
                self.value(value, &text[span.clone()], out);
                at = span.end;
                is_chain = false;
                continue;
            }
            out.push_str(name);
            if end == word.end && name.eq_ignore_ascii_case("bearer") {
                self.wanted = Some(Value::Secret);
            }
            at = end;
        }
        at
    }
}

/// What a shell may have around a word.
fn is_opening(c: char) -> bool {
    matches!(c, '"' | '\'' | '`' | '(' | ')' | '{' | '}' | '$' | ';' | '|')
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

fn is_long_option(word: &str) -> bool {
    let name = word.strip_prefix("--").map_or("", |rest| rest.split('=').next().unwrap_or_default());
    name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(is_of_name)
}

/// What follows a short option, perhaps behind switches, or a long one.
fn after_option<'a>(word: &'a str, option: &str, switches: &str) -> Option<&'a str> {
    if let Some(rest) = word.strip_prefix(option) {
        let is_long = option.starts_with("--");
        return (!is_long || rest.is_empty() || rest.starts_with('=')).then_some(rest);
    }
    let letter = option.strip_prefix('-').filter(|letter| letter.len() == 1)?;
    let rest = word.strip_prefix('-')?;
    let at = rest.find(|c: char| !switches.contains(c))?;
    rest[at..].strip_prefix(letter)
}
