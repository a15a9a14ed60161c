//! Writes the screens of `docs/top/`: each view of `ctl top` in a real terminal at two sizes, as text and as picture, with pods and
//! programs that talk. `SOCKEYE_BIN=target/release cargo run -p sockeye-tests --bin screens -- docs/top`, as root.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sockeye_tests::dns::Dns;
use sockeye_tests::engines::Engines;
use sockeye_tests::net::Pair;
use sockeye_tests::tmux::Terminal;
use sockeye_tests::{Agent, Guard, Traffic, program, serve};

const VIEWS: [&str; 9] = ["flows", "processes", "containers", "pods", "workloads", "peers", "ports", "agent", "dns"];
/// Until an update is there, and until there are lines of the last minutes.
const PAUSE: Duration = Duration::from_secs(3);
const MINUTES: Duration = Duration::from_secs(90);
/// One that asks often, and one that asks for what is not there, and where nobody answers.
const ASKS: [&str; 2] = [
    "while sleep 0.5; do dig @127.0.0.1 downloads.example.net; done",
    "while sleep 2; do dig @127.0.0.1 old.missing.example; dig +tries=1 +time=1 @203.0.113.66 downloads.example.net; done",
];
const WEB_SERVER: &str = "mkdir /www; head -c 200000 /dev/zero > /www/file; exec httpd -f -p 80 -h /www";

fn main() {
    let folder = std::env::args().nth(1).expect("usage: screens FOLDER");
    let folder = Path::new(&folder);
    fs::create_dir_all(folder).expect("a folder");
    let pair = Pair::veth();
    let engines = Engines::start(&pair.names[0]);
    let agent = Agent::start(&["--config", &engines.config().display().to_string()]);
    let cri = engines.cri();
    let db_labels = [("app", "db"), ("statefulset.kubernetes.io/pod-name", "db-0")];
    let db = cri.run_labelled_pod("data", "db-0", &db_labels);
    cri.run_container(&db, "server", WEB_SERVER);
    for (number, pause) in [(1, "0.2"), (2, "0.9")] {
        let name = format!("cart-5d4f8c7b9d-x2x4{number}");
        let cart = cri.run_labelled_pod("shop", &name, &[("app", "cart"), ("pod-template-hash", "5d4f8c7b9d")]);
        let fetch = format!("while sleep {pause}; do wget -q -O /dev/null http://{}/file; done", db.ip);
        cri.run_container(&cart, "app", &fetch);
    }
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let busy: Vec<Traffic> = ["800000", "64000", "8000"]
        .map(|bits| Traffic::start(None, &["steady", "127.0.0.1", &port.to_string(), bits]))
        .into();
    let dns = Dns::start(&["--host-record=downloads.example.net,203.0.113.7", "--address=/missing.example/"]);
    let ask = |script: &str| {
        let mut command = dns.command("sh");
        Guard(command.args(["-c", script]).stdout(Stdio::null()).spawn().expect("a shell"))
    };
    let askers = ASKS.map(ask);
    std::thread::sleep(MINUTES);
    for (columns, rows) in [(80, 24), (140, 36)] {
        keep_all(&agent, folder, (columns, rows));
    }
    drop((busy, askers));
}

fn keep_all(agent: &Agent, folder: &Path, (columns, rows): (u16, u16)) {
    let terminal = Terminal::new(columns, rows);
    terminal.line(&format!("{} --socket {} top", program("ctl").display(), agent.socket().display()));
    terminal.wait_for("1 flows");
    let keep = |name: &str| {
        std::thread::sleep(PAUSE);
        let file = |end: &str| folder.join(format!("{name}-{columns}x{rows}.{end}"));
        let text: String = terminal.screen().lines().map(|line| format!("{}\n", line.trim_end())).collect();
        fs::write(file("txt"), text).expect("written");
        fs::write(file("svg"), terminal.picture()).expect("written");
    };
    for (number, view) in VIEWS.into_iter().enumerate() {
        terminal.text(&(number + 1).to_string());
        if view == "dns" {
            // By names: each dig is another process.
            terminal.text("ggg");
        }
        keep(view);
    }
    terminal.text("1");
    terminal.key("Enter");
    terminal.wait_for("received/s");
    std::thread::sleep(5 * PAUSE);
    keep("flow");
    terminal.text("?");
    keep("help");
}
