//! First packets from addresses that prove nothing: a node with its limits as they are by default answers with less than
//! three times what it was sent (RFC 9000, section 8.1), and gives every reservation back.
//!
//! What such a packet costs the node is printed. `HANDFAST_FLOOD_PACKETS=n` (4,000) for more of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "what it cost is to be seen")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use common::{Home, Node, control};
use handfast::admission::UNPROVEN_MAX;
use handfast::config::Config;
use handfast::storm::own_node::cpu_us;
use handfast::storm::spoof;
use handfast::transport::Callers;
use handfast_protocol::PeerId;

/// Different first packets. Each is for a connection of its own.
const INITIALS: usize = 256;
/// A first packet is padded to this (RFC 9000, section 14.1).
const INITIAL_BYTES: usize = 1_200;
/// More are half open at once only with a proven address.
const ADMITTED: usize = UNPROVEN_MAX as usize;
const AMPLIFICATION_MAX: usize = 3;

/// First packets for `peer`, as the storm records them.
fn initials(peer: &PeerId) -> Vec<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let from = SocketAddr::from(([127, 0, 0, 1], 0));
        let callers = Callers::bind(&[from], &Config::default().transport()).unwrap();
        spoof::record(&callers, peer, INITIALS).await.unwrap()
    })
}

/// One source of first packets, and what came back to it.
struct Source {
    socket: UdpSocket,
    sent: usize,
    received: usize,
}

impl Source {
    fn new(number: usize) -> Source {
        let [_, _, b, c] = (number as u32).to_be_bytes();
        // Each in a /24 of its own: limits on prefixes are not what is tried here.
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 200, b.wrapping_add(7), c), 0))
            .or_else(|_| UdpSocket::bind("127.0.0.1:0"))
            .unwrap();
        socket.set_nonblocking(true).unwrap();
        Source { socket, sent: 0, received: 0 }
    }

    fn send(&mut self, packet: &[u8], to: SocketAddr) {
        self.sent += self.socket.send_to(packet, to).unwrap();
        self.take();
    }

    fn take(&mut self) {
        let mut buffer = [0; 2 * INITIAL_BYTES];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.received += length;
        }
    }
}

/// A counter of `/metrics`.
fn metric(node: &Node, name: &str) -> u64 {
    let text = control::get(node.home().path(), "/metrics").unwrap().body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}

fn fates(node: &Node) -> u64 {
    let fate = |fate: &str| metric(node, &format!("handfast_first_packets_total{{fate=\"{fate}\"}}"));
    ["accepted", "retried", "refused", "overlooked"].map(fate).iter().sum()
}

#[test]
fn who_proves_no_address_gets_less_than_three_times_what_it_sent() {
    let home = Home::initialised();
    let node = home.start();
    let to: SocketAddr = node.addr().parse().unwrap();
    let initials = initials(&node.id().parse().unwrap());
    let packets: usize = std::env::var("HANDFAST_FLOOD_PACKETS").map_or(4_000, |text| text.parse().unwrap());

    let mut sources: Vec<Source> = (0..INITIALS).map(Source::new).collect();
    // Lock-step with the node in the first round: all of it is looked at, and none is lost in a buffer.
    for (number, (source, initial)) in sources.iter_mut().zip(&initials).enumerate() {
        source.send(initial, to);
        node.until("the packet was looked at", || (fates(&node) > number as u64).then_some(()));
    }
    let before = (cpu_us(&node.pid().to_string()).unwrap(), fates(&node));
    let mut seen = before.1;
    for number in 0..packets {
        // Not those that are half open already: packets for the same connection are dropped unseen.
        let initial = ADMITTED + (number + number / INITIALS) % (INITIALS - ADMITTED);
        sources[number % INITIALS].send(&initials[initial], to);
        if number % 64 == 63 {
            node.until("the node goes on looking", || (fates(&node) > seen).then_some(()));
            seen = fates(&node);
        }
    }
    node.until("nothing is half open", || (metric(&node, "handfast_half_open") == 0).then_some(()));
    let after = (cpu_us(&node.pid().to_string()).unwrap(), fates(&node));

    sources.iter_mut().for_each(Source::take);
    for source in &sources {
        let (sent, received) = (source.sent, source.received);
        assert!(received <= AMPLIFICATION_MAX * sent, "{:?}: {received} bytes for {sent}", source.socket.local_addr());
    }
    let (sent, received) =
        sources.iter().fold((0, 0), |(sent, received), source| (sent + source.sent, received + source.received));
    assert!(received > 0, "the node answers somebody");
    let looked_at = after.1 - before.1;
    println!(
        "{} bytes for {} sent, {:.2} times; {} packets looked at in the flood, {:.1} us of the node's time for each",
        received,
        sent,
        received as f64 / sent as f64,
        looked_at,
        (after.0 - before.0) as f64 / looked_at.max(1) as f64
    );
    let mut log = node.stderr();
    node.stop();
    log.truncate(10_000);
    assert!(log.lines().count() < 100, "a flood does not fill the log: {log}");
}
