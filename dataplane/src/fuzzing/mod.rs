//! What a fuzzer calls, one function for each kind of input from outside: `tests/fuzz/` wraps each for libFuzzer, and
//! `dataplane/tests/corpus.rs` replays what was found. They are here because most parsers are private. A function
//! panics when the code below it does, or when what it promises does not hold: text is clean, and bounded like its
//! input.

mod control;
mod export;
mod http;
mod ingest;
mod input;
mod names;
mod owners;

pub use control::{control_request, control_response};
pub use export::tlv;
pub use http::http_request;
pub use ingest::ring;
pub use names::{client_hello, dns_message, host_name, quic_initial, request_host};
pub use owners::{cgroup_path, config, conntrack, cri, docker, packages};

/// Something to try an input on.
pub type Target = fn(&[u8]);

/// All of them, each by the name of its file and of its folder in the corpus.
pub const TARGETS: [(&str, Target); 16] = [
    ("ring", ring),
    ("control_request", control_request),
    ("control_response", control_response),
    ("cgroup_path", cgroup_path),
    ("packages", packages),
    ("docker", docker),
    ("cri", cri),
    ("config", config),
    ("tlv", tlv),
    ("http_request", http_request),
    ("host_name", host_name),
    ("dns_message", dns_message),
    ("client_hello", client_hello),
    ("request_host", request_host),
    ("quic_initial", quic_initial),
    ("conntrack", conntrack),
];
