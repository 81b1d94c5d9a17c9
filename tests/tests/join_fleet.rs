//! A fleet joins a fresh network through one inviter, one node after another and all at once: every pair trusts each
//! other, and nobody has approved anything.
//!
//! All nodes of a fleet live in this process, each with its own stores on the disk, drainer, sockets and operator, on real
//! QUIC over loopback; they share a runtime. `HANDFAST_FLEET` sets how many join. Where the system does not allow
//! the descriptors, there are fewer, and the test says so.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use std::sync::Arc;
use std::time::Duration;

use handfast::bare_node::BareNode;
use handfast::clock::MonotonicClock;
use handfast::config::Config;
use handfast::control::api::{InviteRequest, JoinRequest, NetworkCreateRequest};
use handfast::operations::{Live, Operator};
use handfast_protocol::CloseCode;
use nodes::Home;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

/// Nodes that join the network of one more, each with one use of its ticket.
const JOINERS: usize = 200;
/// What a node takes: its files and their directory, a lock, a socket.
const DESCRIPTORS_EACH: u64 = 10;
/// What everything else takes.
const DESCRIPTORS_BESIDE: u64 = 100;
/// No event for so long means that none will come.
const PATIENCE: Duration = Duration::from_secs(120);

fn joiner_count() -> usize {
    let wanted = std::env::var("HANDFAST_FLEET").map_or(JOINERS, |count| count.parse().unwrap());
    let needed = (wanted as u64 + 1) * DESCRIPTORS_EACH + DESCRIPTORS_BESIDE;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let allowed = maximum.map_or(needed, |maximum| needed.min(maximum));
    if current.is_some_and(|current| current < allowed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum }).unwrap();
    }
    let possible = (allowed.saturating_sub(DESCRIPTORS_BESIDE) / DESCRIPTORS_EACH).saturating_sub(1);
    let count = wanted.min(possible as usize);
    if count < wanted {
        say(&format!("{count} nodes join instead of {wanted}: a process may have {allowed} descriptors here"));
    }
    count
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

struct Member {
    operator: Arc<Operator>,
    node: BareNode,
    _home: Home,
}

impl Member {
    fn start() -> Member {
        let home = Home::new();
        let node = home.start_bare(settings);
        let live = Live { engine: node.engine().clone(), data: tokio::runtime::Handle::current() };
        Member { operator: Arc::new(Operator::of_node(live, home.dir())), node, _home: home }
    }
}

struct Fleet {
    _turn: MutexGuard<'static, ()>,
    members: Vec<Member>,
    clock: MonotonicClock,
}

impl Fleet {
    /// A node that has founded a network, so many others, and a ticket for these.
    async fn new(joiners: usize) -> (Fleet, String) {
        let turn = TURN.lock().await;
        let members: Vec<Member> = tokio::task::block_in_place(|| (0..=joiners).map(|_| Member::start()).collect());
        let inviter = &members[0].operator;
        let create = NetworkCreateRequest { name: "lab".to_owned(), operation_id: None };
        assert!(inviter.network_create(&create).await.unwrap().durable);
        let invite = InviteRequest { uses: joiners as u32, for_ms: 3_600_000, ..InviteRequest::default() };
        let ticket = inviter.invite(&invite).await.unwrap().ticket;
        (Fleet { _turn: turn, members, clock: MonotonicClock::start() }, ticket)
    }

    fn joiners(&self) -> impl Iterator<Item = &Arc<Operator>> {
        self.members[1..].iter().map(|member| &member.operator)
    }

    /// Waits until every node trusts every other, and looks at what it took.
    async fn is_complete(&self, how: &str) {
        let others = self.members.len() as u64 - 1;
        for member in &self.members {
            trusts(member, others).await;
        }
        let took = self.clock.now().0;
        let mut handshakes = 0;
        for member in &self.members {
            for row in member.operator.peers(None).unwrap().peers {
                assert!(row.rule.as_deref().is_some_and(|rule| rule.starts_with("network:")), "{row:?}");
                handshakes += 1;
            }
            assert!(member.operator.pending().pending.is_empty());
        }
        let invites = self.members[0].operator.invite_list().invites;
        assert_eq!((invites[0].used, invites[0].state.as_str()), (others as u32, "exhausted"));
        let pairs = handshakes / 2;
        let rate = f64::from(pairs) / took.as_secs_f64();
        say(&format!("{how}: {} nodes, {pairs} pairs in {took:.1?}: {rate:.0} pairs/s", self.members.len()));
    }

    /// Nothing that was promised is lost.
    fn stop(self) {
        for member in &self.members {
            member.node.end_tasks();
            member.node.engine().transport.close(CloseCode::Stopping);
        }
        for member in self.members {
            member.node.close().unwrap();
        }
    }
}

/// Waits until the node trusts, and is trusted by, so many.
async fn trusts(member: &Member, others: u64) {
    let engine = member.node.engine();
    let complete = async {
        loop {
            let seen = engine.events.newest();
            if member.operator.status().counts.trusted == others {
                return;
            }
            engine.events.wait_past(seen).await;
        }
    };
    if timeout(PATIENCE, complete).await.is_err() {
        let peers = member.operator.peers(None).unwrap().peers;
        let missing: Vec<_> = peers.iter().filter(|row| row.state != "trusted").collect();
        let me = engine.book.me().short();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_joins_one_after_another() {
    let (fleet, ticket) = Box::pin(Fleet::new(joiner_count())).await;
    let mut took = Vec::new();
    for (before, member) in fleet.members[1..].iter().enumerate() {
        let began = fleet.clock.now();
        let reply = member.operator.join(&request(&ticket)).await.unwrap();
        assert_eq!(reply.members, before as u64 + 1, "{reply:?}");
        trusts(member, reply.members).await;
        took.push(fleet.clock.now().since(began));
    }
    for (members, took) in (1..).zip(took).filter(|(members, _)| [1, 3, 10, 20, 50, 100, 150, 200].contains(members)) {
        let rate = f64::from(members) / took.as_secs_f64();
        say(&format!("joining a network of {members} took {took:.1?}: {rate:.0} members/s"));
    }
    fleet.is_complete("one after another").await;
    tokio::task::block_in_place(|| fleet.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_joins_all_at_once() {
    let (fleet, ticket) = Box::pin(Fleet::new(joiner_count())).await;
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
