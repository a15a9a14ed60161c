//! Starts what a DaemonSet describes, as a kubelet would: all that CRI is told comes from the manifest.

use std::fs;
use std::path::Path;

use serde_json::Value;
use sockeye::owners::runtimes::messages::{
    Capability, ContainerConfig, ContainerMetadata, ContainerSecurity, ExecSyncAnswer, ImageSpec, Int64Value,
    LinuxContainer, Mount, NamespaceOption, Resources, SecurityProfile,
};

use crate::cri::{Cri, NODE, Pod};
use crate::{PYTHON, here, output};

/// What a kubelet hides from containers that are not privileged, and what it makes read-only.
const MASKED: [&str; 5] = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/sched_debug", "/sys/firmware"];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The manifests of `packaging/kubernetes`, by kind, valid by Kubernetes' schema.
///
/// # Panics
/// If one is not.
#[must_use]
pub fn manifests() -> Value {
    let file = |name: &str| here(&format!("../packaging/kubernetes/{name}.yaml")).display().to_string();
    let program = here("lab/manifests.py").display().to_string();
    let schema = here("lab/kubernetes.schema.json").display().to_string();
    let said = output(PYTHON, &[&program, &schema, &file("daemonset"), &file("namespace"), &file("serviceaccount")]);
    serde_json::from_str(&said).expect("JSON")
}

/// The pod of a DaemonSet, with its one container.
pub struct Daemon {
    /// The pod.
    pub pod: Pod,
    container: String,
    spec: Value,
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array()
        .map(|list| list.iter().map(|text| text.as_str().expect("a text").to_owned()).collect())
        .unwrap_or_default()
}

/// `256Mi`.
fn bytes(quantity: &str) -> i64 {
    let mebibytes = quantity.strip_suffix("Mi").and_then(|number| number.parse::<i64>().ok());
    mebibytes.expect("a quantity in Mi") << 20
}

fn security(context: &Value, namespaces: NamespaceOption) -> ContainerSecurity {
    let number = |name: &str| context[name].as_i64().map(|value| Int64Value { value });
    let is_default = context["seccompProfile"]["type"] == "RuntimeDefault";
    ContainerSecurity {
        capabilities: Some(Capability {
            add: texts(&context["capabilities"]["add"]),
            drop: texts(&context["capabilities"]["drop"]),
        }),
        namespaces: Some(namespaces),
        run_as_user: number("runAsUser"),
        run_as_group: number("runAsGroup"),
        readonly_rootfs: context["readOnlyRootFilesystem"] == true,
        no_new_privs: context["allowPrivilegeEscalation"] == false,
        masked_paths: MASKED.map(String::from).into(),
        readonly_paths: READ_ONLY.map(String::from).into(),
        seccomp: Some(SecurityProfile { profile_type: i32::from(!is_default) }),
    }
}

/// Each volume of the manifest where the container wants it. `at` says where something else is on this host.
fn mounts(spec: &Value, container: &Value, at: &dyn Fn(&str) -> Option<String>) -> Vec<Mount> {
    let volumes = spec["volumes"].as_array().expect("volumes");
    let wanted = container["volumeMounts"].as_array().expect("mounts");
    let mount = |mount: &Value| {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("its volume");
        let path = volume["hostPath"]["path"].as_str().or(volume["configMap"]["name"].as_str()).expect("a source");
        Mount {
            container_path: mount["mountPath"].as_str().expect("a path").to_owned(),
            host_path: at(path).unwrap_or_else(|| path.to_owned()),
            readonly: mount["readOnly"] == true,
        }
    };
    wanted.iter().map(mount).collect()
}

impl Daemon {
    /// Starts it. `image` is what the image is called here, `at` where a path of the host, or the configuration by its name,
    /// is here if it is elsewhere, and `output` a file for what it says.
    ///
    /// # Panics
    /// If the manifest lacks something, or the runtime refuses.
    #[must_use]
    pub fn start(cri: &Cri, daemonset: &Value, image: &str, at: &dyn Fn(&str) -> Option<String>) -> Self {
        let spec = &daemonset["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        let of_node = |name: &str| if spec[name] == true { NODE } else { 0 };
        let namespaces = NamespaceOption { network: of_node("hostNetwork"), pid: of_node("hostPID") };
        let name = daemonset["metadata"]["name"].as_str().expect("a name");
        let pod = cri.run_with("sockeye", &format!("{name}-x2x4z"), namespaces.clone(), &[]);
        let limit = container["resources"]["limits"]["memory"].as_str().expect("a limit");
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into() }),
            image: Some(ImageSpec { image: image.into(), ..ImageSpec::default() }),
            command: texts(&container["command"]),
            args: texts(&container["args"]),
            mounts: mounts(spec, container, at),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainer {
                resources: Some(Resources { memory_limit_in_bytes: bytes(limit) }),
                security_context: Some(security(&container["securityContext"], namespaces)),
            }),
            ..ContainerConfig::default()
        };
        let id = cri.run_configured(&pod, config);
        Self { pod, container: id, spec: container.clone() }
    }

    /// Runs a command in its container.
    #[must_use]
    pub fn exec(&self, cri: &Cri, command: &[&str]) -> ExecSyncAnswer {
        cri.exec(&self.container, &command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    /// Whether a probe succeeds: `startupProbe`, `readinessProbe` or `livenessProbe`.
    #[must_use]
    pub fn probe(&self, cri: &Cri, name: &str) -> bool {
        let command = texts(&self.spec[name]["exec"]["command"]);
        assert!(!command.is_empty(), "{name} has a command");
        cri.exec(&self.container, &command).exit_code == 0
    }
}

/// Copies the configuration of the manifests into a folder, as a ConfigMap is.
///
/// # Panics
/// If it cannot.
pub fn copy_configuration(to: &Path) {
    fs::copy(here("../packaging/kubernetes/sockeye.toml"), to.join("sockeye.toml")).expect("a copy");
}
