//! Kubernetes' Container Runtime Interface, version v1: three calls of `runtime.v1.RuntimeService`, over a Unix socket.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::messages::{
    Container, IdFilter, ListContainersResponse, ListPodSandboxResponse, ListRequest, PodSandbox, VersionRequest,
    VersionResponse,
};
use super::socket::{Place, Trouble};
use crate::owners::cgroup::Runtime;
use crate::owners::workload::{Names, Pod};

/// Labels that the kubelet gives to each container.
pub(super) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(super) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(super) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(super) const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Longest answer that is read, bytes: it is about one container.
const ANSWER_MAX: usize = 1 << 20;
/// Longest list of headers.
const HEADERS_MAX: u32 = 16 << 10;

/// The connection to one runtime. It is made with the first question, and again when it is lost.
#[derive(Debug)]
pub(super) struct Connection {
    place: Place,
    channel: OnceLock<Channel>,
    runtime: OnceLock<Option<Runtime>>,
}

impl Connection {
    pub(super) fn new(place: Place) -> Self {
        Self { place, channel: OnceLock::new(), runtime: OnceLock::new() }
    }

    /// What the runtime knows of a container or of a pod's own one; `None` if it knows none.
    pub(super) async fn find(&self, id: &str) -> Result<Option<Names>, Trouble> {
        let runtime = self.runtime().await?;
        let list: ListContainersResponse = self.call("ListContainers", by_id(id)).await?;
        // The filter also takes the beginning of an id.
        if let Some(container) = list.containers.into_iter().find(|container| container.id == id) {
            // It has the labels that people gave to their pod; the container has the kubelet's only.
            let sandbox = match self.sandbox(&container.pod_sandbox_id).await {
                Err(_) if container.labels.contains_key(POD_NAME) => None,
                sandbox => sandbox?,
            };
            return Ok(Some(of_container(container, sandbox, runtime)));
        }
        Ok(self.sandbox(id).await?.map(|sandbox| of_sandbox(sandbox, runtime)))
    }

    async fn sandbox(&self, id: &str) -> Result<Option<PodSandbox>, Trouble> {
        let list: ListPodSandboxResponse = self.call("ListPodSandbox", by_id(id)).await?;
        Ok(list.items.into_iter().find(|sandbox| sandbox.id == id))
    }

    /// Which runtime it is; asked once.
    async fn runtime(&self) -> Result<Option<Runtime>, Trouble> {
        if let Some(known) = self.runtime.get() {
            return Ok(*known);
        }
        let version: VersionResponse = self.call("Version", VersionRequest {}).await?;
        let runtime = match version.runtime_name.as_str() {
            "containerd" => Some(Runtime::Containerd),
            "cri-o" => Some(Runtime::Crio),
            "docker" => Some(Runtime::Docker),
            _ => None,
        };
        Ok(*self.runtime.get_or_init(|| runtime))
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Trouble>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel().clone()).max_decoding_message_size(ANSWER_MAX);
        grpc.ready().await.map_err(|err| explain(&err))?;
        let path =
            PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{method}")).map_err(|err| err.to_string())?;
        let answer = grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| explain(&status))
    }

    /// It connects when it is used, and again when the connection is lost, each time to whom it should.
    fn channel(&self) -> &Channel {
        self.channel.get_or_init(|| {
            let place = self.place.clone();
            let connect = service_fn(move |_| {
                let place = place.clone();
                async move { place.connect().await.map(TokioIo::new) }
            });
            // The name goes into the requests only.
            let endpoint = Endpoint::from_static("http://localhost").http2_max_header_list_size(HEADERS_MAX);
            endpoint.connect_with_connector_lazy(connect)
        })
    }
}

fn by_id(id: &str) -> ListRequest {
    ListRequest { filter: Some(IdFilter { id: id.to_owned() }) }
}

/// The first cause: what tonic wraps around it says little.
fn explain(err: &(dyn std::error::Error + 'static)) -> Trouble {
    let mut cause = err;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.downcast_ref::<Trouble>().cloned().unwrap_or_else(|| Trouble::Silent(cause.to_string()))
}

pub(crate) fn of_container(container: Container, sandbox: Option<PodSandbox>, runtime: Option<Runtime>) -> Names {
    let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
    let sandbox = sandbox.unwrap_or_default();
    let pod = match sandbox.metadata {
        Some(pod) => Pod { uid: pod.uid, name: pod.name, namespace: pod.namespace },
        None => Pod { uid: label(POD_UID), name: label(POD_NAME), namespace: label(POD_NAMESPACE) },
    };
    let name = container.metadata.map(|metadata| metadata.name).filter(|name| !name.is_empty());
    let image = container.image.unwrap_or_default();
    Names {
        runtime,
        name: name.unwrap_or_else(|| label(CONTAINER_NAME)),
        image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
        labels: sandbox.labels.into_iter().chain(container.labels).collect::<BTreeMap<_, _>>().into_iter().collect(),
        pod: Some(pod),
    }
}

/// The container that holds a pod's namespaces.
pub(crate) fn of_sandbox(sandbox: PodSandbox, runtime: Option<Runtime>) -> Names {
    let pod = sandbox.metadata.unwrap_or_default();
    Names {
        runtime,
        name: "pause".into(),
        image: String::new(),
        labels: sandbox.labels.into_iter().collect(),
        pod: Some(Pod { uid: pod.uid, name: pod.name, namespace: pod.namespace }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::owners::runtimes::messages::PodSandboxMetadata;
    use proptest::prelude::*;

    #[test]
    fn the_pod_comes_from_labels_or_from_its_sandbox() {
        let labels =
            HashMap::from([(POD_NAME.to_owned(), "web".to_owned()), (POD_NAMESPACE.to_owned(), "shop".into())]);
        let container = Container { labels, ..Container::default() };
        let named = of_container(container, None, Some(Runtime::Crio));
        assert_eq!(named.pod.unwrap().name, "web");
        let metadata = PodSandboxMetadata { name: "db".into(), uid: "u".into(), namespace: "shop".into() };
        let sandbox = PodSandbox { metadata: Some(metadata), ..PodSandbox::default() };
        let named = of_container(Container::default(), Some(sandbox), None);
        assert_eq!(named.pod.unwrap(), Pod { uid: "u".into(), name: "db".into(), namespace: "shop".into() });
    }

    #[test]
    fn a_socket_that_is_refused_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("socket");
        std::os::unix::fs::symlink("/run/containerd/containerd.sock", &link).unwrap();
        let connection = Connection::new(Place::new(&link, None));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(connection.find("id"));
        assert_eq!(found, Err(Trouble::Refused("a link is in the place of its socket".into())));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ListContainersResponse::decode(bytes.as_slice());
            let _ = ListPodSandboxResponse::decode(bytes.as_slice());
        }
    }
}
