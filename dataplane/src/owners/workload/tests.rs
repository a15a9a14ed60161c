use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn a_pod_is_known_by_its_path_first_and_by_its_names_later() {
    let mut workloads = WorkloadTable::default();
    let path = format!("/kubepods/burstable/pod{}/{ID}", "1".repeat(32));
    workloads.learn(7, &path, 0);
    let (workload, complete) = workloads.get(7, 0);
    assert_eq!((workload.unwrap().label().as_deref(), complete), (Some("0123456789ab"), false));
    let wanted = workloads.take_requests();
    assert_eq!((wanted.len(), wanted[0].containers[0].id.as_str()), (1, ID));
    let (hash, uid) = ("d41d8cd9".to_owned(), "of-the-runtime".to_owned());
    let pod = Pod { uid, name: "web-1".into(), namespace: "shop".into(), config_hash: hash };
    let names = Names { name: "nginx".into(), pod: Some(pod), ..Names::default() };
    workloads.named(NameReply::Cgroup { cgroup_id: 7, names: Some(names.into()) });
    let (workload, complete) = workloads.get(7, 0);
    let workload = workload.unwrap();
    assert_eq!((workload.label().as_deref(), complete), (Some("shop/web-1/nginx"), true));
    let pod = workload.pod.as_ref().unwrap();
    assert_eq!((pod.uid.as_str(), pod.config_hash.as_str()), ("1".repeat(32).as_str(), "d41d8cd9"));
}

#[test]
fn a_request_without_room_comes_up_again_until_its_cgroup_is_forgotten() {
    let mut workloads = WorkloadTable::default();
    workloads.learn(7, &format!("/docker/{ID}"), 0);
    let requests = workloads.take_requests();
    assert_eq!(workloads.not_asked(requests.clone().into_iter()), 1);
    assert!(workloads.get(7, 0).1, "flows do not wait");
    assert_eq!(workloads.take_requests(), requests);
    assert_eq!(workloads.not_asked(requests.into_iter()), 0, "it is counted once");
    assert_eq!(workloads.expire(KEEP_NS), [7]);
    assert_eq!(workloads.take_requests(), []);
}

#[test]
fn a_container_is_called_by_its_name_as_soon_as_that_is_known() {
    let mut workloads = WorkloadTable::default();
    workloads.learn(7, &format!("/docker/{ID}"), 0);
    assert_eq!(workloads.peek(7).unwrap().label().as_deref(), Some("0123456789ab"));
    let names = Names { name: "webshop".into(), ..Names::default() };
    workloads.named(NameReply::Cgroup { cgroup_id: 7, names: Some(names.clone().into()) });
    assert_eq!(workloads.peek(7).unwrap().label().as_deref(), Some("webshop"));
    let pod = Some(Pod { name: "front".into(), ..Pod::default() });
    workloads.named(NameReply::Cgroup { cgroup_id: 7, names: Some(Names { pod, ..names }.into()) });
    assert_eq!(workloads.peek(7).unwrap().label().as_deref(), Some("front/webshop"), "Podman's have no namespace");
}

#[test]
fn a_new_name_is_that_of_all_cgroups_of_its_container() {
    let mut workloads = WorkloadTable::default();
    let (other, user) = ("f".repeat(64), "/user.slice/user-7.slice/user@7.service");
    let paths = [
        format!("/docker/{ID}"),
        format!("/docker/{ID}/system.slice/nginx.service"),
        format!("/docker/{ID}/docker/{other}"),
        format!("/docker/{other}"),
        format!("{user}/docker-{ID}.scope"),
    ];
    for (cgroup_id, path) in paths.iter().enumerate() {
        workloads.learn(cgroup_id as u64, path, 0);
    }
    workloads.take_requests();
    let renamed =
        |name: &str, owner_uid| NameReply::Renamed(Renamed { container_id: ID.into(), name: name.into(), owner_uid });
    let labels = |workloads: &WorkloadTable| {
        (0..5).map(|cgroup_id| workloads.peek(cgroup_id).unwrap().label().unwrap()).collect::<Vec<_>>()
    };
    workloads.named(renamed("mine", Some(7)));
    let id = "0123456789ab";
    assert_eq!(labels(&workloads), [id, id, "ffffffffffff", "ffffffffffff", "mine"], "a user's word is for its own");
    workloads.named(renamed("other", None));
    workloads.named(renamed("shop\n", None));
    assert_eq!(labels(&workloads), ["shop\u{fffd}", "shop\u{fffd}", "ffffffffffff", "ffffffffffff", "shop\u{fffd}"]);
    let requests = workloads.take_requests();
    let asked = |requests: &[NameRequest]| requests.iter().map(|request| request.cgroup_id).collect::<Vec<_>>();
    assert_eq!(asked(&requests), [2], "a container inside of it has its name in its own; it is asked about once");
    workloads.named(renamed("shop", None));
    workloads.not_asked(requests.into_iter());
    assert_eq!(asked(&workloads.take_requests()), [2], "also where there was no room");
}

#[test]
fn a_candidate_is_a_container_once_containerd_says_so() {
    let mut workloads = WorkloadTable::default();
    for (cgroup_id, path) in [(1, "/default/plain1"), (2, "/default/other")] {
        workloads.learn(cgroup_id, path, 0);
        assert_eq!(workloads.peek(cgroup_id).unwrap().container, None);
    }
    assert_eq!(workloads.take_requests().len(), 2);
    let names = Names { name: "plain1".into(), image: "bb:1".into(), ..Names::default() };
    workloads.named(NameReply::Cgroup { cgroup_id: 1, names: Some(names.into()) });
    workloads.named(NameReply::Cgroup { cgroup_id: 2, names: None });
    let (named, none) = (workloads.peek(1).unwrap(), workloads.peek(2).unwrap());
    let container = named.container.as_ref().unwrap();
    assert_eq!((container.id.as_str(), container.runtime), ("plain1", Runtime::Containerd));
    assert_eq!((named.label().as_deref(), none.label()), (Some("plain1"), None));
    assert!(workloads.get(2, 0).1);
}

#[test]
fn services_are_no_containers() {
    let path = "/system.slice/nginx.service";
    let workload = Workload::new(path, &read_path(path));
    assert_eq!((workload.label(), workload.title().as_deref()), (None, Some("nginx.service")));
}

/// Whoever may make cgroups chooses such names.
#[test]
fn only_digits_are_shortened() {
    let id_of = |path: &str| {
        let container = Workload::new(path, &read_path(path)).container.unwrap();
        (container.short_id().to_owned(), container.id.clone())
    };
    assert_eq!(id_of(&format!("/docker/{ID}")).0, "0123456789ab");
    for name in [format!("a{}", "\u{7}".repeat(21)), format!("a{}", "名".repeat(21)), "n".repeat(64)] {
        let (short, id) = id_of(&format!("/lxc.payload.{name}"));
        assert_eq!((short.len(), short == id), (64, true), "{name:?}");
    }
}

#[test]
fn hostile_names_are_shown_safely() {
    let mut workloads = WorkloadTable::default();
    workloads.learn(1, &format!("/docker/{ID}"), 0);
    let names = Names {
        name: "a\x1b[2Jb\u{202e}".into(),
        image: "x".repeat(1 << 20),
        labels: (0..1000).map(|i| (format!("k{i}\n"), "v".repeat(1 << 20))).collect(),
        ..Names::default()
    };
    let mut cut = names.clone();
    assert_eq!(cut.cut(), 1 + (1000 - LABELS_MAX as u64) + LABELS_MAX as u64);
    assert!(cut.image.capacity() <= 4 * TEXT_MAX && cut.labels.capacity() <= LABELS_MAX);
    workloads.named(NameReply::Cgroup { cgroup_id: 1, names: Some(names.into()) });
    let workload = workloads.peek(1).unwrap();
    let container = workload.container.as_ref().unwrap();
    assert_eq!(container.name, "a\u{fffd}[2Jb\u{fffd}");
    assert!(container.image.len() <= TEXT_MAX && container.labels.len() <= LABELS_MAX);
    assert!(container.labels.iter().all(|(k, v)| k.len().max(v.len()) <= TEXT_MAX && !k.contains('\n')));
}

#[test]
fn the_kernels_record_is_the_path_read_backwards() {
    let mut r: CgroupRecord = zerocopy::FromZeros::new_zeroed();
    let text = b"nginx.service\0system.slice\0";
    r.path[..text.len()].copy_from_slice(text);
    r.len = text.len() as u16;
    r.complete = 1;
    r.cgroup_id = 3;
    let mut workloads = WorkloadTable::default();
    workloads.learn_record(&r, 0);
    assert_eq!(workloads.peek(3).unwrap().path, "/system.slice/nginx.service");
}
