//! Docker Engine API, which Podman speaks too: `GET /containers/ID/json` and `GET /events`
//! (docs.docker.com/reference/api/engine, ContainerInspect and SystemEvents).
//!
//! hyper, and not a client library of the whole API: none of them limits the size of an answer.

use std::collections::BTreeMap;
use std::path::Path;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::owners::workload::{Names, Pod};

/// Longest answer that is read, bytes. Labels may be long.
const ANSWER_MAX: usize = 4 << 20;

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
    labels: Option<BTreeMap<String, String>>,
}

/// What the runtime knows of a container; `None` if it knows none.
pub(super) async fn inspect(socket: &Path, id: &str) -> Result<Option<Names>, String> {
    let (response, _connection) = get(socket, &format!("/containers/{id}/json")).await?;
    match response.status() {
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::OK => {}
        status => return Err(format!("it answers with status {status}")),
    }
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(|err| err.to_string())?;
    read_inspection(&body.to_bytes()).map(Some)
}

/// Reads the answer about a container.
pub(crate) fn read_inspection(body: &[u8]) -> Result<Names, String> {
    serde_json::from_slice(body).map(names).map_err(|err| format!("its answer is not understood: {err}"))
}

/// Tells of each container at its creation: one that is removed at its end can be gone before it is asked about.
/// Returns when the runtime ends the stream.
pub(super) async fn follow(socket: &Path, mut created: impl FnMut(String, Names)) -> Result<(), String> {
    // {"type":["container"],"event":["create"]}
    const FILTERS: &str = "%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22create%22%5D%7D";
    let (response, _connection) = get(socket, &format!("/events?filters={FILTERS}")).await?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answers with status {}", response.status()));
    }
    let mut body = response.into_body();
    let mut events = Events::default();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|err| err.to_string())?.into_data() else { continue };
        events.take(&data, &mut created)?;
    }
    Ok(())
}

/// The stream of events: one JSON object per line, in pieces that end anywhere.
#[derive(Default)]
pub(crate) struct Events {
    line: Vec<u8>,
}

impl Events {
    /// Takes a piece and tells of the events that it completes. What is no event is passed over.
    pub(crate) fn take(&mut self, data: &[u8], created: &mut impl FnMut(String, Names)) -> Result<(), String> {
        // Each byte is looked at once: lines may be long and pieces short, or the other way round.
        let mut rest = data;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            if let Ok(event) = serde_json::from_slice::<Event>(&self.line) {
                let (id, names) = of_event(event);
                created(id, names);
            }
            self.line.clear();
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > ANSWER_MAX {
            return Err("an event is too long".into());
        }
        Ok(())
    }
}

/// The answer, and what keeps its connection.
async fn get(socket: &Path, path: &str) -> Result<(Response<Incoming>, Ending), String> {
    let stream = UnixStream::connect(socket).await.map_err(|err| err.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
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
struct Ending(tokio::task::JoinHandle<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    actor: Actor,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: BTreeMap<String, String>,
}

/// The attributes are the labels, with image and name among them.
fn of_event(event: Event) -> (String, Names) {
    let mut labels = event.actor.attributes;
    let (name, image) = (labels.remove("name").unwrap_or_default(), labels.remove("image"));
    (event.actor.id, names(Inspection { name, config: Config { image, labels: Some(labels) } }))
}

fn names(inspection: Inspection) -> Names {
    let labels = inspection.config.labels.unwrap_or_default();
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let pod = labels.contains_key(super::cri::POD_NAME).then(|| Pod {
        uid: label(super::cri::POD_UID),
        name: label(super::cri::POD_NAME),
        namespace: label(super::cri::POD_NAMESPACE),
    });
    let container = labels.get(super::cri::CONTAINER_NAME).filter(|_| pod.is_some()).cloned();
    Names {
        runtime: None,
        name: container.unwrap_or_else(|| inspection.name.trim_start_matches('/').to_owned()),
        image: inspection.config.image.unwrap_or_default(),
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
        let podman = r#"{"Name":"web","Config":{"Image":"i","Labels":null}}"#;
        assert_eq!(names(serde_json::from_str(podman).unwrap()).name, "web");
    }

    #[test]
    fn an_event_tells_as_much() {
        let text = r#"{"status":"create","Type":"container","Action":"create",
            "Actor":{"ID":"abc","Attributes":{"image":"bb:1","name":"short","tier":"front"}},"time":1}"#;
        let (id, found) = of_event(serde_json::from_str(text).unwrap());
        assert_eq!((id.as_str(), found.name.as_str(), found.image.as_str()), ("abc", "short", "bb:1"));
        assert_eq!(found.labels, [("tier".to_owned(), "front".to_owned())]);
    }

    #[test]
    fn long_lines_in_short_pieces_and_short_lines_in_long_pieces_take_no_time() {
        let begun = std::time::Instant::now();
        let (mut events, mut found) = (Events::default(), 0);
        let long = vec![b' '; ANSWER_MAX];
        for piece in long.chunks(16) {
            events.take(piece, &mut |_, _| found += 1).unwrap();
        }
        let event = b"{\"Actor\":{\"ID\":\"abc\",\"Attributes\":{}}}\n";
        events.take(event, &mut |_, _| found += 1).unwrap();
        events.take(&vec![b'\n'; ANSWER_MAX], &mut |_, _| found += 1).unwrap();
        assert_eq!(found, 1);
        // It took minutes.
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(events.take(&vec![b' '; ANSWER_MAX + 1], &mut |_, _| ()).is_err());
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
