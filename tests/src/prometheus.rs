//! A real Prometheus, and pages of metrics as it reads them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Guard, free_port, slowness, wait_for};

/// Status, headers (lower case) and body of what is answered to a request.
///
/// # Panics
/// If there is no answer.
#[must_use]
pub fn get(port: u16, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the agent listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

/// Headers and body of the metrics.
///
/// # Panics
/// If they are refused.
#[must_use]
pub fn metrics(port: u16, accept: &str) -> (String, String) {
    let (status, head, body) = get(port, &format!("GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n"));
    assert_eq!(status, 200, "{body}");
    (head, body)
}

/// The value of a sample of a page.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn sample(page: &str, series: &str) -> f64 {
    let line = page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("{series} is missing"));
    line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).expect("a number")
}

/// Sum of the samples of a metric that have these labels.
#[must_use]
pub fn sum(page: &str, metric: &str, labels: &[&str]) -> f64 {
    let of_it = |line: &&str| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{'));
    let lines = page.lines().filter(of_it).filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Prometheus, which scrapes one agent every second.
pub struct Prometheus {
    url: String,
    _process: Guard,
    _dir: TempDir,
}

impl Prometheus {
    /// Starts it, and waits for its first scrape of this port.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(target: u16) -> Self {
        let (dir, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: sockeye\n  \
             static_configs: [{{targets: ['127.0.0.1:{target}']}}]\n"
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).expect("a file");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus: Debian's package, without its service");
        let prometheus = Self { url: format!("http://127.0.0.1:{port}"), _process: Guard(child), _dir: dir };
        wait_for("scrape", Duration::from_secs(30), || (prometheus.query("up") == Some(1.0)).then_some(()));
        prometheus
    }

    /// The one value that a query has; `None` if it has none.
    ///
    /// # Panics
    /// If it has several.
    #[must_use]
    pub fn query(&self, query: &str) -> Option<f64> {
        let mut child = Command::new("curl")
            .args(["-sG", &format!("{}/api/v1/query", self.url), "--data-urlencode", &format!("query={query}")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl");
        let mut text = String::new();
        child.stdout.take().expect("a pipe").read_to_string(&mut text).expect("text");
        let _ = child.wait();
        let answer: Value = serde_json::from_str(&text).ok()?;
        let result = answer["data"]["result"].as_array()?;
        assert!(result.len() <= 1, "{query}: {result:#?}");
        result.first()?["value"][1].as_str()?.parse().ok()
    }

    /// Waits until a query has a value.
    ///
    /// # Panics
    /// If that does not happen within half a minute.
    pub fn wait_until(&self, query: &str, wanted: f64) {
        let mut last = None;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) * slowness() {
            last = self.query(query);
            if last == Some(wanted) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{query} is {last:?}, and not {wanted}");
    }
}
