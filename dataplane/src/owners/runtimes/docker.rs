//! Docker Engine API, which Podman speaks too: `GET /containers/ID/json` and `GET /events`
//! (docs.docker.com/reference/api/engine, ContainerInspect and SystemEvents).
//!
//! hyper, and not a client library of the whole API: none of them limits the size of an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{HeaderMap, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use super::socket::{Place, Trouble};
use super::{cri, podman};
use crate::owners::cgroup::Runtime;
use crate::owners::workload::{Names, Pod, split_digest};

/// Longest answer that is read, bytes. Usual ones have 10,000.
pub(super) const ANSWER_MAX: usize = 2 << 20;
/// Longest event. It has the labels and nothing else.
const EVENT_MAX: usize = 256 << 10;
/// What is read of events in a second, bytes: a user's runtime may tell of them without end.
const EVENTS_PER_SECOND: usize = 1 << 20;
/// A new name counts as so many bytes: control looks for its container among all cgroups.
const RENAME_COSTS: usize = EVENTS_PER_SECOND / 32;
/// Most that hyper reads ahead, the head of an answer included.
const READ_AHEAD: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspection {
    name: String,
    #[serde(default)]
    config: Config,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    image: Option<String>,
    labels: Option<Labels>,
}

/// Labels that are read of an answer: as many short ones as fit into one would take 50 times its size.
const LABELS_MAX: usize = 1024;
/// What is read however many others there are.
const NEEDED: [&str; 7] =
    ["name", "image", podman::POD_ID, cri::POD_NAME, cri::POD_NAMESPACE, cri::POD_UID, cri::CONTAINER_NAME];

/// The first ones, which are those first by name as well: Docker and Podman sort them.
#[derive(Default)]
struct Labels(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for Labels {
    type Value = Self;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("labels")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if self.0.len() < LABELS_MAX || NEEDED.contains(&key.as_str()) {
                self.0.insert(key, value);
            }
        }
        Ok(self)
    }
}

/// What the runtime knows of a container; `None` if it knows none.
pub(super) async fn inspect(place: &Place, id: &str) -> Result<Option<Names>, Trouble> {
    let Some((head, body)) = fetch(place, &format!("/containers/{id}/json")).await? else { return Ok(None) };
    let mut names = read_inspection(&body)?;
    // Podman in the place of Docker: podman-docker(1).
    let server = head.get(header::SERVER).map_or(&[][..], |server| server.as_bytes());
    names.runtime = server.starts_with(b"Libpod/").then_some(Runtime::Podman);
    Ok(Some(names))
}

/// An answer, whole; `None` if there is no such thing.
pub(super) async fn fetch(place: &Place, path: &str) -> Result<Option<(HeaderMap, Bytes)>, Trouble> {
    let (response, _connection) = get(place, path).await?;
    match response.status() {
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::OK => {}
        status => return Err(format!("it answers with status {status}").into()),
    }
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|err| err.to_string())?;
    Ok(Some((head.headers, body.to_bytes())))
}

/// Which events of containers are wanted, as it stands in a URL.
pub(super) fn filters(events: &[&str], id: Option<&str>) -> String {
    let mut filters = BTreeMap::from([("type", vec!["container"]), ("event", events.to_vec())]);
    filters.extend(id.map(|id| ("container", vec![id])));
    let json = serde_json::to_string(&filters).unwrap_or_default();
    let escaped = json.bytes().map(|b| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    });
    escaped.collect()
}

/// Reads the answer about a container.
pub(crate) fn read_inspection(body: &[u8]) -> Result<Names, String> {
    serde_json::from_slice(body).map(names).map_err(|err| format!("its answer is not understood: {err}"))
}

/// What an event tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The container.
    pub(crate) id: String,
    /// What it is called now.
    pub(crate) names: Names,
    /// It was called otherwise before.
    pub(crate) renamed: bool,
}

/// Tells of each container at its creation, since one that is removed at its end can be gone before it is asked about,
/// and when its name changes.
pub(super) struct Events {
    body: Incoming,
    _connection: Ending,
    lines: Lines,
    second: Instant,
    taken: usize,
}

impl Events {
    /// What happens from now on, and what has happened since a moment, in seconds since 1970, as far as the runtime
    /// still knows.
    pub(super) async fn follow(place: &Place, since: u64) -> Result<Self, Trouble> {
        let filters = filters(&["create", "rename"], None);
        let (response, connection) = get(place, &format!("/events?since={since}&filters={filters}")).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("it answers with status {}", response.status()).into());
        }
        let (body, lines) = (response.into_body(), Lines::default());
        Ok(Self { body, _connection: connection, lines, second: Instant::now(), taken: 0 })
    }

    /// The next events; `None` is one that was too long. Nothing at all: the runtime has ended the stream.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Option<Told>>>, Trouble> {
        if self.taken >= EVENTS_PER_SECOND {
            let seconds = self.taken.div_ceil(EVENTS_PER_SECOND) as u64;
            tokio::time::sleep_until(self.second + Duration::from_secs(seconds)).await;
            (self.second, self.taken) = (Instant::now(), 0);
        }
        let Some(frame) = self.body.frame().await else { return Ok(None) };
        let mut events = Vec::new();
        if let Ok(data) = frame.map_err(|err| err.to_string())?.into_data() {
            self.lines.take_events(&data, |told| events.push(told));
            let renamed = events.iter().flatten().filter(|told| told.renamed).count();
            self.taken += data.len() + renamed * RENAME_COSTS;
        }
        Ok(Some(events))
    }
}

/// Puts lines together, none longer than an event.
#[derive(Default)]
pub(crate) struct Lines {
    line: Vec<u8>,
    /// The rest of a line that is too long.
    skipping: bool,
}

impl Lines {
    /// Tells of each event that ends in the data; `None` is one that is too long. What is no event is passed over.
    pub(crate) fn take_events(&mut self, data: &[u8], mut told: impl FnMut(Option<Told>)) {
        self.take(data, |line| match line.map(serde_json::from_slice::<Event>) {
            Some(Ok(event)) => told(Some(of_event(event))),
            Some(Err(_)) => {}
            None => told(None),
        });
    }

    /// Tells of each line that ends in the data, and once, with `None`, of one that is too long.
    fn take(&mut self, data: &[u8], mut told: impl FnMut(Option<&[u8]>)) {
        for part in data.split_inclusive(|b| *b == b'\n') {
            let ends = part.last() == Some(&b'\n');
            if !self.skipping && self.line.len() + part.len() > EVENT_MAX {
                self.skipping = true;
                self.line.clear();
                told(None);
            }
            if !self.skipping {
                self.line.extend_from_slice(part);
            }
            if ends {
                if !self.skipping {
                    told(Some(&self.line));
                }
                self.skipping = false;
                self.line.clear();
            }
        }
    }
}

/// The answer, and what keeps its connection.
pub(super) async fn get(place: &Place, path: &str) -> Result<(Response<Incoming>, Ending), Trouble> {
    let stream = place.connect().await?;
    let mut handshake = hyper::client::conn::http1::Builder::new();
    handshake.max_buf_size(READ_AHEAD);
    let (mut sender, connection) = handshake.handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
    let connection = Ending(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|err| err.to_string())?;
    let response = sender.send_request(request).await.map_err(|err| err.to_string())?;
    Ok((response, connection))
}

/// A connection that ends with the question, whatever the runtime does.
pub(super) struct Ending(tokio::task::JoinHandle<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default)]
    action: String,
    actor: Actor,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: Labels,
}

/// The attributes are the labels, with image and name among them.
fn of_event(event: Event) -> Told {
    let Labels(mut labels) = event.actor.attributes;
    let (name, image) = (labels.remove("name").unwrap_or_default(), labels.remove("image"));
    let renamed = event.action == "rename";
    if renamed {
        labels.remove("oldName");
    }
    let names = names(Inspection { name, config: Config { image, labels: Some(Labels(labels)) } });
    Told { id: event.actor.id, names, renamed }
}

fn names(inspection: Inspection) -> Names {
    let Labels(labels) = inspection.config.labels.unwrap_or_default();
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let pod = labels.contains_key(cri::POD_NAME).then(|| Pod {
        uid: label(cri::POD_UID),
        name: label(cri::POD_NAME),
        namespace: label(cri::POD_NAMESPACE),
        ..Pod::default()
    });
    let (image, image_digest) = split_digest(inspection.config.image.unwrap_or_default());
    let container = labels.get(cri::CONTAINER_NAME).filter(|_| pod.is_some()).cloned();
    Names {
        runtime: None,
        name: container.unwrap_or_else(|| inspection.name.trim_start_matches('/').to_owned()),
        image,
        image_digest,
        labels: labels.into_iter().collect(),
        pod,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_and_podman_say() {
        let docker = r#"{"Id":"1","Name":"/web","Config":{"Image":"nginx:1","Labels":{"a":"b"}},"More":[1]}"#;
        let found = names(serde_json::from_str(docker).unwrap());
        assert_eq!((found.name.as_str(), found.image.as_str(), found.labels.len()), ("web", "nginx:1", 1));
        let podman = r#"{"Name":"web","Config":{"Image":"i:1@sha256:0","Labels":null}}"#;
        let found = names(serde_json::from_str(podman).unwrap());
        assert_eq!([found.name, found.image, found.image_digest], ["web", "i:1", "sha256:0"]);
    }

    #[test]
    fn an_event_tells_as_much() {
        let text = r#"{"status":"create","Type":"container","Action":"create",
            "Actor":{"ID":"abc","Attributes":{"image":"bb:1","name":"short","tier":"front"}},"time":1}"#;
        let Told { id, names: found, renamed } = of_event(serde_json::from_str(text).unwrap());
        assert_eq!((id.as_str(), found.name.as_str(), found.image.as_str()), ("abc", "short", "bb:1"));
        assert_eq!((found.labels, renamed), (vec![("tier".to_owned(), "front".to_owned())], false));
    }

    #[test]
    fn filters_are_written_as_a_url_has_them() {
        // {"container":["abc"],"event":["create"],"type":["container"]}
        let escaped = "%7B%22container%22%3A%5B%22abc%22%5D%2C%22event%22%3A%5B%22create%22%5D%2C%22type%22%3A%5B%22container%22%5D%7D";
        assert_eq!(filters(&["create"], Some("abc")), escaped);
    }

    #[test]
    fn a_rename_tells_the_new_name() {
        let text = r#"{"status":"rename","Type":"container","Action":"rename",
            "Actor":{"ID":"abc","Attributes":{"image":"bb:1","name":"new","oldName":"/old"}}}"#;
        let told = of_event(serde_json::from_str(text).unwrap());
        assert_eq!((told.renamed, told.names.name.as_str(), told.names.labels.len()), (true, "new", 0));
    }

    #[test]
    fn a_line_without_end_is_left_out_and_the_next_one_is_read() {
        let mut lines = Lines::default();
        let (mut told, mut held) = (Vec::new(), 0);
        let endless = vec![b'x'; 10 << 10];
        let parts = [b"one\ntw".as_slice(), b"o\n"].into_iter().chain((0..1000).map(|_| endless.as_slice()));
        for part in parts.chain([b"y\nth".as_slice(), b"ree\n"]) {
            lines.take(part, |line| told.push(line.map(|line| String::from_utf8(line.into()).unwrap())));
            held = held.max(lines.line.capacity());
        }
        assert_eq!(told, [Some("one\n".into()), Some("two\n".into()), None, Some("three\n".into())]);
        assert!(held <= 2 * EVENT_MAX, "{held}");
    }

    #[test]
    fn of_many_labels_the_first_are_read_and_what_is_needed() {
        let many: Vec<String> = (0..100_000).map(|i| format!(r#""{i:06}":"""#)).collect();
        let text = format!(
            r#"{{"Actor":{{"ID":"abc","Attributes":{{{},"image":"i","io.kubernetes.pod.name":"web","name":"n"}}}}}}"#,
            many.join(",")
        );
        let found = of_event(serde_json::from_str(&text).unwrap()).names;
        assert_eq!((found.name.as_str(), found.image.as_str(), found.pod.unwrap().name.as_str()), ("n", "i", "web"));
        assert_eq!((found.labels.len(), found.labels[1023].0.as_str()), (LABELS_MAX + 1, "001023"));
    }

    #[test]
    fn a_pod_of_cri_dockerd_is_a_pod() {
        let text = r#"{"Name":"/k8s_app_web_shop_u_0","Config":{"Labels":{"io.kubernetes.pod.name":"web",
            "io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"u","io.kubernetes.container.name":"app"}}}"#;
        let found = names(serde_json::from_str(text).unwrap());
        let pod = found.pod.unwrap();
        assert_eq!((found.name.as_str(), pod.name.as_str(), pod.namespace.as_str()), ("app", "web", "shop"));
    }
}
