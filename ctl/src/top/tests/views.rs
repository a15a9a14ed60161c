//! What single views ask for and show.

use ratatui::crossterm::event::KeyCode;
use sockeye_ctl::protocol::{DnsBy, DnsSort, GroupBy, OwnerSort, Request};

use super::{SIZES, Session, View};

#[test]
fn questions_to_servers_by_who_asks_whom_for_what() {
    let mut session = Session::new(View::Flows, (120, 40));
    session.keys("9");
    let asked = |session: &Session| match session.asked() {
        Request::Dns(dns) => dns.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((asked(&session).by, asked(&session).sort), (DnsBy::Process, DnsSort::Queries));
    session.keys(">>r");
    assert_eq!((asked(&session).sort, asked(&session).reverse), (DnsSort::Failures, true));
    session.keys("/cart");
    session.key(KeyCode::Enter);
    assert_eq!(asked(&session).name.as_deref(), Some("cart"));
    // Where Enter leads: the flows to servers, or to what was asked for.
    let expected = [
        (DnsBy::Process, "pid=[4000] port=[53] address=[] name=[]"),
        (DnsBy::Container, "pid=[] port=[53] address=[] name=[]"),
        (DnsBy::Server, r#"pid=[] port=[53] address=["10.0.0.53/32"] name=[]"#),
        (DnsBy::Name, r#"pid=[] port=[] address=[] name=["downloads.example.net"]"#),
        (DnsBy::Host, "pid=[] port=[53] address=[] name=[]"),
        (DnsBy::Process, "pid=[4000] port=[53] address=[] name=[]"),
    ];
    for (by, flows) in expected {
        assert_eq!(asked(&session).by, by);
        session.update();
        let screen = session.screen();
        assert!(screen.contains(&format!("dns by {}", format!("{by:?}").to_lowercase())), "{screen}");
        session.key(KeyCode::Enter);
        let Request::Flows(chosen) = session.asked().clone() else { panic!("{:?}", session.asked()) };
        let addresses: Vec<String> = chosen.address.iter().map(|address| (*address).into()).collect();
        let shown = format!("pid={:?} port={:?} address={addresses:?} name={:?}", chosen.pid, chosen.port, chosen.name);
        assert_eq!(shown, flows, "{by:?}");
        session.key(KeyCode::Esc);
        session.keys("g");
    }
}

#[test]
fn doubt_about_a_name_is_shown_however_little_room_there_is() {
    for size in SIZES {
        let mut session = Session::new(View::Flows, size);
        let screen = session.screen();
        let with = |name: &str| screen.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
        let (sure, doubtful) = (with("curl[4001]"), with("curl[4004]"));
        assert!(doubtful.contains("?:443"), "{doubtful}");
        assert!(sure.contains("downl") && !sure.contains('?'), "{sure}");
    }
    let mut session = Session::new(View::Flows, (120, 40));
    (0..4).for_each(|_| session.key(KeyCode::Down));
    session.key(KeyCode::Enter);
    session.update();
    let page = session.screen();
    assert!(page.contains("the responder is called www.example.org or downloads.example.net?"), "{page}");
}

#[test]
fn peers_by_what_the_responder_is_called() {
    let mut session = Session::new(View::Peers, (120, 40));
    let by = |session: &Session| match session.asked() {
        Request::Peers(peers) => peers.by.clone(),
        other => panic!("{other:?}"),
    };
    let mut seen = vec![by(&session)];
    while by(&session) != GroupBy::Name && seen.len() < 20 {
        session.keys("g");
        seen.push(by(&session));
    }
    assert!(seen.contains(&GroupBy::Name), "{seen:?}");
    session.update();
    assert!(session.screen().contains("peers by name"), "{}", session.screen());
    session.key(KeyCode::Enter);
    let Request::Flows(flows) = session.asked() else { panic!("{:?}", session.asked()) };
    let pair = flows.pair.as_ref().expect("a pair");
    assert_eq!((&pair.by, pair.initiator.as_deref()), (&GroupBy::Name, Some("shop/Deployment/cart")));
}

#[test]
fn workloads_by_their_pods() {
    let mut session = Session::new(View::Workloads, (120, 40));
    (0..20).for_each(|_| session.keys("<"));
    session.keys(">");
    assert!(matches!(session.asked(), Request::Workloads(a) if a.sort == OwnerSort::Pods), "{:?}", session.asked());
    assert!(session.screen().contains("PODS▼"), "{}", session.screen());
}

#[test]
fn flows_that_have_ended_say_when_they_go() {
    for size in SIZES {
        let mut session = Session::new(View::Flows, size);
        assert!(!session.screen().contains("GONE IN"));
        session.keys("e");
        session.update();
        let screen = session.screen();
        let line = |pid: &str| screen.lines().find(|line| line.contains(pid)).unwrap_or_default().to_owned();
        assert!(screen.contains("GONE IN"), "{screen}");
        assert!(line("curl[4002]").ends_with("4 m 57 s") && line("curl[4000]").ends_with('-'), "{screen}");
        (0..20).for_each(|_| session.keys(">"));
        assert!(session.screen().contains("GONE IN▼"), "{}", session.screen());
        session.keys("e");
        session.update();
        assert!(session.screen().contains("RECV/s▼"), "{}", session.screen());
    }
    let mut session = Session::new(View::Flows, (120, 40));
    session.key(KeyCode::Down);
    session.key(KeyCode::Down);
    session.key(KeyCode::Enter);
    session.update();
    assert!(session.screen().contains("forgotten in 4 m 57 s"), "{}", session.screen());
}
