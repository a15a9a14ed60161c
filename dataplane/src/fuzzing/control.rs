//! What goes over the control socket, both ways.

use sockeye_ctl::client::read_answer;
use sockeye_ctl::protocol::{OwnersArguments, RttArguments};
use sockeye_ctl::render::{self, Style};
use sockeye_ctl::{Request, VERSION};

use super::input::assert_clean;

/// A line from a client. What is understood comes back from the words of our own client.
pub fn control_request(data: &[u8]) {
    match Request::parse(data) {
        Ok(request) => {
            let value: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
            assert_eq!(value["version"], VERSION, "no other version is understood");
            assert_eq!(Request::parse(request.to_line().as_bytes()), Ok(request));
        }
        // A character may be written as `\u{10ffff}`.
        Err(err) => assert!(err.to_string().len() <= 10 * data.len() + 1000),
    }
}

/// A line from an agent, shown in every form.
pub fn control_response(data: &[u8]) {
    const COLUMNS: usize = 100;
    let answer = match read_answer(data) {
        Ok(answer) => answer,
        Err(err) => return assert_clean(&err.to_string(), 10 * data.len() + 1000),
    };
    for request in [
        Request::Stats,
        Request::Flows(Box::default()),
        Request::Processes(OwnersArguments::default()),
        Request::Containers(OwnersArguments::default()),
        Request::Pods(OwnersArguments::default()),
        Request::Ports,
        Request::Rtt(RttArguments::default()),
    ] {
        let text = render::answer(&answer, &request, Style { columns: COLUMNS, color: false, zeros: true });
        // A row of three bytes may take a line.
        let most = (4 * COLUMNS + 100) * (data.len() + 10);
        text.lines().for_each(|line| assert_clean(line, most));
        assert!(text.len() <= most, "{} bytes of {}", text.len(), data.len());
        let _ = render::answer(&answer, &request, Style { columns: 1, color: true, zeros: false });
    }
}
