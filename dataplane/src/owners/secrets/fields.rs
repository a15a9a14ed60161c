//! What is a secret by its form or by the name before it, wherever it stands, and where it ends.

use std::ops::Range;

use super::{MASK, Masker, Value, is_of_name, names};

/// Beginnings of tokens that say themselves what they are.
const TOKENS: [&str; 22] = [
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "gldt-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xoxs-",
    "xapp-",
    "hvs.",
    "hvb.",
    "dckr_pat_",
    "npm_",
    "pypi-",
    "AIza",
    "sk-ant-",
    "sk-proj-",
    "eyJ",
];
/// They are longer than this.
const TOKEN_MIN: usize = 16;
/// From this length on, who is named in a URL without a password is taken for a token.
const LONG_USER: usize = 20;

impl Masker {
    /// A token that says itself what it is.
    pub(super) fn token(&self, text: &str, span: Range<usize>) -> Option<(Range<usize>, Value)> {
        let name = &text[span.clone()];
        if name.len() <= TOKEN_MIN && !self.cut || text[span.end..].starts_with('=') {
            return None;
        }
        TOKENS.iter().any(|beginning| name.starts_with(beginning)).then_some((span, Value::Secret))
    }

    /// The password in `scheme://user:password@host`, and in `user:password@host`. `span`: what may be scheme or user.
    pub(super) fn address(&self, text: &str, span: Range<usize>, word: &Range<usize>) -> Option<(Range<usize>, Value)> {
        let rest = &text[span.end..word.end];
        let has_scheme = rest.starts_with("://");
        if rest.starts_with(':') && text[..span.start].ends_with("oracle:") {
            let begin = span.end + rest.find('/')? + 1;
            let end = text[begin..word.end].find('@').map_or(word.end, |at| begin + at);
            return (begin < end).then_some((begin..end, Value::Secret));
        }
        let at_begin = span.start == word.start || text[..span.start].ends_with(['=', '"', '\'', '(', ',']);
        let may_be_user = rest.starts_with(':') && at_begin && &text[span.clone()] != "jdbc";
        if !has_scheme && !may_be_user {
            return None;
        }
        let begin = if has_scheme { span.end + 3 } else { span.start };
        let all = &text[begin..word.end];
        let (authority, beyond) = all.split_at(all.find(['/', '?', '#']).unwrap_or(all.len()));
        let colon = authority.find(':').filter(|_| !authority.starts_with('['));
        let is_port = colon.is_some_and(|colon| authority[colon + 1..].bytes().all(|b| b.is_ascii_digit()));
        let sign = authority.rfind('@');
        let sign =
            sign.or_else(|| colon.filter(|_| !is_port).and_then(|colon| all.rfind('@').filter(|at| *at > colon)));
        let is_cut = self.cut && word.end == text.len();
        let secret = |from: usize, to: usize| (from < to).then_some((begin + from..begin + to, Value::Secret));
        match (colon, sign) {
            (Some(colon), Some(sign)) if colon < sign => {
                // An image of a container, by its digest.
                let is_digest = !has_scheme && all[sign..].starts_with("@sha256");
                secret(colon + 1, sign).filter(|_| !is_digest)
            }
            (_, Some(sign)) if has_scheme => secret(0, sign).filter(|_| sign >= LONG_USER),
            // What is not known yet may have the sign.
            (Some(colon), None) if is_cut && (!is_port || beyond.is_empty()) => secret(colon + 1, all.len()),
            (None, None) if is_cut && has_scheme && beyond.is_empty() => secret(0, all.len()),
            _ => None,
        }
    }

    /// `name=value`, `name: value`, `"name": "value"` with the name of a secret: where the value is.
    pub(super) fn field(&self, text: &str, name: Range<usize>, is_chain: bool) -> Option<(usize, usize, Value)> {
        let bytes = text.as_bytes();
        let quote = name.start.checked_sub(1).map(|before| bytes[before]).filter(|b| is_quote(char::from(*b)));
        let is_quoted = quote.is_some() && bytes.get(name.end) == quote.as_ref();
        let behind = name.end + usize::from(is_quoted);
        let sign = behind + blanks(&text[behind..]);
        let is_equal = match bytes.get(sign)? {
            b'=' => true,
            b':' => false,
            _ => return None,
        };
        let begin = sign + 1 + blanks(&text[sign + 1..]);
        if begin >= text.len()
            || is_equal && !is_quoted && sign > behind && !text[..name.start].ends_with([' ', '\'', '"', ',', '{'])
        {
            return None;
        }
        let value = &text[begin..];
        // A volume of a container, a part of a URL.
        if !is_equal && !is_quoted && (value.starts_with('/') || text[..name.start].ends_with('/')) {
            return None;
        }
        let known = names::value_of(&text[name.clone()]).or_else(|| of_query(text, &name, is_equal))?;
        let end = if is_chain {
            text.len()
        } else if !is_quoted && let Some(quote) = quote {
            begin + closing(value, quote).unwrap_or(value.len())
        } else if is_quoted && let Some(quote) = value.chars().next().filter(|c| is_quote(*c)) {
            begin + closing(&value[1..], quote as u8).map_or(value.len(), |end| end + 2)
        } else {
            self.scheme_end(text, begin, self.value_end(text, begin))
        };
        (begin < end).then_some((begin, end, known))
    }

    /// The end of `Bearer TOKEN`, which is one value.
    fn scheme_end(&self, text: &str, begin: usize, end: usize) -> usize {
        let is_scheme = ["bearer", "basic", "token", "digest", "negotiate", MASK]
            .iter()
            .any(|s| text[begin..end].eq_ignore_ascii_case(s));
        let next = end + blanks(&text[end..]);
        if is_scheme && next > end && next < text.len() && &text[begin..end] != MASK {
            self.value_end(text, next)
        } else {
            end
        }
    }

    /// The end of a value among others: a blank, or a sign behind which the next one begins. Quotes hold it together.
    pub(super) fn value_end(&self, text: &str, begin: usize) -> usize {
        let mut at = begin;
        while let Some(c) = text[at..].chars().next() {
            let next = at + c.len_utf8();
            if c.is_whitespace() {
                break;
            }
            if is_quote(c) {
                match closing(&text[next..], c as u8) {
                    // It may go on behind the quote, as in a shell.
                    Some(end) => {
                        at = next + end + 1;
                        continue;
                    }
                    None if at == begin || self.cut => return text.len(),
                    None => {}
                }
            }
            if matches!(c, '&' | ';' | ',') && at > begin {
                let rest = text[next..].trim_start_matches(' ');
                let name = rest.bytes().position(|b| !is_of_name(b)).unwrap_or(rest.len());
                if rest.starts_with(['"', '\'']) || name > 0 && rest[name..].starts_with('=') {
                    break;
                }
            }
            at = next;
        }
        at
    }

    /// Writes a value without what is secret of it; nothing if all of it may be shown.
    pub(super) fn value(&self, value: Value, text: &str, out: &mut String) -> bool {
        let Some(begin) = self.secret_of(value, text) else { return false };
        let (shown, secret) = text.split_at(begin);
        out.push_str(shown);
        mask_value(secret, out);
        true
    }

    /// Where the secret in a value begins, which goes on to its end.
    pub(super) fn secret_of(&self, value: Value, text: &str) -> Option<usize> {
        let bare = text.trim_start_matches(['"', '\'']);
        // Of a switch.
        if !self.cut && matches!(text, "true" | "false") {
            return None;
        }
        match value {
            Value::Secret => Some(0),
            Value::After(sign) => text.find(sign).map(|at| at + sign.len_utf8()),
            Value::Reference if bare.starts_with("pass:") => Some(text.len() - bare.len() + 5),
            Value::Reference => {
                (!["file:", "env:", "fd:", "stdin"].iter().any(|place| bare.starts_with(place))).then_some(0)
            }
            Value::NoPath => {
                let is_path = ["/", "./", "../", "~", "@", "file:"].iter().any(|beginning| bare.starts_with(beginning));
                (!is_path || bare.ends_with('=') || self.cut).then_some(0)
            }
            Value::NoNumber => {
                (self.cut || !bare.trim_end_matches(['"', '\'']).bytes().all(|b| b.is_ascii_digit())).then_some(0)
            }
            Value::NoList => {
                (!["id=", "type=", "src=", "source="].iter().any(|key| bare.starts_with(key))).then_some(0)
            }
            Value::Cookie => (self.cut || text.contains('=')).then_some(0),
        }
    }
}

/// Writes the mask for a value that is not empty, in its quotes.
fn mask_value(secret: &str, out: &mut String) {
    let quote = secret.chars().next().filter(|c| is_quote(*c));
    let Some(quote) = quote else {
        out.push_str(if secret.is_empty() { "" } else { MASK });
        return;
    };
    out.push(quote);
    let inside = &secret[1..];
    out.push_str(if inside.is_empty() || inside == "'" || inside == "\"" { "" } else { MASK });
    if inside.ends_with(quote) {
        out.push(quote);
    }
}

/// A signature in the query of a URL stands for the secret that it was made with.
fn of_query(text: &str, name: &Range<usize>, is_equal: bool) -> Option<Value> {
    let word = text[name.clone()].rsplit('-').next().unwrap_or_default();
    let is_signature = ["sig", "signature"].iter().any(|known| word.eq_ignore_ascii_case(known));
    (is_equal && is_signature && text[..name.start].ends_with(['?', '&'])).then_some(Value::Secret)
}

/// The next quote that is not escaped, from the beginning of `text`.
fn closing(text: &str, quote: u8) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == quote && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped && quote != b'\'';
        is_end
    })
}

fn blanks(text: &str) -> usize {
    text.len() - text.trim_start_matches(' ').len()
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'')
}
