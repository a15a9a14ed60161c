//! What the name of an option or a variable says of its value.

use super::Value;

/// Longest name that is read; of a longer one the end, which says what it is.
const NAME_MAX: usize = 96;
const WORDS_MAX: usize = 16;

/// A word that ends with one of these names a secret.
const NOUNS: [&str; 17] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "passwort",
    "pass",
    "pwd",
    "pw",
    "secret",
    "token",
    "authorization",
    "credential",
    "cookie",
    "masterauth",
    "passkey",
    "wpapsk",
    "userpwd",
];
/// A word that is one of these does.
const WHOLE_NOUNS: [&str; 9] = ["psk", "jwt", "otp", "totp", "pin", "bearer", "community", "creds", "auth"];
/// What makes a secret of a key: `api-key`, `apikey`, `AccountKey`.
const SECRET_KEYS: [&str; 30] = [
    "api",
    "access",
    "secret",
    "private",
    "signing",
    "encryption",
    "encrypt",
    "master",
    "auth",
    "preauth",
    "license",
    "shared",
    "account",
    "storage",
    "subscription",
    "crypt",
    "crypto",
    "deploy",
    "app",
    "application",
    "session",
    "cipher",
    "hmac",
    "aes",
    "webhook",
    "ingest",
    "consumer",
    "function",
    "ssh",
    "service",
];
/// They end like a noun, and are none.
const LOOK_ALIKE: [&str; 8] =
    ["bypass", "compass", "encompass", "surpass", "trespass", "underpass", "overpass", "multipass"];
/// With one of these behind the noun, the value is about a secret, and is none.
const ABOUT: [&str; 100] = [
    "kubeconfig",
    "config",
    "file",
    "files",
    "filename",
    "path",
    "paths",
    "dir",
    "directory",
    "folder",
    "ttl",
    "url",
    "uri",
    "urls",
    "endpoint",
    "name",
    "names",
    "id",
    "ids",
    "type",
    "types",
    "length",
    "len",
    "min",
    "max",
    "size",
    "timeout",
    "expiry",
    "expires",
    "expire",
    "expiration",
    "age",
    "interval",
    "policy",
    "stdin",
    "prompt",
    "fd",
    "env",
    "var",
    "command",
    "cmd",
    "program",
    "helper",
    "store",
    "manager",
    "provider",
    "mode",
    "method",
    "methods",
    "algorithm",
    "alg",
    "format",
    "encoding",
    "count",
    "limit",
    "lifetime",
    "rotation",
    "rotate",
    "refresh",
    "required",
    "enabled",
    "disabled",
    "enable",
    "disable",
    "only",
    "ref",
    "version",
    "namespace",
    "label",
    "header",
    "field",
    "column",
    "claim",
    "audience",
    "issuer",
    "scope",
    "scopes",
    "server",
    "host",
    "port",
    "bits",
    "rounds",
    "complexity",
    "hint",
    "check",
    "validation",
    "validator",
    "class",
    "plugin",
    "source",
    "location",
    "mount",
    "volume",
    "arn",
    "region",
    "cache",
    "budget",
    "jar",
    "auth",
    "authentication",
];
/// With one of these before it, it is a switch or a limit.
const SWITCHES: [&str; 18] = [
    "no", "not", "without", "ask", "prompt", "enable", "disable", "skip", "generate", "gen", "show", "print", "allow",
    "need", "has", "min", "num", "is",
];

/// A name in lower case, in words: `DB_PASSWORD`, `db-password` and `dbPassword` are two each.
struct Name {
    letters: [u8; NAME_MAX],
    length: usize,
    ends: [usize; WORDS_MAX],
    words: usize,
}

impl Name {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let bytes = &bytes[bytes.len().saturating_sub(NAME_MAX)..];
        let mut name = Self { letters: [0; NAME_MAX], length: 0, ends: [0; WORDS_MAX], words: 0 };
        let mut before = 0;
        for &byte in bytes {
            if !byte.is_ascii_alphanumeric() || byte.is_ascii_uppercase() && before_is_lower(before) {
                name.end_word();
            }
            if byte.is_ascii_alphanumeric() {
                name.letters[name.length] = byte.to_ascii_lowercase();
                name.length += 1;
            }
            before = byte;
        }
        name.end_word();
        name
    }

    fn end_word(&mut self) {
        let begun = if self.words == 0 { 0 } else { self.ends[self.words - 1] };
        if self.length == begun {
            return;
        }
        // Of more words than there is room for, the last ones are one.
        self.words = (self.words + 1).min(WORDS_MAX);
        self.ends[self.words - 1] = self.length;
    }

    fn word(&self, index: usize) -> &str {
        let begin = if index == 0 { 0 } else { self.ends[index - 1] };
        std::str::from_utf8(&self.letters[begin..self.ends[index]]).unwrap_or_default()
    }
}

fn before_is_lower(before: u8) -> bool {
    before.is_ascii_lowercase() || before.is_ascii_digit()
}

/// What the value of something with this name is; `None`: it is shown.
pub(super) fn value_of(name: &str) -> Option<Value> {
    let name = name.trim_start_matches('-');
    if name.len() < 2 {
        return None;
    }
    let words = Name::new(name);
    let first = (words.words > 1).then(|| words.word(0));
    if first.is_some_and(|first| SWITCHES.contains(&first)) {
        return None;
    }
    // The last noun counts: of `token-password` the password.
    let found = (0..words.words).rev().find_map(|index| Some((index, noun(&words, index)?)));
    let (index, value) = found?;
    let about = (index + 1..words.words).any(|after| is_about(words.word(after)));
    // Of secrets that Vault calls so, the id is the secret.
    let before = index.checked_sub(1).map_or("", |before| words.word(before));
    let is_secret_id = words.word(index) == "secret" || before == "root" && words.word(index) == "token";
    if about && !(is_secret_id && index + 2 == words.words && words.word(index + 1) == "id") {
        return None;
    }
    // OpenVPN's has a file.
    if name == "auth-user-pass" {
        return Some(Value::NoPath);
    }
    // npm's `_auth` has all of it in base64.
    if name.ends_with(":_auth") || name == "_auth" { Some(Value::Secret) } else { Some(value) }
}

fn is_about(word: &str) -> bool {
    ABOUT.contains(&word)
}

fn noun(name: &Name, index: usize) -> Option<Value> {
    let word = name.word(index).trim_end_matches(|c: char| c.is_ascii_digit());
    if LOOK_ALIKE.contains(&word) {
        return None;
    }
    match word {
        "auth" | "creds" => return Some(Value::After(':')),
        "credential" | "credentials" | "pwd" | "oldpwd" => return Some(Value::NoPath),
        "tokens" => return Some(Value::NoNumber),
        "pass" => return Some(Value::Reference),
        "secret" => return Some(Value::NoList),
        "key" if index > 0 => {
            return SECRET_KEYS.contains(&name.word(index - 1)).then_some(Value::NoPath);
        }
        _ => {}
    }
    let singular = word.strip_suffix('s').filter(|word| !word.ends_with('s')).unwrap_or(word);
    if WHOLE_NOUNS.contains(&word) || NOUNS.iter().any(|noun| word.ends_with(noun) || singular.ends_with(noun)) {
        return Some(Value::Secret);
    }
    let before_key = word.strip_suffix("key").filter(|before| !before.is_empty())?;
    SECRET_KEYS.iter().any(|secret| before_key.ends_with(secret)).then_some(Value::NoPath)
}
