//! What operators ask: who talks to whom, what did that just do, how much is it now, what is idle.

use std::time::Duration;

use serde_json::{Map, Value};
use sockeye_ctl::protocol::{
    Direction, FlowsArguments, GroupBy, OwnersArguments, PeersArguments, Protocol, Request, SortBy,
};
use sockeye_tests::engines::Engines;
use sockeye_tests::net::Pair;
use sockeye_tests::{Agent, Collector, Traffic, exporting_agent_with, output, program, serve, wait_for};

type Row = Map<String, Value>;

const WEB_SERVER: &str = "mkdir /www; head -c 20000 /dev/zero > /www/file; exec httpd -f -p 80 -h /www";
const FETCHES: u64 = 12;
const CART: &str = "cart-5d4f8c7b9d-x2x4z";

fn rows(agent: &Agent, request: &Request) -> Vec<Row> {
    let answer = agent.ask(request).expect("an answer");
    answer.tables.last().expect("a table").objects().collect()
}

fn find<'a>(rows: &'a [Row], column: &str, value: &str) -> &'a Row {
    rows.iter().find(|row| row.get(column).is_some_and(|v| v == value)).unwrap_or_else(|| panic!("{value}: {rows:#?}"))
}

fn number(row: &Row, column: &str) -> u64 {
    row.get(column).and_then(Value::as_u64).unwrap_or_else(|| panic!("{column}: {row:#?}"))
}

fn peers(agent: &Agent, by: GroupBy) -> Vec<Row> {
    rows(agent, &Request::Peers(PeersArguments { by, limit: 0, ..PeersArguments::default() }))
}

fn flows(arguments: FlowsArguments) -> Request {
    Request::Flows(Box::new(FlowsArguments { limit: 0, ..arguments }))
}

/// A pod of a Deployment that has fetched something from one of a StatefulSet, and an idle container.
struct Shop {
    agent: Agent,
    collector: Collector,
    engines: Engines,
    db: sockeye_tests::cri::Pod,
    _pair: Pair,
}

fn shop() -> Shop {
    let pair = Pair::veth();
    let engines = Engines::start(&pair.names[0]);
    let (agent, collector) = exporting_agent_with(&["--config", &engines.config().display().to_string()]);
    let cri = engines.cri();
    let db_labels = [("app", "db"), ("statefulset.kubernetes.io/pod-name", "db-0")];
    let db = cri.run_labelled_pod("data", "db-0", &db_labels);
    cri.run_container(&db, "server", WEB_SERVER);
    let listens =
        |place: &str| rows(&agent, &Request::Ports).iter().any(|row| row.get("workload").is_some_and(|w| w == place));
    wait_for("the server", Duration::from_secs(10), || listens("data/db-0/server").then_some(()));
    let cart = cri.run_labelled_pod("shop", CART, &[("app", "cart"), ("pod-template-hash", "5d4f8c7b9d")]);
    let fetch = format!("for i in $(seq {FETCHES}); do wget -q -O /dev/null http://{}/file; done; sleep 1000", db.ip);
    cri.run_container(&cart, "app", &fetch.replace("$(seq 12)", "1 2 3 4 5 6 7 8 9 10 11 12"));
    let _ = engines.run_container("idle", &["--label", "team=none"], "sleep 1000");
    wait_for("all fetches", Duration::from_secs(30), || {
        let shown = rows(&agent, &Request::Pods(OwnersArguments::default()));
        let cart = shown.iter().find(|row| row.get("pod").is_some_and(|name| name == CART))?;
        (number(cart, "flows_out") == FETCHES).then_some(())
    });
    agent.settle();
    Shop { agent, collector, engines, db, _pair: pair }
}

/// Each answer adds up to what the collector was told, and to what the client has done.
#[test]
fn who_talks_to_whom_and_what_did_it_just_do() {
    let Shop { mut agent, collector, engines, db, _pair } = shop();
    let by_workload = peers(&agent, GroupBy::Workload);
    let pair = find(&by_workload, "initiator", "shop/Deployment/cart");
    assert_eq!(
        (pair["responder"].as_str(), number(pair, "flows")),
        (Some("data/StatefulSet/db"), FETCHES),
        "{pair:#?}"
    );
    assert!(number(pair, "received") >= FETCHES * 20_000 && pair["rtt_out_p50"].as_u64() > Some(0), "{pair:#?}");
    for (by, initiator, responder) in [
        (GroupBy::Namespace, "shop", "data"),
        (GroupBy::Pod, &*format!("shop/{CART}"), "data/db-0"),
        (GroupBy::Container, &*format!("shop/{CART}/app"), "data/db-0/server"),
        (GroupBy::Label("app".into()), "cart", "db"),
        (GroupBy::Process, &*format!("wget @shop/{CART}/app"), "httpd @data/db-0/server"),
    ] {
        let shown = peers(&agent, by.clone());
        let pair = find(&shown, "initiator", initiator);
        assert_eq!((pair["responder"].as_str(), number(pair, "flows")), (Some(responder), FETCHES), "{by}: {pair:#?}");
    }

    // The recent past, with columns of their own.
    let closed = FlowsArguments { closed: true, wide: true, ..FlowsArguments::default() };
    let of_cart = flows(FlowsArguments { label: vec!["app=cart".into()], ..closed.clone() });
    let past = rows(&agent, &of_cart);
    assert_eq!(past.len() as u64, FETCHES, "{past:#?}");
    for flow in &past {
        let text = |column: &str| flow.get(column).and_then(Value::as_str).unwrap_or_default();
        assert_eq!(
            [text("initiator_pod"), text("initiator_namespace"), text("initiator_container")],
            [CART, "shop", "app"]
        );
        assert_eq!(
            [text("initiator_workload_kind"), text("responder_workload_name")],
            ["Deployment", "data/StatefulSet/db"]
        );
        assert_eq!(
            [text("initiator_image"), text("initiator_runtime"), text("state")],
            ["ci.local/bb:1", "containerd", "closed"]
        );
        assert_eq!([text("responder_pod_uid"), text("responder_pod")], [&db.uid, "db-0"]);
        assert!(!text("node").is_empty() && text("initiator_container_id").len() == 64, "{flow:#?}");
    }
    let sum = |column: &str| past.iter().map(|flow| number(flow, column)).sum::<u64>();
    assert_eq!([sum("sent"), sum("received")], ["sent", "received"].map(|column| number(pair, column)));

    // Filters: of one kind any, of different kinds all.
    let count =
        |arguments: FlowsArguments| rows(&agent, &flows(FlowsArguments { closed: true, ..arguments })).len() as u64;
    let any = FlowsArguments::default;
    let place = format!("shop/{CART}/app");
    for arguments in [
        FlowsArguments { container: vec![place], port: vec![80, 1], ..any() },
        FlowsArguments { workload: vec!["Deployment/cart".into()], protocol: vec![Protocol::Tcp], ..any() },
        FlowsArguments {
            address: vec![format!("{}/32", db.ip).parse().expect("a network")],
            namespace: vec!["data".into()],
            ..any()
        },
        FlowsArguments { pod: vec!["data/db-0".into()], direction: vec![Direction::Local], ..any() },
        FlowsArguments {
            pod: vec!["db-0".into()],
            min_bytes: Some(20_000),
            process: vec!["nothing".into(), "wget".into()],
            ..any()
        },
    ] {
        assert_eq!(count(arguments.clone()), FETCHES, "{arguments:?}");
    }
    for arguments in [
        FlowsArguments { pod: vec!["db-0".into()], port: vec![81], ..any() },
        FlowsArguments {
            namespace: vec!["data".into()],
            label: vec!["app=db".into()],
            protocol: vec![Protocol::Udp],
            ..any()
        },
        FlowsArguments { pod: vec!["db-0".into()], min_bytes: Some(1_000_000), ..any() },
        FlowsArguments { pod: vec!["db-0".into()], rtt_over_us: Some(1_000_000), ..any() },
    ] {
        assert_eq!(count(arguments.clone()), 0, "{arguments:?}");
    }
    let grouped = flows(FlowsArguments { by: Some(GroupBy::Namespace), ..closed.clone() });
    let grouped = rows(&agent, &grouped);
    assert_eq!(number(find(&grouped, "name", "data"), "flows_in"), FETCHES, "{grouped:#?}");
    assert_eq!(number(find(&grouped, "name", "shop"), "sent"), sum("sent"), "{grouped:#?}");
    let pairs = rows(&agent, &flows(FlowsArguments { by: Some(GroupBy::Namespace), pairs: true, ..closed }));
    let pair = find(&pairs, "responder", "data");
    assert_eq!((pair["initiator"].as_str(), number(pair, "sent")), (Some("shop"), sum("sent")), "{pairs:#?}");
    assert_eq!((number(pair, "flows_out"), number(pair, "flows_in")), (FETCHES, 0), "each once: {pairs:#?}");

    // A pod that is gone is marked as such; what is idle is listed on demand.
    let shown =
        |all: bool| rows(&agent, &Request::Containers(OwnersArguments { all, limit: 0, ..OwnersArguments::default() }));
    let has_idle = |rows: &[Row]| rows.iter().any(|row| row.get("container").is_some_and(|name| name == "idle"));
    let (without, with, again) = (shown(false), shown(true), shown(false));
    assert_eq!(
        [has_idle(&without), has_idle(&with), has_idle(&again)],
        [false, true, false],
        "{:?}",
        with.iter().map(|row| (row.get("container"), row.get("cgroup"))).collect::<Vec<_>>()
    );
    let workloads = || rows(&agent, &Request::Workloads(OwnersArguments::default()));
    let of_db = |rows: &[Row]| find(rows, "workload", "data/StatefulSet/db").clone();
    let before = of_db(&workloads());
    assert_eq!(
        (before["kind"].as_str(), before["state"].as_str()),
        (Some("StatefulSet"), Some("running")),
        "{before:#?}"
    );
    engines.cri().remove_pod(&db);
    let pods = rows(&agent, &Request::Pods(OwnersArguments::default()));
    assert_eq!(
        (&find(&pods, "pod", "db-0")["state"], &find(&pods, "pod", CART)["state"]),
        (&"gone".into(), &"running".into())
    );
    assert_eq!(of_db(&workloads())["state"], "gone");

    // As people see it (`--nocapture`); a pipe is not cut.
    let ctl = |args: &[&str]| {
        let socket = agent.socket().display().to_string();
        let text = output(&program("ctl").display().to_string(), &[&["--socket", &socket], args].concat());
        println!("$ sockeyectl {}\n{text}", args.join(" "));
        text
    };
    let text = ctl(&["peers", "--by", "container"]);
    let line = text.lines().find(|line| line.contains(CART)).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains(&format!("shop/{CART}/app")) && line.contains("data/db-0/server"), "{text}");
    for question in [
        &["pods", "--sort", "rtt"][..],
        &["peers", "db"],
        &["flows", "--closed", "--pod", "shop/cart-5d4f8c7b9d-x2x4z", "--limit", "3"],
        &["workloads"],
        &["flows", "--closed", "--by", "namespace"],
        &["containers", "--all"],
    ] {
        let _ = ctl(question);
    }

    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let told: Vec<_> = collected.flows().iter().filter(|flow| flow["dst_container"] == "data/db-0/server").collect();
    let of_collector = |column: &str| told.iter().filter_map(|flow| flow[column].as_u64()).sum::<u64>();
    assert_eq!([of_collector("in_bytes"), of_collector("out_bytes")], [sum("sent"), sum("received")]);
}

/// Rates are those at which a program sends.
#[test]
fn how_much_is_it_now() {
    const BPS: f64 = 800_000.0;
    let agent = Agent::start(&[]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let mut steady = Traffic::start(None, &["steady", "127.0.0.1", &port.to_string(), &BPS.to_string()]);
    let _ = steady.says();
    let pid = steady.pid();
    let is_right = |row: &Row, column: &str| {
        let rate = row.get(column).and_then(Value::as_f64).unwrap_or(0.0) * 8.0;
        (rate - BPS).abs() < 0.1 * BPS
    };
    wait_for("the rate of the process", Duration::from_secs(45), || {
        let rows = rows(&agent, &Request::Processes(OwnersArguments::default()));
        let row = rows.into_iter().find(|row| row["pid"] == pid)?;
        is_right(&row, "sent_per_second").then_some(())
    });
    wait_for("the rate of the flow", Duration::from_secs(15), || {
        let of_flow = FlowsArguments { port: vec![port], sort: SortBy::Rate, ..FlowsArguments::default() };
        rows(&agent, &flows(of_flow)).first().filter(|row| is_right(row, "sent_per_second")).map(drop)
    });
    wait_for("the rate of the pair", Duration::from_secs(15), || {
        let host = peers(&agent, GroupBy::Host);
        host.first().filter(|row| is_right(row, "sent_per_second")).map(drop)
    });
    drop(steady);
    wait_for("silence", Duration::from_secs(30), || {
        let rows = rows(&agent, &Request::Processes(OwnersArguments::default()));
        let row = rows.into_iter().find(|row| row["pid"] == pid)?;
        (row["sent_per_second"] == 0).then_some(())
    });
}

/// The past is bounded by number, and by time.
#[test]
fn the_past_is_bounded() {
    let agent = Agent::start(&["--closed-max", "50", "--closed-seconds", "8"]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let mut storm = Traffic::start(None, &["storm", "127.0.0.1", &port.to_string(), "200"]);
    let _ = storm.says();
    let past = || {
        let closed = FlowsArguments { closed: true, port: vec![port], ..FlowsArguments::default() };
        rows(&agent, &flows(closed)).len()
    };
    // Those in the table that linger for late records are of the past, too.
    agent.settle();
    assert!(past() >= 50, "{}", past());
    wait_for("no more than was asked for", Duration::from_secs(15), || (past() == 50).then_some(()));
    wait_for("the end of the past", Duration::from_secs(15), || (past() == 0).then_some(()));
}
