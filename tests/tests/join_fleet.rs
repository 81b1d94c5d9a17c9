//! A fleet joins a fresh network through one inviter, one node after another and all at once: every pair trusts each
//! other, and nobody has approved anything.
//!
//! All nodes of a fleet live in this process, each with its own stores and drainer, on real QUIC over loopback.
//! `HANDFAST_FLEET` sets how many there are.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use handfast::clock::MonotonicClock;
use handfast::config::Config;
use handfast::control::api::{InviteRequest, JoinRequest, NetworkCreateRequest};
use handfast::node::Node;
use handfast::operations::Operator;
use nodes::Home;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// What is done in the ordinary run, within the thousand descriptors that a process has by default: n nodes are
/// n (n - 1) / 2 pairs. 200 of them take 41 s at once and 39 s one after another, on two cores that others use too.
const NODES: usize = 40;
/// No event for so long means that none will come.
const PATIENCE: Duration = Duration::from_secs(120);

fn node_count() -> usize {
    std::env::var("HANDFAST_FLEET").map_or(NODES, |count| count.parse().unwrap())
}

/// All of them come from one address, and there is one process for all: what bounds a stranger's rate is not tested
/// here.
fn settings(config: &mut Config) {
    config.handshakes_per_address = 100_000;
    config.handshakes_per_prefix = 100_000;
    config.socket_buffer_bytes = 256 * 1024;
}

/// One fleet at a time.
static TURN: Mutex<()> = Mutex::const_new(());

struct Fleet {
    _turn: MutexGuard<'static, ()>,
    _homes: Vec<Home>,
    nodes: Vec<Node>,
    clock: MonotonicClock,
}

impl Fleet {
    /// `count` nodes, the first of which has founded a network; and a ticket for all others.
    async fn new(count: usize) -> (Fleet, String) {
        let turn = TURN.lock().await;
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (homes, nodes) = tokio::task::block_in_place(|| {
            let homes: Vec<Home> = (0..count).map(|_| Home::new()).collect();
            let nodes: Vec<Node> = homes.iter().map(|home| home.start(anywhere, &[], settings)).collect();
            (homes, nodes)
        });
        let inviter = nodes[0].operator();
        let create = NetworkCreateRequest { name: "lab".to_owned(), operation_id: None };
        assert!(inviter.network_create(&create).await.unwrap().durable);
        let invite = InviteRequest { uses: count as u32 - 1, for_ms: 3_600_000, ..InviteRequest::default() };
        let ticket = inviter.invite(&invite).await.unwrap().ticket;
        (Fleet { _turn: turn, _homes: homes, nodes, clock: MonotonicClock::start() }, ticket)
    }

    fn joiners(&self) -> impl Iterator<Item = &Arc<Operator>> {
        self.nodes[1..].iter().map(Node::operator)
    }

    /// Waits until every node trusts every other, and looks at what it took.
    async fn is_complete(&self, how: &str) {
        let others = self.nodes.len() as u64 - 1;
        for node in &self.nodes {
            trusts(node, others).await;
        }
        let took = self.clock.now().0;
        let mut handshakes = 0;
        for node in &self.nodes {
            for row in node.operator().peers(None).unwrap().peers {
                assert!(row.rule.as_deref().is_some_and(|rule| rule.starts_with("network:")), "{row:?}");
                handshakes += 1;
            }
            assert!(node.operator().pending().pending.is_empty());
        }
        let invites = self.nodes[0].operator().invite_list().invites;
        assert_eq!((invites[0].used, invites[0].state.as_str()), (others as u32, "exhausted"));
        let pairs = handshakes / 2;
        let rate = f64::from(pairs) / took.as_secs_f64();
        say(&format!("{how}: {} nodes, {pairs} pairs in {took:.1?}: {rate:.0} pairs/s", self.nodes.len()));
    }

    fn stop(self) {
        let stopping: Vec<_> = self.nodes.into_iter().map(|node| std::thread::spawn(|| node.stop())).collect();
        for stopped in stopping {
            stopped.join().unwrap().unwrap();
        }
    }
}

/// Waits until the node trusts, and is trusted by, so many.
async fn trusts(node: &Node, others: u64) {
    let complete = async {
        loop {
            let seen = node.engine().events.newest();
            if node.operator().status().counts.trusted == others {
                return;
            }
            node.engine().events.wait_past(seen).await;
        }
    };
    if timeout(PATIENCE, complete).await.is_err() {
        let peers = node.operator().peers(None).unwrap().peers;
        let missing: Vec<_> = peers.iter().filter(|row| row.state != "trusted").collect();
        let me = node.peer_id().short();
        panic!("{me}: {} of {others} known, not trusted: {missing:#?}", peers.len());
    }
}

#[expect(clippy::print_stderr, reason = "the test harness shows it with --nocapture")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn request(ticket: &str) -> JoinRequest {
    JoinRequest { ticket: ticket.to_owned(), operation_id: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fleet_joins_one_after_another() {
    let (fleet, ticket) = Box::pin(Fleet::new(node_count())).await;
    let mut took = Vec::new();
    for (before, node) in fleet.nodes[1..].iter().enumerate() {
        let began = fleet.clock.now();
        let reply = node.operator().join(&request(&ticket)).await.unwrap();
        assert_eq!(reply.members, before as u64 + 1, "{reply:?}");
        trusts(node, reply.members).await;
        took.push(fleet.clock.now().since(began));
    }
    for (members, took) in (1..).zip(took).filter(|(members, _)| [1, 3, 10, 20, 50, 100, 150, 199].contains(members)) {
        let rate = f64::from(members) / took.as_secs_f64();
        say(&format!("joining a network of {members} took {took:.1?}: {rate:.0} members/s"));
    }
    fleet.is_complete("one after another").await;
    tokio::task::block_in_place(|| fleet.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fleet_joins_all_at_once() {
    let (fleet, ticket) = Box::pin(Fleet::new(node_count())).await;
    let joining: Vec<_> = fleet
        .joiners()
        .map(|operator| {
            let (operator, request) = (operator.clone(), request(&ticket));
            tokio::spawn(async move { operator.join(&request).await })
        })
        .collect();
    for joined in joining {
        joined.await.unwrap().unwrap();
    }
    fleet.is_complete("all at once").await;
    tokio::task::block_in_place(|| fleet.stop());
}
