//! What tshark sees on a device: the packet view, which shares nothing with the agent.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::{Guard, net, output, wait_for};

/// A capture that goes on.
pub struct Capture {
    tshark: Guard,
    folder: tempfile::TempDir,
}

/// Packets of the past.
pub struct Packets(tempfile::TempDir);

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("packets.pcap")
}

impl Capture {
    /// Of TCP on a device of a namespace. It has begun when this returns.
    ///
    /// # Panics
    /// If tshark does not start.
    #[must_use]
    pub fn start(netns: &str, device: &str) -> Self {
        Self::start_of(netns, device, "tcp")
    }

    /// The same of what a filter lets through.
    ///
    /// # Panics
    /// If tshark does not start.
    #[must_use]
    pub fn start_of(netns: &str, device: &str, filter: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let child: Child = net::command(Some(netns), "tshark")
            .args(["-q", "-i", device, "-f", filter, "-w"])
            .arg(file(&folder))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a file"))
            .spawn()
            .expect("tshark starts");
        let tshark = Guard(child);
        // dumpcap names the file when the device is open.
        wait_for("a capture", Duration::from_secs(20), || {
            std::fs::metadata(file(&folder)).is_ok_and(|file| file.len() > 0).then_some(())
        });
        Self { tshark, folder }
    }

    /// Ends it.
    #[must_use]
    pub fn finish(mut self) -> Packets {
        // What was captured is written once a second or so.
        std::thread::sleep(Duration::from_millis(1500));
        self.tshark.signal(Signal::SIGINT);
        let _ = self.tshark.0.wait();
        Packets(self.folder)
    }
}

impl Packets {
    /// For each name that was asked for once, how long the answer took.
    ///
    /// # Panics
    /// If tshark fails.
    #[must_use]
    pub fn dns_us(&self) -> BTreeMap<String, u64> {
        let path = file(&self.0);
        let args = [
            "-n",
            "-r",
            path.to_str().expect("UTF-8"),
            "-Y",
            "dns.time",
            "-T",
            "fields",
            "-e",
            "dns.qry.name",
            "-e",
            "dns.time",
        ];
        let lines = output("tshark", &args);
        let pairs = lines.lines().filter_map(|line| line.split_once('\t'));
        pairs.map(|(name, s)| (name.to_owned(), (s.parse::<f64>().expect("seconds") * 1e6) as u64)).collect()
    }

    /// How long after each segment with data to `port` its acknowledgement came, sorted. Segments that were sent again are left out.
    ///
    /// # Panics
    /// If tshark fails.
    #[must_use]
    pub fn data_round_trips_us(&self, port: u64) -> Vec<u64> {
        let path = file(&self.0);
        let read = |filter: &str, fields: &[&str]| {
            let mut args = vec!["-n", "-r", path.to_str().expect("UTF-8"), "-Y", filter, "-T", "fields"];
            args.extend(fields.iter().flat_map(|field| ["-e", field]));
            output("tshark", &args)
        };
        let sent =
            read(&format!("tcp.dstport == {port} && tcp.len > 0 && !tcp.analysis.retransmission"), &["frame.number"]);
        let sent: HashSet<&str> = sent.lines().collect();
        let acknowledged = read(
            &format!("tcp.srcport == {port} && tcp.analysis.ack_rtt"),
            &["tcp.analysis.acks_frame", "tcp.analysis.ack_rtt"],
        );
        let mut round_trips_us: Vec<u64> = acknowledged
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .filter(|(frame, _)| sent.contains(frame))
            .map(|(_, seconds)| (seconds.parse::<f64>().expect("seconds") * 1e6) as u64)
            .collect();
        round_trips_us.sort_unstable();
        round_trips_us
    }
}
