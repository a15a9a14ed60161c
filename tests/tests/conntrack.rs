//! What the kernel's connection tracking says of a connection, asked for one by one.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use sockeye::model::flow::{Endpoint, FlowKey, Proto};
use sockeye::owners::conntrack::{Conntrack, Error, Translated, Tuple};
use sockeye::privileges::confine;
use sockeye_tests::net::{Namespace, command};
use sockeye_tests::{Traffic, wait_for};

/// A client, a router that translates, and a server, each in a namespace, with addresses of both versions.
struct Routed {
    client: Namespace,
    router: Namespace,
    server: Namespace,
}

const RULES: &str = "table inet nat {
    chain prerouting {
        type nat hook prerouting priority -100;
        ip daddr 10.96.0.80 tcp dport 80 dnat ip to 10.72.0.2:8000;
        ip6 daddr fd00:96::53 udp dport 53 dnat ip6 to [fd00:72::2]:5300;
    }
    chain postrouting {
        type nat hook postrouting priority 100;
        ip daddr 10.72.0.2 masquerade random;
    }
}
";

impl Routed {
    fn new() -> Self {
        let routed = Self { client: Namespace::new(), router: Namespace::new(), server: Namespace::new() };
        let Self { client, router, server } = &routed;
        client.join("10.71.0.2/24", router, "10.71.0.1/24");
        router.join("10.72.0.1/24", server, "10.72.0.2/24");
        router.forward();
        let six = "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
        assert!(command(router.some(), "sh").args(["-c", six]).status().expect("sh").success());
        for (number, end, own, way) in [(71, client, 2, 1), (72, server, 2, 1)] {
            let devices = |net: &Namespace| {
                let output = command(net.some(), "ip").args(["-o", "-4", "addr"]).output().expect("ip").stdout;
                let output = String::from_utf8(output).expect("text");
                let line = output.lines().find(|line| line.contains(&format!("10.{number}.0."))).expect("an address");
                line.split_whitespace().nth(1).expect("a device").to_owned()
            };
            for (net, last) in [(end, own), (router, way)] {
                net.ip(&format!("addr add fd00:{number}::{last}/64 dev {} nodad", devices(net)));
            }
            end.ip(&format!("route add default via 10.{number}.0.1"));
            end.ip(&format!("-6 route add default via fd00:{number}::1"));
        }
        router.nft(RULES);
        routed
    }
}

fn netns(net: &Namespace) -> File {
    File::open(format!("/run/netns/{}", net.name)).expect("its namespace")
}

fn endpoint(address: &str, port: u64) -> Endpoint {
    let port = u16::try_from(port).expect("a port");
    Endpoint { addr: address.parse::<IpAddr>().expect("an address").into(), port }
}

/// What another program says of the connection to this port: `src=` and so on, first as sent, then as answered.
fn listed(net: &Namespace, family: &str, port: u64) -> Translated {
    let list = |program: &str, args: &[&str]| {
        let output = command(net.some(), program).args(args).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8(output.stdout).expect("text"))
    };
    let all = list("conntrack", &["-L", "-f", family]).or_else(|| list("cat", &["/proc/net/nf_conntrack"]));
    let all = all.expect("the program 'conntrack' (Debian: conntrack), or /proc/net/nf_conntrack");
    let line = all.lines().find(|line| line.contains(&format!("sport={port} "))).unwrap_or_else(|| panic!("{all}"));
    let values = |name: &str| -> Vec<String> {
        let found = line.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.map(str::to_owned).collect()
    };
    let [from, to, from_port, to_port] = ["src", "dst", "sport", "dport"].map(values);
    let end = |address: &str, port: &str| endpoint(address, port.parse().expect("a port"));
    let tuple = |at: usize| Tuple { from: end(&from[at], &from_port[at]), to: end(&to[at], &to_port[at]) };
    Translated { original: tuple(0), reply: tuple(1) }
}

#[test]
fn it_says_of_one_connection_what_other_programs_list() {
    let net = Routed::new();
    let mut servers = [("serve", "10.72.0.2", "8000"), ("udp_echo", "fd00:72::2", "5300")]
        .map(|(kind, address, port)| Traffic::start(net.server.some(), &[kind, address, port]));
    servers.iter_mut().for_each(|server| drop(server.says()));
    let mut tcp = Traffic::start(net.client.some(), &["client", "10.96.0.80", "80", "10", "20", "never"]);
    let tcp_port = tcp.says()["local"].as_u64().expect("a port");
    let udp_port = 4053;
    let from = ["udp_from", "fd00:71::2", "4053", "fd00:96::53", "53", "3"];
    let mut udp = Traffic::odd(net.client.some(), &from);
    udp.says();

    let mut router = Conntrack::in_namespace(netns(&net.router).as_fd()).expect("the router's");
    let keys = [
        (Proto::Tcp, endpoint("10.71.0.2", tcp_port), endpoint("10.96.0.80", 80)),
        (Proto::Udp, endpoint("fd00:71::2", udp_port), endpoint("fd00:96::53", 53)),
    ];
    let responders = [endpoint("10.72.0.2", 8000), endpoint("fd00:72::2", 5300)];
    for ((proto, initiator, responder), (family, port, own)) in
        keys.into_iter().zip([("ipv4", tcp_port, responders[0]), ("ipv6", udp_port, responders[1])])
    {
        let found = router.ask(proto, initiator, responder).expect("an answer").expect("an entry");
        assert_eq!(found, listed(&net.router, family, port));
        assert_eq!((found.original, found.reply.from), (Tuple { from: initiator, to: responder }, own));
        assert!(found.is_translated());
        let by_responder = router.ask(proto, found.reply.to, found.reply.from).expect("an answer");
        assert_eq!(by_responder, Some(found), "as the responder knows it");
    }
    let masqueraded = router.ask(keys[0].0, keys[0].1, keys[0].2).expect("an answer").expect("an entry");
    assert_eq!(masqueraded.reply.to.addr, endpoint("10.72.0.1", 0).addr);

    // A batch: each answer is at its place, and what is not tracked has none.
    let key = |(proto, initiator, responder): (Proto, Endpoint, Endpoint)| FlowKey { proto, initiator, responder };
    let stranger = key((Proto::Tcp, endpoint("10.71.0.2", 1), endpoint("10.96.0.80", 80)));
    let mixed = FlowKey { responder: responders[1], ..stranger };
    let other_protocol = FlowKey { proto: Proto::Udp, ..key(keys[0]) };
    let six = [stranger, key(keys[0]), mixed, key(keys[1]), other_protocol, key(keys[0])];
    let many: Vec<_> = six.into_iter().cycle().take(150).collect();
    let answers = router.ask_many(&many).expect("answers");
    for (key, answer) in many.iter().zip(&answers) {
        let is_known = *key == six[1] || *key == six[3];
        let expected = is_known.then_some(Tuple { from: key.initiator, to: key.responder });
        assert_eq!(answer.map(|found| found.original), expected);
    }
    assert_eq!(router.figures().asked, 155);
    measure(&mut router, six[1], stranger);

    // Where nothing is tracked, that is seen at once.
    let mut client = Conntrack::in_namespace(netns(&net.client).as_fd()).expect("the client's");
    for skipped in 0..3 {
        assert_eq!(client.ask(keys[0].0, keys[0].1, keys[0].2).expect("an answer"), None);
        assert_eq!((client.figures().asked, client.figures().skipped), (1, skipped));
    }
}

/// Prints what a question costs: `-- --nocapture` shows it.
fn measure(conntrack: &mut Conntrack, known: FlowKey, stranger: FlowKey) {
    const ROUNDS: u32 = 500;
    // One of each batch is known, so that it goes on asking.
    let strangers = [&[known][..], &[stranger; 63]].concat();
    for (what, keys) in [("1", &[known][..]), ("64", &[known; 64]), ("64, 63 of them unknown", &strangers)] {
        let before = conntrack.figures();
        let start = Instant::now();
        for _ in 0..ROUNDS {
            conntrack.ask_many(keys).expect("answers");
        }
        let each_us = start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS) / keys.len() as f64;
        println!("{each_us:.2} us per question, in batches of {what}");
        assert_eq!(conntrack.figures().asked - before.asked, u64::from(ROUNDS) * keys.len() as u64);
    }
}

/// The reason is told, and it is not "none".
#[test]
fn who_may_not_ask_is_told_so() {
    let other = Namespace::new();
    std::thread::scope(|scope| {
        let without = scope.spawn(|| {
            confine("sockeye-test"); // without CAP_NET_ADMIN and CAP_SYS_ADMIN
            let [a, b] = [endpoint("10.0.0.1", 1), endpoint("10.0.0.2", 2)];
            let mut conntrack = Conntrack::new().expect("a socket");
            let refused = conntrack.ask(Proto::Tcp, a, b);
            assert!(matches!(refused, Err(Error::NotAllowed)), "{refused:?}");
            let refused = Conntrack::in_namespace(netns(&other).as_fd());
            assert!(matches!(refused, Err(Error::Namespace(_))), "{refused:?}");
        });
        without.join().expect("it ends well");
    });
}

/// It is tracked, and that is not the same as translated.
#[test]
fn a_connection_that_is_tracked_and_not_translated() {
    let net = Namespace::new();
    // A rule that looks at states switches the tracking on, and translates nothing.
    net.nft("table inet f { chain input { type filter hook input priority 0; ct state established accept; }\n}\n");
    let mut server = Traffic::start(net.some(), &["serve", "127.0.0.1", "8001"]);
    server.says();
    let mut client = Traffic::start(net.some(), &["client", "127.0.0.1", "8001", "10", "20", "never"]);
    let local: SocketAddr = format!("127.0.0.1:{}", client.says()["local"]).parse().expect("an address");
    let [from, to] = [endpoint("127.0.0.1", local.port().into()), endpoint("127.0.0.1", 8001)];
    let mut conntrack = Conntrack::in_namespace(netns(&net).as_fd()).expect("its own");
    let found =
        wait_for("an entry", Duration::from_secs(5), || conntrack.ask(Proto::Tcp, from, to).expect("an answer"));
    assert!(!found.is_translated());
    assert_eq!(found, Translated { original: Tuple { from, to }, reply: Tuple { from: to, to: from } });
}
