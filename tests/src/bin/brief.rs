//! A process that lives for some milliseconds: connects, perhaps lingers, exits. `brief ADDRESS MILLISECONDS LABEL`
//! (the label makes the command line unique, and the source port: a 5-tuple that comes back within a minute would be
//! the same flow to a collector).

use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};

fn main() {
    let born = Instant::now();
    let mut args = std::env::args().skip(1);
    let usage = "usage: brief ADDRESS MILLISECONDS LABEL";
    let address: SocketAddrV4 = args.next().and_then(|address| address.parse().ok()).expect(usage);
    let life = Duration::from_millis(args.next().and_then(|ms| ms.parse().ok()).expect(usage));
    let label: u16 = args.next().and_then(|label| label.parse().ok()).expect(usage);
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).expect("a socket");
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("an option");
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 3, 1, 10_000 + label)).expect("a source port");
    connect(fd.as_raw_fd(), &SockaddrIn::from(address)).expect("a connection");
    let stream = TcpStream::from(fd);
    println!("{}", stream.local_addr().expect("a local address").port());
    std::thread::sleep(life.saturating_sub(born.elapsed()));
}
