//! What listens on each local address: ntopng shows all ports of a `listening-ports` message under all of its addresses,
//! so there is one message for each.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::flows::Listener;
use crate::model::flow::Proto;
use crate::model::text::neutral;
use crate::owners::process::ProcessTable;

/// Longest message, bytes: ntopng drops one of 128 KiB.
const MESSAGE_BYTES_MAX: usize = 96 * 1024;

/// Addresses by network namespace.
pub struct LocalAddresses {
    /// Inode of the agent's own namespace: that of the host.
    pub host_netns: u32,
    /// Its addresses, loopback ones included.
    pub host: BTreeSet<IpAddr>,
    /// Those of other namespaces, as far as they are known; loopback ones are left out.
    pub others: BTreeMap<u32, BTreeSet<IpAddr>>,
}

/// Inode of the network namespace of the calling thread, and all addresses that its interfaces have.
///
/// # Errors
/// If the kernel does not tell.
pub fn of_this_host() -> std::io::Result<(u32, BTreeSet<IpAddr>)> {
    use std::os::unix::fs::MetadataExt;
    let netns = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    let ip = |storage: nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|addr| IpAddr::from(addr.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|addr| IpAddr::from(addr.ip())))
    };
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| interface.address.and_then(ip)).collect();
    Ok((netns as u32, addresses))
}

/// Whose a port is. Of two listeners that of the address itself comes first, before one for all addresses.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    for_all: bool,
    process: String,
    package: String,
}

/// Ports of one address: TCP, UDP.
type Ports = [BTreeMap<u16, Holder>; 2];

impl LocalAddresses {
    /// Where a listener can be reached. An address that the host has, too, is the host's, and so is all of loopback: to a
    /// collector the same address in another namespace is the same host.
    fn of(&self, listener: &Listener) -> Vec<IpAddr> {
        let here = listener.netns == self.host_netns;
        let bound = listener.local.addr.ip();
        if !bound.is_unspecified() {
            let is_ours = !bound.is_multicast() && (here || !(bound.is_loopback() || self.host.contains(&bound)));
            return if is_ours { vec![bound] } else { Vec::new() };
        }
        let takes = |ip: &&IpAddr| if listener.v6 { ip.is_ipv6() || !listener.v6only } else { ip.is_ipv4() };
        if here {
            return self.host.iter().filter(takes).copied().collect();
        }
        let others = self.others.get(&listener.netns).into_iter().flatten();
        others.filter(takes).filter(|ip| !self.host.contains(ip)).copied().collect()
    }
}

/// A message for each address on which something listens, and for those in `reported`, where something has listened before.
/// These are replaced by those of now. Ports that a message had no room for are counted.
#[must_use]
pub fn messages<'a>(
    listeners: impl Iterator<Item = &'a Listener>,
    addresses: &LocalAddresses,
    processes: &ProcessTable,
    reported: &mut BTreeSet<IpAddr>,
) -> (Vec<String>, u64) {
    let mut by_address: BTreeMap<IpAddr, Ports> =
        std::mem::take(reported).into_iter().map(|ip| (ip, Ports::default())).collect();
    for listener in listeners {
        let process = processes.peek(listener.owner);
        // The kernel's own sockets have none, and that of others may not be known yet.
        let name = process.map_or("unknown", |process| process.path_or_name());
        let package = process.and_then(|process| process.package.as_deref()).unwrap_or_default();
        for ip in addresses.of(listener) {
            let ports = &mut by_address.entry(ip).or_default()[usize::from(listener.proto == Proto::Udp)];
            let for_all = listener.local.addr.ip().is_unspecified();
            let new = Holder { for_all, process: neutral(name).into_owned(), package: neutral(package).into_owned() };
            match ports.entry(listener.local.port) {
                Entry::Occupied(mut held) if new < *held.get() => drop(held.insert(new)),
                Entry::Occupied(_) => {}
                Entry::Vacant(free) => drop(free.insert(new)),
            }
        }
    }
    let mut cut = 0;
    let messages = by_address.iter().map(|(ip, ports)| message(*ip, ports, &mut cut)).collect();
    let listens = |ports: &Ports| ports.iter().any(|ports| !ports.is_empty());
    reported.extend(by_address.iter().filter(|(_, ports)| listens(ports)).map(|(ip, _)| *ip));
    (messages, cut)
}

/// ntopng keeps one process for a port, and a package name from the element before unless there is one.
fn message(ip: IpAddr, ports: &Ports, cut: &mut u64) -> String {
    let mut room = MESSAGE_BYTES_MAX;
    let [tcp, udp] = ports.each_ref().map(|ports| {
        let mut list: Vec<Value> = Vec::new();
        for (port, holder) in ports {
            let entry = json!({"port": port, "proc": holder.process, "pkg": holder.package});
            match room.checked_sub(entry.to_string().len() + 1) {
                Some(left) => room = left,
                None => {
                    *cut += 1;
                    continue;
                }
            }
            list.push(entry);
        }
        list
    });
    let (v4, v6) =
        if ip.is_ipv4() { ([tcp, udp], <[Vec<Value>; 2]>::default()) } else { (<[_; 2]>::default(), [tcp, udp]) };
    json!({
        "ip-addresses": [ip.to_string()],
        "listening-ports": {"tcp4": v4[0], "tcp6": v6[0], "udp4": v4[1], "udp6": v6[1]},
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flow::{Endpoint, ProcKey};
    use crate::owners::process::{LookupReply, Process};

    const HOST: u32 = 1;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn listener(netns: u32, at: &str, port: u16, pid: u32) -> Listener {
        let (v6only, at) = at.strip_prefix("only ").map_or((false, at), |at| (true, at));
        let local = Endpoint { addr: ip(at).into(), port };
        Listener {
            proto: Proto::Tcp,
            local,
            v6: ip(at).is_ipv6(),
            v6only,
            netns,
            owner: ProcKey { pid, start_ticks: 1, exec: 0 },
        }
    }

    fn addresses() -> LocalAddresses {
        LocalAddresses {
            host_netns: HOST,
            host: ["127.0.0.1", "10.0.0.5", "::1", "fd00::5"].map(ip).into(),
            others: [(2, ["172.17.0.2"].map(ip).into()), (3, ["172.17.0.3", "10.0.0.5"].map(ip).into())].into(),
        }
    }

    fn processes() -> ProcessTable {
        let mut processes = ProcessTable::default();
        for pid in 1..10 {
            let key = ProcKey { pid, start_ticks: 1, exec: 0 };
            let name = if pid == 9 { "<b>".to_owned() } else { format!("p{pid}") };
            let process = Process { key, name, ..Process::default() };
            processes.found(LookupReply { key, process: Some(process), complete: true, cgroup: None }, 0);
        }
        processes
    }

    /// Ports and processes by address.
    fn reported(listeners: &[Listener], before: &mut BTreeSet<IpAddr>) -> BTreeMap<String, Vec<String>> {
        let (messages, _) = messages(listeners.iter(), &addresses(), &processes(), before);
        let read = |text: &String| -> (String, Vec<String>) {
            let body: Value = serde_json::from_str(text).unwrap();
            let list = |name: &str| body["listening-ports"][name].as_array().unwrap().clone();
            let ports = ["tcp4", "tcp6"].map(list).concat();
            let port = |p: &Value| format!("{} {}", p["port"], p["proc"].as_str().unwrap());
            (body["ip-addresses"][0].as_str().unwrap().to_owned(), ports.iter().map(port).collect())
        };
        messages.iter().map(read).collect()
    }

    #[test]
    fn each_address_has_what_listens_on_it_and_nothing_else() {
        let listeners = [
            listener(HOST, "127.0.0.1", 80, 1),
            listener(HOST, "10.0.0.5", 80, 2),
            listener(HOST, "0.0.0.0", 22, 3),
            listener(HOST, "0.0.0.0", 80, 1),
            listener(HOST, "only ::", 443, 4),
            listener(HOST, "::", 8080, 5),
            listener(2, "0.0.0.0", 80, 6),
            listener(2, "127.0.0.1", 9000, 6),
            listener(3, "::", 80, 7),
            listener(4, "0.0.0.0", 80, 8),
            listener(2, "172.17.0.2", 81, 9),
            listener(2, "172.17.0.2", 82, 77),
        ];
        let got = reported(&listeners, &mut BTreeSet::new());
        let want = [
            ("127.0.0.1", vec!["22 p3", "80 p1", "8080 p5"]),
            ("10.0.0.5", vec!["22 p3", "80 p2", "8080 p5"]),
            ("::1", vec!["443 p4", "8080 p5"]),
            ("fd00::5", vec!["443 p4", "8080 p5"]),
            ("172.17.0.2", vec!["80 p6", "81 ＜b＞", "82 unknown"]),
            ("172.17.0.3", vec!["80 p7"]),
        ];
        let want = want.map(|(ip, ports)| (ip.to_owned(), ports.into_iter().map(str::to_owned).collect()));
        assert_eq!(got, want.into());
    }

    #[test]
    fn an_address_on_which_nothing_listens_any_more_is_told_so_once() {
        let mut before = BTreeSet::new();
        let one = [listener(2, "172.17.0.2", 80, 1)];
        assert_eq!(reported(&one, &mut before)["172.17.0.2"], ["80 p1"]);
        assert!(reported(&[], &mut before)["172.17.0.2"].is_empty());
        assert!(reported(&[], &mut before).is_empty());
    }

    #[test]
    fn a_message_stays_below_the_limit_and_what_it_lacks_is_counted() {
        let listeners: Vec<Listener> = (1..20_000).map(|port| listener(HOST, "10.0.0.5", port, 1)).collect();
        let (messages, cut) = messages(listeners.iter(), &addresses(), &processes(), &mut BTreeSet::new());
        let body: Value = serde_json::from_str(&messages[0]).unwrap();
        let sent = body["listening-ports"]["tcp4"].as_array().unwrap().len() as u64;
        assert!(messages[0].len() < 128 * 1024 && sent > 1000 && sent + cut == 19_999, "{sent} {cut}");
    }

    #[test]
    fn the_host_has_a_loopback_address() {
        let (netns, addresses) = of_this_host().unwrap();
        assert!(netns > 0 && addresses.contains(&ip("127.0.0.1")), "{addresses:?}");
    }
}
