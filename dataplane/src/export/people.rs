//! What lines of JSON say of processes and places: written once for each, since many flows have the same.

use hashbrown::HashMap;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::flows::report::Identity;
use crate::model::flow::ProcKey;
use crate::owners::cgroup::Runtime;
use crate::owners::process::Process;
use crate::owners::workload::{Container, Pod, Workload};

/// Most that are kept, and their bytes together.
const KEPT_MAX: usize = 1 << 12;
const KEPT_BYTES_MAX: usize = 8 << 20;

/// By the addresses of process and place, which the kept identity keeps in use.
type Key = [usize; 2];

/// Parts of lines, by who they are about.
#[derive(Default)]
pub(super) struct People {
    kept: HashMap<Key, Encoded, ahash::RandomState>,
    bytes: usize,
}

/// The parts of a line that are about one side.
pub(super) struct Encoded {
    _identity: Identity,
    pub(super) process: Option<Box<RawValue>>,
    pub(super) user: Option<Box<RawValue>>,
    pub(super) container: Option<Box<RawValue>>,
    pub(super) orchestrator: Option<Box<RawValue>>,
    pub(super) package: Option<Box<RawValue>>,
    pub(super) place: Option<Box<RawValue>>,
}

/// A process; of one that is not known, the pid.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum ProcessField<'a> {
    Known(&'a RawValue),
    Unknown { pid: u32 },
}

impl<'a> ProcessField<'a> {
    pub(super) fn new(who: Option<&'a Encoded>, owner: ProcKey) -> Option<Self> {
        let known = who.and_then(|who| who.process.as_deref()).map(Self::Known);
        known.or_else(|| owner.is_known().then_some(Self::Unknown { pid: owner.pid }))
    }
}

impl People {
    /// Forgets all when there are too many: those in use come back at once.
    pub(super) fn make_room(&mut self) {
        if self.kept.len() + 2 > KEPT_MAX || self.bytes > KEPT_BYTES_MAX {
            self.kept.clear();
            self.bytes = 0;
        }
    }

    pub(super) fn learn(&mut self, identity: &Identity) {
        if identity.is_known() {
            let bytes = &mut self.bytes;
            self.kept.entry(key(identity)).or_insert_with(|| {
                let encoded = Encoded::new(identity);
                *bytes += encoded.bytes();
                encoded
            });
        }
    }

    pub(super) fn get(&self, identity: &Identity) -> Option<&Encoded> {
        self.kept.get(&key(identity)).filter(|_| identity.is_known())
    }
}

fn key(identity: &Identity) -> Key {
    fn address<T>(of: Option<&std::sync::Arc<T>>) -> usize {
        of.map_or(0, |arc| std::sync::Arc::as_ptr(arc).addr())
    }
    [address(identity.process.as_ref()), address(identity.workload.as_ref())]
}

impl Encoded {
    fn new(identity: &Identity) -> Self {
        let (process, workload) = (identity.process.as_deref(), identity.workload.as_deref());
        let container = workload.and_then(|workload| workload.container.as_ref());
        let package = process.and_then(|process| process.package.as_deref());
        Self {
            process: process.and_then(|process| raw(&ProcessPart::new(process))),
            user: process.and_then(|process| raw(&UserPart::new(process))),
            container: container.and_then(|container| raw(&ContainerPart::new(container))),
            orchestrator: workload.and_then(|workload| raw(&Orchestrator::new(workload)?)),
            package: package.and_then(|name| raw(&Named { name })),
            place: workload.and_then(|workload| raw(&Place::new(workload)?)),
            _identity: identity.clone(),
        }
    }
}

impl Encoded {
    fn bytes(&self) -> usize {
        let parts = [&self.process, &self.user, &self.container, &self.orchestrator, &self.package, &self.place];
        parts.into_iter().flatten().map(|part| part.get().len()).sum()
    }
}

/// Text and numbers always have a form.
fn raw(part: &impl Serialize) -> Option<Box<RawValue>> {
    serde_json::value::to_raw_value(part).ok()
}

/// Text that is empty is not known.
fn known(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct ProcessPart<'a> {
    pid: u32,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command_line: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ParentPart<'a>>,
}

#[derive(Serialize)]
struct ParentPart<'a> {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    user: ParentUser<'a>,
}

#[derive(Serialize)]
struct ParentUser<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl<'a> ProcessPart<'a> {
    fn new(process: &'a Process) -> Self {
        let user = || ParentUser { id: process.parent_uid.to_string(), name: process.parent_user.as_deref() };
        let parent = || ParentPart { pid: process.ppid, name: known(&process.parent_name), user: user() };
        Self {
            pid: process.key.pid,
            name: &process.name,
            executable: process.exe.as_deref(),
            command_line: known(&process.cmdline),
            parent: (process.ppid > 0).then(parent),
        }
    }
}

/// Ids are text in ECS.
#[derive(Serialize)]
struct UserPart<'a> {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    group: ParentUser<'a>,
}

impl<'a> UserPart<'a> {
    fn new(process: &'a Process) -> Self {
        let group = ParentUser { id: process.gid.to_string(), name: process.group.as_deref() };
        Self { id: process.uid.to_string(), name: process.user.as_deref(), group }
    }
}

#[derive(Serialize)]
struct ContainerPart<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    runtime: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<Image<'a>>,
}

#[derive(Serialize)]
struct Image<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<Hash<'a>>,
}

#[derive(Serialize)]
struct Hash<'a> {
    all: [&'a str; 1],
}

impl<'a> ContainerPart<'a> {
    fn new(container: &'a Container) -> Self {
        let hash = known(&container.image_digest).map(|digest| Hash { all: [digest] });
        Self {
            id: &container.id,
            name: known(&container.name),
            runtime: container.runtime.name(),
            image: known(&container.image).map(|name| Image { name, hash }),
        }
    }
}

#[derive(Serialize)]
struct Orchestrator<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    resource: Resource<'a>,
}

#[derive(Serialize)]
struct Resource<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<ResourceParent>,
}

#[derive(Serialize)]
struct ResourceParent {
    r#type: &'static str,
}

impl<'a> Orchestrator<'a> {
    fn new(workload: &'a Workload) -> Option<Self> {
        let Pod { uid, name, namespace, .. } = workload.pod.as_ref()?;
        let is_podman = workload.container.as_ref().is_some_and(|container| container.runtime == Runtime::Podman);
        let parent = workload.controller().map(|controller| ResourceParent { r#type: controller.kind });
        Some(Self {
            r#type: if is_podman { "podman" } else { "kubernetes" },
            namespace: known(namespace),
            resource: Resource { r#type: "pod", name: known(name), id: uid, parent },
        })
    }
}

/// What runs there, in the words of `ctl`.
#[derive(Serialize)]
struct Place<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slice: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<Controlled>,
}

#[derive(Serialize)]
struct Controlled {
    kind: &'static str,
    name: String,
}

impl<'a> Place<'a> {
    fn new(workload: &'a Workload) -> Option<Self> {
        let (unit, slice) = (workload.unit.as_deref(), workload.slice.as_deref());
        let controlled = workload.controller().map(|made| Controlled { kind: made.kind, name: made.name });
        let is_something = unit.is_some() || slice.is_some() || controlled.is_some();
        is_something.then_some(Self { unit, slice, workload: controlled })
    }
}
