//! Kubernetes' Container Runtime Interface, version v1: some calls of `runtime.v1.RuntimeService`, over a Unix socket. On
//! that of containerd also its own API, for containers that were made without CRI.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::Code;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::messages::{
    Container, IdFilter, Image, ImageSpec, ImageStatusRequest, ImageStatusResponse, ListContainersResponse,
    ListPodSandboxResponse, ListRequest, PodSandbox, PodSandboxMetadata, VersionRequest, VersionResponse,
};
use super::socket::{Place, Trouble};
use crate::owners::cgroup::{Candidate, Runtime};
use crate::owners::workload::{Names, Pod, split_digest};

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

    /// What the runtime knows of a container; `None` if it knows none.
    pub(super) async fn find(&self, wanted: Wanted<'_>) -> Result<Option<Names>, Trouble> {
        match wanted {
            Wanted::Candidate(Candidate { namespace, id }) => {
                let namespaces = self.namespaces().await?.unwrap_or_default();
                if namespaces.contains(namespace) { self.get(namespace, id).await } else { Ok(None) }
            }
            Wanted::Id { id, path } => {
                let runtime = self.runtime().await?;
                let found = if runtime == Speaks::No { None } else { self.find_by_cri(id, runtime.name()).await? };
                // Who made it without CRI: only containerd's own API knows those.
                if found.is_some() { Ok(found) } else { self.find_plain(id, path, runtime).await }
            }
        }
    }

    /// Of a container, or of a pod's own one.
    async fn find_by_cri(&self, id: &str, runtime: Option<Runtime>) -> Result<Option<Names>, Trouble> {
        let list: ListContainersResponse = self.cri("ListContainers", by_id(id)).await?.unwrap_or_default();
        // The filter also takes the beginning of an id.
        if let Some(container) = list.containers.into_iter().find(|container| container.id == id) {
            // It has the labels that people gave to their pod; the container has the kubelet's only.
            let sandbox = match self.sandbox(&container.pod_sandbox_id).await {
                Err(_) if container.labels.contains_key(POD_NAME) => None,
                sandbox => sandbox?,
            };
            let key = image_key(&container).to_owned();
            let mut names = of_container(container, sandbox, runtime);
            if names.image_digest.is_empty() || is_image_id(&names.image) {
                self.ask_for_image(key, &mut names).await;
            }
            return Ok(Some(names));
        }
        Ok(self.sandbox(id).await?.map(|sandbox| of_sandbox(sandbox, runtime)))
    }

    /// Without an answer the container keeps what is known of it: that is no reason to ask about it again.
    async fn ask_for_image(&self, key: String, names: &mut Names) {
        let request = ImageStatusRequest { image: Some(ImageSpec { image: key, ..ImageSpec::default() }) };
        let status = self.call("runtime.v1.ImageService", "ImageStatus", None, request).await;
        if let Ok(Some(ImageStatusResponse { image: Some(image) })) = status {
            of_image(&image, names);
        }
    }

    async fn sandbox(&self, id: &str) -> Result<Option<PodSandbox>, Trouble> {
        let list: ListPodSandboxResponse = self.cri("ListPodSandbox", by_id(id)).await?.unwrap_or_default();
        Ok(list.items.into_iter().find(|sandbox| sandbox.id == id))
    }

    /// Which runtime it is; asked until it is known.
    async fn runtime(&self) -> Result<Speaks, Trouble> {
        if let Some(known) = self.runtime.get() {
            return Ok(Speaks::Cri(*known));
        }
        // Docker's package of containerd has CRI turned off.
        let version: Option<VersionResponse> = self.cri("Version", VersionRequest {}).await?;
        let Some(version) = version else { return Ok(Speaks::No) };
        let runtime = match version.runtime_name.as_str() {
            "containerd" => Some(Runtime::Containerd),
            "cri-o" => Some(Runtime::Crio),
            "docker" => Some(Runtime::Docker),
            _ => None,
        };
        Ok(Speaks::Cri(*self.runtime.get_or_init(|| runtime)))
    }

    async fn cri<Q, A>(&self, method: &str, request: Q) -> Result<Option<A>, Trouble>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.call("runtime.v1.RuntimeService", method, None, request).await
    }

    /// `None`: it knows no such thing, or has no such service.
    pub(super) async fn call<Q, A>(
        &self,
        service: &str,
        method: &str,
        namespace: Option<&str>,
        request: Q,
    ) -> Result<Option<A>, Trouble>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.channel().clone()).max_decoding_message_size(ANSWER_MAX);
        grpc.ready().await.map_err(|err| explain(&err))?;
        let path = PathAndQuery::try_from(format!("/{service}/{method}")).map_err(|err| err.to_string())?;
        let mut request = tonic::Request::new(request);
        if let Some(namespace) = namespace {
            let value = namespace.parse().map_err(|_| "a namespace that is no text".to_owned())?;
            request.metadata_mut().insert("containerd-namespace", value);
        }
        match grpc.unary(request, path, ProstCodec::<Q, A>::default()).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
            Err(status) => Err(explain(&status)),
        }
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

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// A container with an id that is the only one in the world, and its cgroup.
    Id { id: &'a str, path: &'a str },
    /// What may be a container of containerd.
    Candidate(&'a Candidate),
}

/// Whether it speaks CRI, and which runtime it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    No,
    Cri(Option<Runtime>),
}

impl Speaks {
    fn name(self) -> Option<Runtime> {
        if let Self::Cri(runtime) = self { runtime } else { None }
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
        Some(pod) => of_pod(pod, &sandbox.annotations),
        None => {
            let (uid, name, namespace) = (label(POD_UID), label(POD_NAME), label(POD_NAMESPACE));
            Pod { uid, name, namespace, ..Pod::default() }
        }
    };
    let name = container.metadata.map(|metadata| metadata.name).filter(|name| !name.is_empty());
    let image = container.image.unwrap_or_default();
    let told = if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
    let (image, digest) = split_digest(told);
    let of_reference = || split_digest(container.image_ref).1;
    Names {
        runtime,
        name: name.unwrap_or_else(|| label(CONTAINER_NAME)),
        image,
        image_digest: if digest.is_empty() { of_reference() } else { digest },
        labels: sandbox.labels.into_iter().chain(container.labels).collect::<BTreeMap<_, _>>().into_iter().collect(),
        pod: Some(pod),
    }
}

/// The container that holds a pod's namespaces.
pub(crate) fn of_sandbox(sandbox: PodSandbox, runtime: Option<Runtime>) -> Names {
    let pod = of_pod(sandbox.metadata.unwrap_or_default(), &sandbox.annotations);
    let labels = sandbox.labels.into_iter().collect();
    Names { runtime, name: "pause".into(), labels, pod: Some(pod), ..Names::default() }
}

/// The kubelet makes the uid of a pod that it has from a file from the hash of its configuration, and the API server gives
/// its mirror another one, with this hash as the annotation `kubernetes.io/config.mirror` (kubernetes
/// pkg/kubelet/types/pod_update.go, pkg/kubelet/config/common.go).
fn of_pod(pod: PodSandboxMetadata, annotations: &HashMap<String, String>) -> Pod {
    let of_file = annotations.get("kubernetes.io/config.source").is_some_and(|source| source != "api");
    let hash = annotations.get("kubernetes.io/config.hash").filter(|_| of_file);
    Pod { uid: pod.uid, name: pod.name, namespace: pod.namespace, config_hash: hash.cloned().unwrap_or_default() }
}

/// By what the runtime knows a container's image for certain.
fn image_key(container: &Container) -> &str {
    let told = container.image.as_ref().map_or("", |image| &image.image);
    [&container.image_id, &container.image_ref, told].into_iter().find(|key| !key.is_empty()).unwrap_or_default()
}

/// The kubelet may give an image by its id: that is no name.
fn is_image_id(image: &str) -> bool {
    let digits = image.strip_prefix("sha256:").unwrap_or(image);
    image.is_empty() || digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What an image is called, and the digest under which it came from where it is called so.
pub(crate) fn of_image(image: &Image, names: &mut Names) {
    let digests = || image.repo_digests.iter().filter_map(|digest| digest.split_once('@'));
    if is_image_id(&names.image) {
        let name = image.repo_tags.first().map(String::as_str).or_else(|| digests().next().map(|(name, _)| name));
        names.image = name.map_or_else(|| std::mem::take(&mut names.image), str::to_owned);
    }
    if names.image_digest.is_empty() {
        let repository = repository(&names.image);
        let of_it = digests()
            .find(|(name, _)| name.strip_suffix(repository).is_some_and(|host| host.is_empty() || host.ends_with('/')));
        names.image_digest =
            of_it.or_else(|| digests().next()).map(|(_, digest)| digest.to_owned()).unwrap_or_default();
    }
}

/// The name of an image without its tag.
fn repository(image: &str) -> &str {
    let base = image.rfind('/').map_or(0, |slash| slash + 1);
    image[base..].find(':').map_or(image, |colon| &image[..base + colon])
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(named.pod.unwrap(), pod_of("u", "db", "shop"));
    }

    fn pod_of(uid: &str, name: &str, namespace: &str) -> Pod {
        Pod { uid: uid.into(), name: name.into(), namespace: namespace.into(), ..Pod::default() }
    }

    #[test]
    fn a_static_pod_has_the_hash_of_its_configuration() {
        let sandbox = |source: &str| {
            let annotations = [("source", source), ("hash", "d41d8cd9"), ("seen", "2026-01-01T00:00:00Z")];
            let annotations =
                annotations.map(|(key, value)| (format!("kubernetes.io/config.{key}"), value.to_owned())).into();
            PodSandbox { metadata: Some(PodSandboxMetadata::default()), annotations, ..PodSandbox::default() }
        };
        let hash = |sandbox: PodSandbox| of_sandbox(sandbox, None).pod.unwrap().config_hash;
        assert_eq!([hash(sandbox("file")), hash(sandbox("http"))], ["d41d8cd9", "d41d8cd9"]);
        assert_eq!([hash(sandbox("api")), hash(PodSandbox::default())], ["", ""]);
        let of_it = of_container(Container::default(), Some(sandbox("file")), None);
        assert_eq!(of_it.pod.unwrap().config_hash, "d41d8cd9");
    }

    #[test]
    fn an_image_has_its_name_and_its_digest() {
        let id = format!("sha256:{}", "b".repeat(64));
        let named = |told: &str, reference: &str, tags: &[&str], digests: &[&str]| {
            let image = Some(ImageSpec { image: told.into(), ..ImageSpec::default() });
            let container = Container { image, image_ref: reference.into(), ..Container::default() };
            assert_eq!(image_key(&container), if reference.is_empty() { told } else { reference });
            let mut names = of_container(container, None, None);
            let [repo_tags, repo_digests] = [tags, digests].map(|texts| texts.iter().map(|&t| t.to_owned()).collect());
            of_image(&Image { id: id.clone(), repo_tags, repo_digests }, &mut names);
            (names.image, names.image_digest)
        };
        let pair = |image: &str, digest: &str| (image.to_owned(), digest.to_owned());
        // The kubelet gives the id of what it has pulled.
        let both = ["other:5000/app@sha256:2", "docker.io/library/nginx@sha256:1"];
        assert_eq!(
            named(&id, &id, &["docker.io/library/nginx:1"], &both),
            pair("docker.io/library/nginx:1", "sha256:1")
        );
        assert_eq!(named(&id, "", &[], &["a/b@sha256:1"]), pair("a/b", "sha256:1"));
        assert_eq!(named(&id, "", &[], &[]), pair(&id, ""));
        assert_eq!(named("nginx:1", &id, &["x:1"], &both), pair("nginx:1", "sha256:1"));
        assert_eq!(named("other:5000/app", &id, &[], &both), pair("other:5000/app", "sha256:2"));
        assert_eq!(named("nginx:1", "nginx@sha256:9", &[], &both), pair("nginx:1", "sha256:9"));
        assert_eq!(named("nginx:1@sha256:8", &id, &[], &both), pair("nginx:1", "sha256:8"));
    }

    #[test]
    fn a_socket_that_is_refused_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("socket");
        std::os::unix::fs::symlink("/run/containerd/containerd.sock", &link).unwrap();
        let connection = Connection::new(Place::new(&link, None));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(connection.find(Wanted::Id { id: "id", path: "/id" }));
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
