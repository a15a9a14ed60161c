//! The little of Kubernetes' Container Runtime Interface that makes pods: what a kubelet does.

use std::collections::HashMap;
use std::path::Path;

use prost::Message;
use sockeye::owners::runtimes::messages::{
    ContainerConfig, ContainerMetadata, CreateContainer, Empty, ExecSync, ExecSyncAnswer, Id, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, LinuxSandbox, NamespaceOption, PodSandboxMetadata, RunSandbox,
    SandboxConfig, SecurityContext, StatusAnswer,
};
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// The namespace of the node, instead of one of its own.
pub(crate) const NODE: i32 = 2;

/// A containerd, by its CRI socket.
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// A running pod.
pub struct Pod {
    /// Id of the sandbox.
    pub id: String,
    /// Uid, as the kubelet chooses it.
    pub uid: String,
    /// Address; empty in the host's network.
    pub ip: String,
    config: SandboxConfig,
}

impl Cri {
    /// Connects.
    ///
    /// # Panics
    /// If it cannot.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a socket");
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Self { runtime, channel }
    }

    fn call<Q: Message + 'static, A: Message + Default + 'static>(&self, method: &str, request: Q) -> A {
        self.call_of("RuntimeService", method, request)
    }

    fn call_of<Q, A>(&self, service: &str, method: &str, request: Q) -> A
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.{service}/{method}").try_into().expect("a path");
        let mut grpc = Grpc::new(self.channel.clone());
        let answer = self.runtime.block_on(async {
            grpc.ready().await.expect("containerd");
            grpc.unary(tonic::Request::new(request), path, ProstCodec::<Q, A>::default()).await
        });
        answer.unwrap_or_else(|err| panic!("{method}: {err}")).into_inner()
    }

    /// Starts a pod with labels in a network of its own.
    ///
    /// # Panics
    /// If containerd refuses.
    #[must_use]
    pub fn run_labelled_pod(&self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> Pod {
        self.run(namespace, name, false, labels)
    }

    /// Starts a pod, in a network of its own or in the host's.
    ///
    /// # Panics
    /// If containerd refuses.
    #[must_use]
    pub fn run_pod(&self, namespace: &str, name: &str, host_network: bool) -> Pod {
        self.run(namespace, name, host_network, &[("app", name)])
    }

    fn run(&self, namespace: &str, name: &str, host_network: bool, labels: &[(&str, &str)]) -> Pod {
        let namespaces = NamespaceOption { network: if host_network { NODE } else { 0 }, pid: 0 };
        self.run_with(namespace, name, namespaces, labels)
    }

    /// Starts a pod with these namespaces.
    pub(crate) fn run_with(
        &self,
        namespace: &str,
        name: &str,
        namespaces: NamespaceOption,
        labels: &[(&str, &str)],
    ) -> Pod {
        let mut uid = format!("{:032x}", fxhash(&[namespace, name]));
        for at in [8, 13, 18, 23] {
            uid.insert(at, '-');
        }
        let metadata = PodSandboxMetadata { name: name.into(), uid: uid.clone(), namespace: namespace.into() };
        let linux = LinuxSandbox {
            cgroup_parent: format!("/kubepods/burstable/pod{uid}"),
            security_context: Some(SecurityContext { namespaces: Some(namespaces) }),
        };
        let config = SandboxConfig {
            metadata: Some(metadata),
            log_directory: String::new(),
            labels: {
                // A kubelet gives the pod's own labels to its sandbox only.
                let own = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
                kubelet_labels(namespace, name, &uid).into_iter().chain(own).collect()
            },
            linux: Some(linux),
        };
        let sandbox: Id = self.call("RunPodSandbox", RunSandbox { config: Some(config.clone()) });
        let status: StatusAnswer = self.call("PodSandboxStatus", sandbox.clone());
        let ip = status.status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
        Pod { id: sandbox.id, uid, ip, config }
    }

    /// Starts a container of `ci.local/bb:1` in a pod, and returns its id.
    ///
    /// # Panics
    /// If containerd refuses.
    pub fn run_container(&self, pod: &Pod, name: &str, shell: &str) -> String {
        self.run_container_of("ci.local/bb:1", pod, name, shell)
    }

    /// The id of the test image, by which some kubelets call it.
    ///
    /// # Panics
    /// If containerd has none.
    #[must_use]
    pub fn image_id(&self) -> String {
        let image = ImageSpec { image: "ci.local/bb:1".into(), ..ImageSpec::default() };
        let status: ImageStatusResponse =
            self.call_of("ImageService", "ImageStatus", ImageStatusRequest { image: Some(image) });
        status.image.expect("the image").id
    }

    /// As [`Self::run_container`], of an image that is called so.
    ///
    /// # Panics
    /// If containerd refuses.
    pub fn run_container_of(&self, image: &str, pod: &Pod, name: &str, shell: &str) -> String {
        let metadata = pod.config.metadata.clone().unwrap_or_default();
        let mut labels = kubelet_labels(&metadata.namespace, &metadata.name, &pod.uid);
        labels.insert("io.kubernetes.container.name".into(), name.into());
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into() }),
            image: Some(ImageSpec { image: image.into(), ..ImageSpec::default() }),
            command: ["/bin/sh", "-c", shell].map(String::from).into(),
            labels,
            ..ContainerConfig::default()
        };
        self.run_configured(pod, config)
    }

    /// As a configuration says.
    pub(crate) fn run_configured(&self, pod: &Pod, config: ContainerConfig) -> String {
        let request =
            CreateContainer { sandbox: pod.id.clone(), config: Some(config), sandbox_config: Some(pod.config.clone()) };
        let container: Id = self.call("CreateContainer", request);
        let Empty {} = self.call("StartContainer", container.clone());
        container.id
    }

    /// Runs a command in a container: what it says, and how it ends.
    ///
    /// # Panics
    /// If containerd refuses.
    #[must_use]
    pub fn exec(&self, container: &str, command: &[String]) -> ExecSyncAnswer {
        let request = ExecSync { container: container.into(), command: command.into(), timeout_s: 10 };
        self.call("ExecSync", request)
    }

    /// Stops and removes a pod with its containers.
    pub fn remove_pod(&self, pod: &Pod) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let Empty {} = self.call(method, Id { id: pod.id.clone() });
        }
    }
}

fn kubelet_labels(namespace: &str, pod: &str, uid: &str) -> HashMap<String, String> {
    let labels =
        [("io.kubernetes.pod.namespace", namespace), ("io.kubernetes.pod.name", pod), ("io.kubernetes.pod.uid", uid)];
    labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A uid for a name: the same in each run.
fn fxhash(parts: &[&str]) -> u128 {
    parts
        .iter()
        .flat_map(|part| part.bytes())
        .fold(7, |hash: u128, byte| (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b))
}
