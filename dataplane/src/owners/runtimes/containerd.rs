//! containerd's own API, on the socket of its CRI: containers that were made without CRI, by `ctr` and nerdctl.

use super::cri::{Connection, Speaks};
use super::messages::{Empty, GetContainerResponse, Id, ListNamespacesResponse, PlainContainer};
use super::socket::Trouble;
use crate::owners::cgroup::Runtime;
use crate::owners::names::{Names, split_digest};

/// Services of containerd.
const NAMESPACES: &str = "containerd.services.namespaces.v1.Namespaces";
const CONTAINERS: &str = "containerd.services.containers.v1.Containers";
/// Namespaces of a containerd in which a container is looked for.
const NAMESPACES_MAX: usize = 32;

/// The name that people gave to a container (nerdctl pkg/labels).
const NERDCTL_NAME: &str = "nerdctl/name";

impl Connection {
    /// In which of containerd's namespaces it is, the path says or not.
    pub(super) async fn find_plain(&self, id: &str, path: &str, runtime: Speaks) -> Result<Option<Names>, Trouble> {
        let Some(namespaces) = self.namespaces().await? else {
            let neither = "it speaks neither version v1 of CRI nor containerd's own API";
            return if runtime == Speaks::No { Err(neither.to_owned().into()) } else { Ok(None) };
        };
        let parent = path.split_once(id).and_then(|(before, _)| before.trim_end_matches('/').rsplit('/').next());
        let of_path = namespaces.iter().find(|namespace| parent == Some(namespace.as_str()));
        let those: Vec<_> = of_path.map_or_else(|| namespaces.iter().collect(), |namespace| vec![namespace]);
        for namespace in those {
            if let Some(names) = self.get(namespace, id).await? {
                return Ok(Some(names));
            }
        }
        Ok(None)
    }

    /// containerd's namespaces, but for Docker's: Docker knows its containers by name. `None`: it has no such API.
    pub(super) async fn namespaces(&self) -> Result<Option<Vec<String>>, Trouble> {
        let list: Option<ListNamespacesResponse> = self.call(NAMESPACES, "List", None, Empty {}).await?;
        let names = |list: ListNamespacesResponse| list.namespaces.into_iter().map(|namespace| namespace.name);
        Ok(list.map(|list| names(list).filter(|name| name != "moby").take(NAMESPACES_MAX).collect()))
    }

    pub(super) async fn get(&self, namespace: &str, id: &str) -> Result<Option<Names>, Trouble> {
        let got: Option<GetContainerResponse> =
            self.call(CONTAINERS, "Get", Some(namespace), Id { id: id.to_owned() }).await?;
        let container = got.and_then(|got| got.container).filter(|container| container.id == id);
        Ok(container.map(of_plain))
    }
}

/// A container that was made without CRI. The id is its name where people chose it, as those of `ctr` do.
pub(crate) fn of_plain(container: PlainContainer) -> Names {
    let digits = container.id.len() == 64 && container.id.bytes().all(|b| b.is_ascii_hexdigit());
    let name = container.labels.get(NERDCTL_NAME).cloned();
    let (image, image_digest) = split_digest(container.image);
    Names {
        runtime: Some(Runtime::Containerd),
        name: name.unwrap_or_else(|| if digits { String::new() } else { container.id }),
        image,
        image_digest,
        labels: container.labels.into_iter().collect(),
        ..Names::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_without_cri_has_the_name_that_people_gave() {
        let plain = |id: &str, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            of_plain(PlainContainer { id: id.into(), labels, image: "bb:1".into() }).name
        };
        assert_eq!(plain("plain1", &[]), "plain1");
        assert_eq!(plain(&"a".repeat(64), &[(NERDCTL_NAME, "web")]), "web");
        assert_eq!(plain(&"a".repeat(64), &[]), "", "it is called by its short id");
    }
}
