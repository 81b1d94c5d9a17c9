//! A hundred handshakes through a network that loses packets in bursts: every pair ends trusted, on both ends, without
//! anybody typing anything again.
//!
//! Ten nodes ask ten others. Everything goes through relays, one in front of each node, which delay each packet by
//! 15 ms and lose it by a Gilbert model: two states, one of which loses all, two packets long in the mean. The seed and
//! the loss are printed. `HANDFAST_LOSS_PERCENT=n` (30) and `HANDFAST_LOSS_SEED=n` (1) choose others.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]
#![allow(clippy::print_stdout, reason = "what was drawn, and how it went")]

mod nodes;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handfast::control::api::TrustRequest;
use handfast::node::Node;
use handfast_protocol::PeerId;
use nodes::Home;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

/// On each side: as many pairs as the square.
const NODES: usize = 10;
const DELAY: Duration = Duration::from_millis(15);
/// Mean length of a burst, in packets.
const BURST: f64 = 2.0;
/// How long all of them may take together.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of the packets of one direction.
struct Weather {
    rng: StdRng,
    loss: f64,
    is_losing: bool,
}

impl Weather {
    fn new(seed: u64, loss: f64) -> Weather {
        Weather { rng: StdRng::seed_from_u64(seed), loss, is_losing: false }
    }

    fn loses(&mut self) -> bool {
        let stays = 1.0 - 1.0 / BURST;
        let begins = (1.0 - stays) * self.loss / (1.0 - self.loss);
        self.is_losing = self.rng.random_bool(if self.is_losing { stays } else { begins });
        self.is_losing
    }
}

/// Packets that went through a relay, or did not.
#[derive(Default)]
struct Counts {
    passed: u64,
    lost: u64,
}

/// The network in front of one node. To those behind it, it is the node; to the node, each of them is a port of its own.
struct Relay {
    front: Arc<UdpSocket>,
    weather: [Mutex<Weather>; 2],
    counts: Mutex<Counts>,
}

impl Relay {
    async fn new(seed: u64, loss: f64) -> Arc<Relay> {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let weather = [0, 1].map(|way| Mutex::new(Weather::new(seed * 2 + way, loss)));
        Arc::new(Relay { front, weather, counts: Mutex::default() })
    }

    fn addr(&self) -> SocketAddr {
        self.front.local_addr().unwrap()
    }

    /// Carries packets to and from the node at `at`, until its task is dropped.
    async fn run(self: Arc<Relay>, at: SocketAddr) {
        let mut ports: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut buffer = vec![0; 2_048];
        loop {
            // A port that is closed on the other side says so here; the next packet may be for another.
            let Ok((length, from)) = self.front.recv_from(&mut buffer).await else { continue };
            let port = match ports.entry(from) {
                Entry::Occupied(port) => port.get().clone(),
                Entry::Vacant(place) => {
                    let port = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    tokio::spawn(self.clone().carry_back(port.clone(), from));
                    place.insert(port).clone()
                }
            };
            self.carry(0, buffer[..length].to_vec(), port, at);
        }
    }

    async fn carry_back(self: Arc<Relay>, port: Arc<UdpSocket>, to: SocketAddr) {
        let mut buffer = vec![0; 2_048];
        loop {
            let Ok((length, _)) = port.recv_from(&mut buffer).await else { continue };
            self.carry(1, buffer[..length].to_vec(), self.front.clone(), to);
        }
    }

    /// What becomes of a packet.
    fn carry(&self, way: usize, packet: Vec<u8>, from: Arc<UdpSocket>, to: SocketAddr) {
        let lost = self.weather[way].lock().unwrap().loses();
        let mut counts = self.counts.lock().unwrap();
        if lost {
            counts.lost += 1;
            return;
        }
        counts.passed += 1;
        drop(counts);
        let arrives = Instant::now() + DELAY;
        tokio::spawn(async move {
            tokio::time::sleep_until(arrives).await;
            // Refused where nobody listens any more: lost, like others.
            let _ = from.send_to(&packet, to).await;
        });
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// How many of `others` a node trusts, and is trusted by.
fn trusted(node: &Node, others: &[PeerId]) -> usize {
    let rows = node.operator().peers(Some("trusted")).unwrap().peers;
    rows.iter().filter(|row| others.iter().any(|peer| peer.to_string() == row.peer_id)).count()
}

/// Waits until a node and all of `others` trust each other, or the time is up. Returns how many do.
async fn until_trusted(node: &Node, others: &[PeerId], until: Instant) -> usize {
    loop {
        let seen = node.engine().events.newest();
        let count = trusted(node, others);
        if count == others.len() || timeout_at(until, node.engine().events.wait_past(seen)).await.is_err() {
            return count;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_handshakes_get_through_a_network_that_loses_a_third() {
    let percent = setting("HANDFAST_LOSS_PERCENT", 30);
    let seed = setting("HANDFAST_LOSS_SEED", 1);
    let homes: Vec<Home> = tokio::task::block_in_place(|| (0..2 * NODES).map(|_| Home::new()).collect());
    let everyone: Vec<PeerId> = homes.iter().map(|home| home.peer).collect();
    let mut relays = Vec::new();
    let mut nodes = Vec::new();
    for (number, home) in homes.iter().enumerate() {
        let relay = Relay::new(seed * 1_000 + number as u64, percent as f64 / 100.0).await;
        let advertise = |config: &mut handfast::config::Config| config.advertise = vec![relay.addr()];
        let node =
            tokio::task::block_in_place(|| home.start(SocketAddr::from(([127, 0, 0, 1], 0)), &everyone, advertise));
        tokio::spawn(relay.clone().run(node.local_addrs()[0]));
        relays.push(relay);
        nodes.push(node);
    }
    let began = Instant::now();
    for node in &nodes[..NODES] {
        for (peer, relay) in everyone.iter().zip(&relays).skip(NODES) {
            let request = TrustRequest {
                peer: peer.to_string(),
                address: Some(relay.addr().to_string()),
                ..TrustRequest::default()
            };
            assert!(node.operator().trust(&request).await.unwrap().durable);
        }
    }
    let until = began + PATIENCE;
    let mut pairs = [0, 0];
    for (number, node) in nodes.iter().enumerate() {
        let (side, others) = if number < NODES { (0, &everyone[NODES..]) } else { (1, &everyone[..NODES]) };
        pairs[side] += until_trusted(node, others, until).await;
    }
    let (passed, lost) = relays.iter().fold((0, 0), |(passed, lost), relay| {
        let counts = relay.counts.lock().unwrap();
        (passed + counts.passed, lost + counts.lost)
    });
    println!(
        "loss {percent} %, seed {seed}: {pairs:?} of {} within {:.1} s; {passed} packets passed, {lost} lost",
        NODES * NODES,
        began.elapsed().as_secs_f64()
    );
    let share = lost as f64 / (passed + lost) as f64;
    assert!((share - percent as f64 / 100.0).abs() < 0.05, "the relays lost {share}");
    let wanted = match percent {
        0..=30 => 100,
        31..=35 => 99,
        _ => 95,
    };
    assert!(pairs.iter().all(|count| *count >= wanted), "{pairs:?} of the pairs trust each other");
    tokio::task::block_in_place(|| nodes.into_iter().for_each(|node| drop(node.stop())));
}
