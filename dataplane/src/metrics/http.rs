//! As much of HTTP/1.1 as a scraper or a probe needs: one request for each connection, all of it before a deadline.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest head of a request, bytes.
const HEAD_MAX: usize = 8 << 10;
/// Most header lines.
const HEADERS_MAX: usize = 64;
/// What a client may send after its head before the connection is simply closed, bytes.
const REST_MAX: usize = 64 << 10;
/// How long the rest is waited for.
const REST_WAIT: Duration = Duration::from_secs(1);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without what follows a question mark.
    pub(super) path: String,
    /// All `Accept` headers.
    pub(super) accept: String,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(super) struct Response {
    pub(super) code: u16,
    pub(super) content_type: &'static str,
    pub(super) body: Arc<str>,
}

impl Response {
    /// A line of text.
    pub(super) fn text(code: u16, text: &str) -> Self {
        Self { code, content_type: "text/plain; charset=utf-8", body: format!("{text}\n").into() }
    }

    fn head(&self) -> String {
        let reason = match self.code {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let allow = if self.code == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        let (code, kind, length) = (self.code, self.content_type, self.body.len());
        format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
    }
}

/// Reads a request's head. A client that hangs up before it has asked is no request.
///
/// # Errors
/// What to answer if it is not understood, too long, or too late.
pub(super) fn read(mut stream: &TcpStream, until: Instant) -> Result<Option<Request>, Response> {
    let mut head = Vec::with_capacity(1024);
    let mut part = [0; 2048];
    loop {
        let late = || Response::text(408, "the request came too slowly");
        let _ = stream.set_read_timeout(Some(left(until).ok_or_else(late)?));
        match stream.read(&mut part) {
            Ok(0) => return Ok(None),
            Ok(read) => head.extend_from_slice(&part[..read]),
            Err(err) if err.kind() == ErrorKind::Interrupted => continue,
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(late()),
            Err(_) => return Ok(None),
        }
        if let Some(request) = parse(&head)? {
            return Ok(Some(request));
        }
        if head.len() >= HEAD_MAX {
            return Err(Response::text(431, &format!("a request has at most {HEAD_MAX} bytes")));
        }
    }
}

/// What the head says, once it is whole.
///
/// # Errors
/// What to answer if it is none.
pub(super) fn parse(head: &[u8]) -> Result<Option<Request>, Response> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(err) => return Err(Response::text(400, &format!("the request is not understood: {err}"))),
    }
    let accept = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("accept"));
    let accept: Vec<_> = accept.map(|header| String::from_utf8_lossy(header.value)).collect();
    let path = request.path.unwrap_or_default().split(['?', '#']).next().unwrap_or_default();
    Ok(Some(Request {
        method: request.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        accept: accept.join(","),
    }))
}

/// Answers, and closes the connection so that the client gets all of it. `whole`: with the body.
///
/// # Errors
/// If the client is gone, or does not read in time.
pub(super) fn answer(stream: &TcpStream, response: &Response, whole: bool, until: Instant) -> io::Result<()> {
    write(stream, response.head().as_bytes(), until)?;
    if whole {
        write(stream, response.body.as_bytes(), until)?;
    }
    stream.shutdown(Shutdown::Write)?;
    drain(stream, until.min(Instant::now() + REST_WAIT));
    Ok(())
}

fn write(mut stream: &TcpStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(until).ok_or(ErrorKind::TimedOut)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(err) if err.kind() == ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// What was not read when a socket is closed makes the kernel send a reset, and the client may lose the answer by it.
fn drain(mut stream: &TcpStream, until: Instant) {
    let mut part = [0; 4096];
    let mut total = 0;
    while let Some(left) = left(until) {
        let _ = stream.set_read_timeout(Some(left));
        match stream.read(&mut part) {
            Ok(read) if read > 0 && total < REST_MAX => total += read,
            _ => return,
        }
    }
}

/// Time until then. A timeout of zero would be none.
fn left(until: Instant) -> Option<Duration> {
    until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_read_and_faults_are_named() {
        let head = "GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: a/b\r\naccept: c/d;q=0.5\r\n\r\n";
        let request = parse(head.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (request.method.as_str(), request.path.as_str(), request.accept.as_str()),
            ("GET", "/metrics", "a/b,c/d;q=0.5")
        );
        for end in 0..head.len() {
            assert!(parse(&head.as_bytes()[..end]).unwrap().is_none());
        }
        assert_eq!(parse(b"\x16\x03\x01\x02\x00").unwrap_err().code, 400, "TLS");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(parse(many.as_bytes()).unwrap_err().code, 400);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(head in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&head);
        }
    }
}
