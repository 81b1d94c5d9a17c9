//! Twenty nodes in one process, real QUIC on loopback: everyone trusts everyone by allow list, also after all of them
//! were stopped and started again.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use std::net::SocketAddr;
use std::time::Duration;

use handfast::control::api::TrustRequest;
use handfast::node::Node;
use handfast_protocol::PeerId;
use nodes::Home;
use tokio::time::timeout;

const NODES: usize = 20;
/// No event for so long means that none will come.
const PATIENCE: Duration = Duration::from_secs(60);

struct Fleet {
    homes: Vec<Home>,
    nodes: Vec<Node>,
    ports: Vec<SocketAddr>,
}

impl Fleet {
    fn new(count: usize) -> Fleet {
        let ports = vec![SocketAddr::from(([127, 0, 0, 1], 0)); count];
        let mut fleet = Fleet { homes: (0..count).map(|_| Home::new()).collect(), nodes: Vec::new(), ports };
        fleet.start();
        fleet
    }

    fn start(&mut self) {
        let everyone: Vec<PeerId> = self.homes.iter().map(|home| home.peer).collect();
        for (home, port) in self.homes.iter().zip(&mut self.ports) {
            let node = home.start(*port, &everyone, |_| {});
            *port = node.local_addrs()[0];
            self.nodes.push(node);
        }
    }

    fn stop(&mut self) {
        for node in self.nodes.drain(..) {
            node.stop().unwrap();
        }
    }

    /// Waits until every node has one session with every other, and checks that it has no other record.
    async fn is_complete(&self) {
        for (node, Home { peer: me, .. }) in self.nodes.iter().zip(&self.homes) {
            let complete = async {
                loop {
                    let seen = node.engine().events.newest();
                    if node.engine().registry.counts().0 == (NODES - 1) as u64 {
                        return;
                    }
                    node.engine().events.wait_past(seen).await;
                }
            };
            if timeout(PATIENCE, complete).await.is_err() {
                panic!("{} has {:?} (sessions, links)", me.short(), node.engine().registry.counts());
            }
        }
        for (node, Home { peer: me, .. }) in self.nodes.iter().zip(&self.homes) {
            let peers = node.operator().peers(None).unwrap().peers;
            assert_eq!(peers.len(), NODES - 1, "{}", me.short());
            for row in peers {
                assert_eq!((row.state.as_str(), row.delivered), ("trusted", Some(true)), "{} of {row:?}", me.short());
            }
        }
    }

    /// Active sessions in the records: one for each peer, owned by this run.
    fn check_session_records(&self) {
        for node in &self.nodes {
            let sessions = node.operator().sessions().sessions;
            let mut active: Vec<_> =
                sessions.iter().filter(|row| row.state == "active").map(|row| &row.peer_id).collect();
            active.sort();
            let all = active.len();
            active.dedup();
            assert_eq!((active.len(), all), (NODES - 1, NODES - 1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn twenty_nodes_trust_each_other_also_after_a_restart() {
    let mut fleet = tokio::task::block_in_place(|| Fleet::new(NODES));
    for (i, node) in fleet.nodes.iter().enumerate() {
        for j in i + 1..NODES {
            let peer = fleet.homes[j].peer;
            let request = TrustRequest {
                peer: peer.to_string(),
                address: Some(fleet.ports[j].to_string()),
                ..TrustRequest::default()
            };
            let reply = node.operator().trust(&request).await.unwrap();
            assert!(reply.durable, "{reply:?}");
        }
    }
    fleet.is_complete().await;
    fleet.check_session_records();

    tokio::task::block_in_place(|| {
        fleet.stop();
        fleet.start();
    });
    fleet.is_complete().await;
    fleet.check_session_records();
    tokio::task::block_in_place(|| fleet.stop());
}
