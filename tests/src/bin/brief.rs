//! A process that lives for some milliseconds: connects, perhaps lingers, exits. `brief ADDRESS MILLISECONDS LABEL`
//! (the label only makes the command line unique).

use std::net::TcpStream;
use std::time::{Duration, Instant};

fn main() {
    let born = Instant::now();
    let mut args = std::env::args().skip(1);
    let address = args.next().expect("usage: brief ADDRESS MILLISECONDS LABEL");
    let life = Duration::from_millis(args.next().and_then(|ms| ms.parse().ok()).unwrap_or(5));
    let stream = TcpStream::connect(address).expect("connect");
    println!("{}", stream.local_addr().expect("local address").port());
    std::thread::sleep(life.saturating_sub(born.elapsed()));
}
