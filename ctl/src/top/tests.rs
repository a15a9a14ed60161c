//! Golden screens, and sessions without a terminal: `UPDATE_GOLDEN=1 cargo test -p ctl golden` writes the screens anew.

mod agent;
mod views;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use sockeye_ctl::protocol::{GroupBy, OwnerSort, Request, SortBy, Subscription};

use self::agent::Fake;
use super::app::{App, Effect, Hit, Input, Mode, Options};
use super::theme::{Colours, Theme};
use super::views::View;

/// A program without a terminal, and an agent without a kernel.
struct Session {
    app: App,
    agent: Fake,
    subscription: Option<Subscription>,
    effects: Vec<Effect>,
    now: Duration,
}

impl Session {
    fn new(view: View, size: (u16, u16)) -> Self {
        let options = Options { theme: Theme::of(Colours::Dark), ascii: false, mouse: true, every_ms: 1000 };
        let mut session = Self {
            app: App::new(options, view),
            agent: Fake::default(),
            subscription: None,
            effects: Vec::new(),
            now: Duration::ZERO,
        };
        session.input(Input::Resize(size.0, size.1));
        session.update();
        session
    }

    fn input(&mut self, input: Input) {
        for effect in self.app.handle(input) {
            match effect {
                Effect::Subscribe(subscription) => self.subscription = Some(subscription),
                other => self.effects.push(other),
            }
        }
    }

    /// The agent tells once.
    fn update(&mut self) {
        self.now += Duration::from_secs(1);
        let subscription = self.subscription.as_ref().expect("something is subscribed");
        let update = self.agent.update(subscription);
        self.input(Input::Update(Box::new(update), self.now));
    }

    fn key(&mut self, code: KeyCode) {
        self.input(Input::Key(KeyEvent::new(code, KeyModifiers::NONE)));
    }

    fn keys(&mut self, text: &str) {
        text.chars().for_each(|c| self.key(KeyCode::Char(c)));
    }

    fn click(&mut self, column: u16, row: u16) {
        let kind = MouseEventKind::Down(MouseButton::Left);
        self.input(Input::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE }));
    }

    /// What is asked beside the overview.
    fn asked(&self) -> &Request {
        &self.subscription.as_ref().expect("something is subscribed").requests[1]
    }

    fn screen(&mut self) -> String {
        let (width, height) = self.app.size;
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| self.app.draw(frame)).expect("drawn");
        let buffer = terminal.backend().buffer().clone();
        let line = |y| {
            let symbols: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            format!("{}\n", symbols.trim_end())
        };
        (0..height).map(line).collect()
    }

    fn golden(&mut self, name: &str) {
        let (width, height) = self.app.size;
        let path =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/top/golden/{name}-{width}x{height}.txt"));
        let screen = self.screen();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(&path, &screen).expect("written");
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert!(screen == expected, "{} is another:\n{screen}\nexpected:\n{expected}", path.display());
    }
}

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (200, 60)];

#[test]
fn golden_screens_of_every_view() {
    for size in SIZES {
        for view in View::ALL {
            let mut session = Session::new(view, size);
            (0..3).for_each(|_| session.update());
            session.golden(view.name());
        }
        let mut session = Session::new(View::Flows, size);
        session.key(KeyCode::Enter);
        (0..20).for_each(|_| session.update());
        session.golden("flow");
        session.keys("?");
        session.golden("help");
    }
}

#[test]
fn golden_screens_of_what_goes_wrong() {
    let mut session = Session::new(View::Flows, (80, 24));
    session.keys("/port=x");
    session.golden("wrong-filter");
    let mut session = Session::new(View::Flows, (80, 24));
    session.agent.lost = 12;
    session.update();
    session.golden("losing");
    session.input(Input::Broken("the agent has gone: it is looked for again and again".into()));
    session.golden("gone");
    session.input(Input::Tick(Duration::from_secs(90)));
    session.input(Input::Connected);
    session.agent.lost = 3;
    session.now = Duration::from_secs(90);
    session.update();
    session.golden("another-agent");
    let mut session = Session::new(View::Flows, (80, 24));
    session.app.options.ascii = true;
    session.golden("ascii");
}

/// Nothing of what was drawn before shows through, and the choice stays on the screen.
#[test]
fn a_resize_draws_what_a_new_terminal_would() {
    for view in View::ALL {
        let mut resized = Session::new(view, (200, 60));
        let _ = resized.screen();
        for size in [(80, 24), (20, 5), (1, 1), (300, 100), (120, 40)] {
            resized.input(Input::Resize(size.0, size.1));
            let _ = resized.screen();
        }
        resized.update();
        let mut fresh = Session::new(view, (120, 40));
        fresh.update();
        assert_eq!(resized.screen(), fresh.screen(), "{view:?}");
    }
}

#[test]
fn a_filter_is_in_force_while_it_is_typed_and_a_wrong_one_is_not() {
    let mut session = Session::new(View::Flows, (80, 24));
    session.keys("/port=443");
    let ports = |session: &Session| match session.asked() {
        Request::Flows(flows) => flows.port.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(ports(&session), [443]);
    session.keys(" state=x");
    assert_eq!(ports(&session), [443], "the last good one stays");
    assert!(session.screen().contains("state: connecting, open"), "{}", session.screen());
    session.key(KeyCode::Enter);
    assert_eq!((ports(&session), &session.app.mode), (vec![443], &Mode::Normal));
    session.keys("/ 80");
    session.key(KeyCode::Esc);
    assert_eq!(ports(&session), [443], "what was there before");
    session.key(KeyCode::Esc);
    assert_eq!(ports(&session), [] as [u16; 0]);
}

#[test]
fn a_filter_by_more_than_a_name_adds_up_the_flows_that_match() {
    let mut session = Session::new(View::Pods, (120, 40));
    session.keys("/cart");
    assert!(matches!(session.asked(), Request::Pods(pods) if pods.name.as_deref() == Some("cart")));
    session.keys(" port=5432");
    let Request::Flows(flows) = session.asked().clone() else { panic!("{:?}", session.asked()) };
    assert_eq!((flows.by, &*flows.port, flows.text), (Some(GroupBy::Pod), &[5432][..], vec!["cart".to_owned()]));
    session.update();
    session.key(KeyCode::Enter);
    session.key(KeyCode::Enter);
    let Request::Flows(flows) = session.asked().clone() else { panic!("{:?}", session.asked()) };
    assert_eq!((flows.by, &*flows.pod, &*flows.port), (None, &["shop/cart-0".to_owned()][..], &[5432][..]));
}

#[test]
fn a_filter_by_terms_makes_peers_of_the_flows_that_match() {
    let mut session = Session::new(View::Peers, (120, 40));
    session.keys("/port=443 cart");
    let asked = session.asked().clone();
    let Request::Flows(flows) = &asked else { panic!("{asked:?}") };
    assert_eq!((flows.pairs, flows.by.as_ref(), &*flows.port), (true, Some(&GroupBy::Workload), &[443][..]));
    session.update();
    let screen = session.screen();
    assert!(screen.contains("shop/Deployment/cart") && screen.contains("RESPONDER"), "{screen}");
    session.key(KeyCode::Enter);
    session.key(KeyCode::Enter);
    let Request::Flows(flows) = session.asked() else { panic!("{:?}", session.asked()) };
    let pair = flows.pair.as_ref().expect("between both");
    assert_eq!(
        (pair.initiator.as_deref(), pair.responder.as_deref()),
        (Some("shop/Deployment/cart"), Some("10.20.0.0/24"))
    );
    assert_eq!((flows.pairs, &*flows.port, &*flows.text), (false, &[443][..], &["cart".to_owned()][..]));
}

#[test]
fn ports_and_dns_name_the_terms_that_they_know() {
    for (view, text, told) in
        [(View::Ports, "/state=open", "ports know process"), (View::Dns, "/port=53", "dns is filtered by words")]
    {
        let mut session = Session::new(view, (120, 40));
        session.keys(text);
        let screen = session.screen();
        assert!(screen.contains(told), "{screen}");
    }
    let mut session = Session::new(View::Ports, (120, 40));
    session.keys("/protocol=udp");
    assert!(!session.screen().contains("ports know"));
}

#[test]
fn from_a_pod_to_its_flows_to_one_of_them_and_back() {
    let mut session = Session::new(View::Pods, (120, 40));
    session.key(KeyCode::Enter);
    assert!(matches!(session.asked(), Request::Flows(flows) if flows.pod == ["uid-0"] && flows.ended));
    session.update();
    session.key(KeyCode::Down);
    session.key(KeyCode::Enter);
    assert!(matches!(session.asked(), Request::Flows(flows) if flows.id == ["00000000000000f1"] && flows.wide));
    session.update();
    let screen = session.screen();
    assert!(screen.contains("pods > shop/cart-0 > 00000000000000f1"), "{screen}");
    for text in ["INITIATOR", "RESPONDER", "parents", "the responder sees", "received/s"] {
        assert!(screen.contains(text), "{text}: {screen}");
    }
    session.key(KeyCode::Esc);
    assert_eq!(session.app.screen().selected, 1, "where it was left");
    session.key(KeyCode::Esc);
    assert!(matches!(session.asked(), Request::Pods(_)));
}

#[test]
fn every_row_that_can_be_chosen_leads_to_its_flows() {
    for view in View::ALL.into_iter().filter(|view| view.has_rows() && *view != View::Flows) {
        let mut session = Session::new(view, (120, 40));
        session.key(KeyCode::Enter);
        assert!(matches!(session.asked(), Request::Flows(_)), "{view:?}");
    }
    for group in 1..=10 {
        let mut session = Session::new(View::Flows, (120, 40));
        session.keys(&"g".repeat(group));
        assert!(matches!(session.asked(), Request::Flows(flows) if flows.by.is_some()), "{:?}", session.asked());
        session.update();
        session.key(KeyCode::Enter);
        assert!(matches!(session.asked(), Request::Flows(flows) if flows.by.is_none()), "{:?}", session.asked());
    }
}

#[test]
fn sorting_by_keys_and_by_the_mouse() {
    let mut session = Session::new(View::Processes, (80, 24));
    let order = |session: &Session| match session.asked() {
        Request::Processes(owners) => (owners.sort, owners.reverse),
        Request::Ports => (OwnerSort::Name, session.app.screen().reverse),
        other => panic!("{other:?}"),
    };
    assert_eq!(order(&session), (OwnerSort::ReceivedRate, false));
    session.keys("<");
    assert_eq!(order(&session), (OwnerSort::SentRate, false));
    session.keys("r");
    assert_eq!(order(&session), (OwnerSort::SentRate, true));
    let screen = session.screen();
    let (row, line) = screen.lines().enumerate().find(|(_, line)| line.contains("RETR")).expect("the titles");
    let column = line.chars().collect::<Vec<_>>().windows(4).position(|part| part.iter().collect::<String>() == "RETR");
    session.click(column.expect("there") as u16, row as u16);
    assert_eq!(order(&session), (OwnerSort::Retrans, false));
    session.click(column.expect("there") as u16, row as u16);
    assert_eq!(order(&session), (OwnerSort::Retrans, true));
    let pid = session.app.hits.iter().find(|(_, hit)| *hit == Hit::Column(1)).expect("the pid").0;
    session.click(pid.x, pid.y);
    assert_eq!(order(&session), (OwnerSort::Pid, false));
    let mut session = Session::new(View::Flows, (200, 60));
    (0..9).for_each(|_| session.keys(">"));
    assert!(matches!(session.asked(), Request::Flows(flows) if flows.sort == SortBy::State));
}

#[test]
fn the_chosen_row_stays_chosen_where_it_goes() {
    let mut session = Session::new(View::Flows, (120, 40));
    session.key(KeyCode::Down);
    session.key(KeyCode::Down);
    let chosen = session.app.screen().key.clone();
    session.agent.turn = 2;
    session.update();
    assert_eq!((session.app.screen().selected, &session.app.screen().key), (0, &chosen));
    session.agent.flows = 1;
    session.update();
    assert_eq!(session.app.screen().selected, 0);
    session.key(KeyCode::End);
    session.key(KeyCode::PageUp);
    let _ = session.screen();
}

#[test]
fn a_pause_asks_for_the_header_only_and_ends_with_the_next_question() {
    let mut session = Session::new(View::Flows, (80, 24));
    let before = session.screen();
    session.keys(" ");
    assert_eq!(session.subscription.as_ref().expect("one").requests, [Request::Overview]);
    session.agent.turn = 3;
    session.update();
    let rows = |screen: &str| screen.lines().skip(5).take(10).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rows(&session.screen()), rows(&before));
    assert!(session.screen().contains("PAUSED"));
    session.keys("r");
    assert!(matches!(session.asked(), Request::Flows(flows) if flows.reverse));
}

#[test]
fn rows_are_copied_and_views_are_saved() {
    let mut session = Session::new(View::Flows, (80, 24));
    session.keys("yw");
    let [Effect::Copy(row), Effect::Save(name, text)] = &*session.effects else { panic!("{:?}", session.effects) };
    assert!(row.contains("initiator_process=curl") && row.contains("id=00000000000000f0"), "{row}");
    let saved: serde_json::Value = serde_json::from_str(text).expect("JSON");
    assert_eq!((name.as_str(), &saved["version"]), ("sockeye-top-flows", &2.into()));
    let tables: Vec<_> = saved["tables"].as_array().expect("tables").iter().map(|table| &table["name"]).collect();
    assert_eq!(tables, ["overview", "verdict", "losses", "flows"]);
}

#[test]
fn the_mouse_chooses_opens_and_shows_views() {
    let mut session = Session::new(View::Flows, (80, 24));
    let _ = session.screen();
    session.click(10, 8);
    assert_eq!(session.app.screen().selected, 2);
    session.click(10, 8);
    assert_eq!(session.app.screen().view, View::Flow);
    let tab = session.app.hits.iter().find(|(_, hit)| *hit == Hit::View(View::Pods)).expect("a tab").0;
    session.click(tab.x, tab.y);
    assert_eq!(session.app.screen().view, View::Pods);
    session.keys("m");
    assert_eq!(session.effects, [Effect::Mouse(false)]);
}

#[test]
fn an_answer_to_an_older_question_is_not_shown() {
    let mut session = Session::new(View::Flows, (80, 24));
    let old = session.subscription.clone().expect("one");
    session.keys("2");
    let late = session.agent.update(&old);
    session.input(Input::Update(Box::new(late), Duration::from_secs(9)));
    assert_eq!(session.app.screen().rows.len(), 0);
    session.update();
    assert!(session.screen().contains("nginx"));
}

#[test]
fn nothing_that_the_agent_says_acts_on_the_terminal() {
    for view in View::ALL {
        let mut session = Session::new(view, (200, 60));
        session.agent.hostile = true;
        (0..3).for_each(|_| session.update());
        let mut screens = vec![session.screen()];
        session.key(KeyCode::Enter);
        session.update();
        screens.push(session.screen());
        session.keys("?");
        screens.push(session.screen());
        session.key(KeyCode::Esc);
        session.keys("yw");
        for text in screens {
            assert!(text.chars().all(|c| c == '\n' || !sockeye_ctl::human::is_unsafe(c)), "{view:?}: {text:?}");
        }
    }
}

#[test]
fn the_end_of_what_the_agent_says_is_no_number_of_rows() {
    let mut session = Session::new(View::Agent, (80, 24));
    session.key(KeyCode::End);
    session.key(KeyCode::End);
    session.update();
    assert!(session.screen().contains("agent"));
}

mod any {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = KeyCode> {
        prop_oneof![
            "[ -~]".prop_map(|text| KeyCode::Char(text.chars().next().unwrap_or(' '))),
            proptest::sample::select(vec![
                KeyCode::Enter,
                KeyCode::Esc,
                KeyCode::Up,
                KeyCode::Down,
                KeyCode::Left,
                KeyCode::Right,
                KeyCode::PageDown,
                KeyCode::End,
                KeyCode::Home,
                KeyCode::Tab,
                KeyCode::BackTab,
                KeyCode::Backspace,
            ]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn keys_clicks_and_sizes_in_any_order(
            events in proptest::collection::vec((key(), 0u16..130, 0u16..45, 0u8..5), 0..60),
        ) {
            let mut session = Session::new(View::Flows, (100, 30));
            for (key, x, y, what) in events {
                match what {
                    0 => session.input(Input::Resize(x, y)),
                    1 => session.click(x, y),
                    2 => session.update(),
                    _ => session.key(key),
                }
                let _ = session.screen();
            }
        }
    }
}
