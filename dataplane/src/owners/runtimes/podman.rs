//! What Podman tells beside Docker's API: the pod, by its own API (docs.podman.io, "libpod"), and containers that have gone,
//! by its list of events. That is asked for when it is needed, and never followed: the service is started by its socket,
//! and ends when nobody asks (podman-system-service(1)), which a stream of events would keep it from.

use http_body_util::BodyExt;
use hyper::StatusCode;
use serde::Deserialize;

use super::docker::{self, ANSWER_MAX, Lines, Told};
use super::socket::{Place, Trouble};
use crate::owners::workload::{Names, Pod};

/// Attributes of events that are no labels of the container.
pub(super) const POD_ID: &str = "podId";
const EXIT_CODE: &str = "containerExitCode";
/// How far back a container that has gone is looked for, seconds.
const GONE_MAX_S: u64 = 120;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspection {
    #[serde(default)]
    pod: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PodInspection {
    name: String,
}

/// What it knows of a container, or has known: one that is removed at its end can be gone before it is asked about.
pub(super) async fn find(place: &Place, id: &str, now_s: u64) -> Result<Option<Names>, Trouble> {
    let inspected = docker::inspect(place, id).await;
    if let Ok(Some(mut names)) = inspected {
        if names.pod.is_none() {
            names.pod = pod_of(place, &format!("/v4.0.0/libpod/containers/{id}/json")).await;
        }
        return Ok(Some(names));
    }
    // Of one that is just being removed it says that something went wrong. Without events, as the configuration may have
    // it, that first answer counts.
    let events = events(place, now_s.saturating_sub(GONE_MAX_S), "create", Some(id)).await.unwrap_or_default();
    let Some((mut told, pod_id)) = events.into_iter().flatten().find(|(told, _)| told.id == id) else {
        return inspected;
    };
    if let Some(pod_id) = pod_id {
        told.names.pod = pod(place, pod_id).await;
    }
    Ok(Some(told.names))
}

/// The pod of a container, if it is in one and the API has such a path.
async fn pod_of(place: &Place, path: &str) -> Option<Pod> {
    let (_, body) = docker::fetch(place, path).await.ok()??;
    let Inspection { pod: id } = serde_json::from_slice(&body).ok()?;
    pod(place, id).await
}

async fn pod(place: &Place, uid: String) -> Option<Pod> {
    // It becomes a part of a URL.
    if uid.is_empty() || !uid.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let (_, body) = docker::fetch(place, &format!("/v4.0.0/libpod/pods/{uid}/json")).await.ok()??;
    let PodInspection { name } = serde_json::from_slice(&body).ok()?;
    Some(Pod { uid, name, ..Pod::default() })
}

/// New names since a moment, in seconds since 1970; `None` is an event that was too long, or all that were too many.
pub(super) async fn renamed(place: &Place, since: u64) -> Result<Vec<Option<Told>>, Trouble> {
    let events = events(place, since, "rename", None).await?;
    Ok(events.into_iter().map(|event| event.map(|(told, _)| told)).collect())
}

/// Events, each with the id of its pod. Without `until`, which makes Podman 4.3 tell nothing: it ends with what there is.
async fn events(
    place: &Place,
    since: u64,
    event: &str,
    id: Option<&str>,
) -> Result<Vec<Option<(Told, Option<String>)>>, Trouble> {
    let filters = docker::filters(&[event], id);
    let path = format!("/events?stream=false&since={since}&filters={filters}");
    let (response, _connection) = docker::get(place, &path).await?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answers with status {}", response.status()).into());
    }
    let (mut body, mut lines, mut left) = (response.into_body(), Lines::default(), ANSWER_MAX);
    let mut found = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|err| err.to_string())?.into_data() else { continue };
        let Some(rest) = left.checked_sub(data.len()) else {
            found.push(None);
            break;
        };
        left = rest;
        lines.take_events(&data, |told| found.push(told.map(without_attributes)));
    }
    Ok(found)
}

/// The attributes that are none of the container's labels; one of them is its pod.
fn without_attributes(mut told: Told) -> (Told, Option<String>) {
    let mut pod_id = None;
    told.names.labels.retain_mut(|(key, value)| match key.as_str() {
        POD_ID => {
            pod_id = Some(std::mem::take(value));
            false
        }
        key => key != EXIT_CODE,
    });
    (told, pod_id)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    /// A Podman that gives these answers by the path's beginning, each on a connection of its own.
    fn podman(path: &Path, answers: &'static [(&str, &str)]) {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut request) = (stream.unwrap(), [0; 4096]);
                let length = stream.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let answer = answers.iter().find(|(path, _)| request.starts_with(&format!("GET {path}")));
                let (status, body) = answer.map_or(("404 Not Found", ""), |(_, body)| ("200 OK", body));
                let head =
                    format!("HTTP/1.1 {status}\r\nServer: Libpod/4.3.1 (linux)\r\nContent-Length: {}", body.len());
                let _ = write!(stream, "{head}\r\n\r\n{body}");
            }
        });
    }

    fn ask(answers: &'static [(&str, &str)]) -> Option<Names> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        podman(&path, answers);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let own = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&path).unwrap());
        runtime.block_on(find(&Place::new(&path, Some(own)), "abc", 1000)).unwrap()
    }

    #[test]
    fn a_pod_has_its_name_and_an_old_api_just_gives_none() {
        let names = ask(&[("/containers/abc/json", r#"{"Name":"web","Config":{"Image":"i"}}"#)]).unwrap();
        assert_eq!((names.name.as_str(), names.pod), ("web", None));
        let names = ask(&[
            ("/containers/abc/json", r#"{"Name":"web","Config":{"Image":"i"}}"#),
            ("/v4.0.0/libpod/containers/abc/json", r#"{"Name":"web","Pod":"0a1b"}"#),
            ("/v4.0.0/libpod/pods/0a1b/json", r#"{"Name":"shop"}"#),
        ]);
        let pod = Pod { uid: "0a1b".into(), name: "shop".into(), ..Pod::default() };
        assert_eq!(names.unwrap().pod, Some(pod));
    }

    #[test]
    fn a_container_that_has_gone_is_known_by_its_events() {
        // As Podman 4.3 tells it.
        let names = ask(&[(
            "/events?stream=false&since=880&",
            concat!(
                r#"{"status":"create","id":"abc","Type":"container","Action":"create","Actor":{"ID":"abc","Attributes":"#,
                r#"{"a":"b","containerExitCode":"0","image":"i:1","name":"brief","podId":""}},"time":1}"#,
                "\n"
            ),
        )]);
        let names = names.unwrap();
        assert_eq!((names.name.as_str(), names.image.as_str(), names.pod), ("brief", "i:1", None));
        assert_eq!(names.labels, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(ask(&[]), None);
    }
}
