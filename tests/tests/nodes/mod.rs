//! Nodes in this process, on directories of their own.
#![allow(dead_code, reason = "each suite is a crate of its own and uses a part of this")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use handfast::bare_node::BareNode;
use handfast::config::Config;
use handfast::data_dir::DataDir;
use handfast::identity_file;
use handfast::initialise::initialise;
use handfast::node::Node;
use handfast::stores;
use handfast_protocol::{PeerId, UnixMillis};
use handfast_trust::{DirectoryLock, LockOwner, Medium, RealDir, TrustState};
use tempfile::TempDir;
use tokio::time::{MissedTickBehavior, timeout};

/// No event for so long means that none will come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Waits until `peer` is in a state.
pub(crate) async fn until_state(node: &Node, peer: &PeerId, state: TrustState) {
    let reached = async {
        loop {
            let seen = node.engine().events.newest();
            if node.engine().book.state(peer, UnixMillis(0)) == state {
                return;
            }
            node.engine().events.wait_past(seen).await;
        }
    };
    let in_time = timeout(PATIENCE, reached).await;
    assert!(in_time.is_ok(), "{state} was not reached: {:?}", node.engine().book.record(peer));
}

/// For what has no event.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let look = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !is_so() {
            ticks.tick().await;
        }
    };
    assert!(timeout(PATIENCE, look).await.is_ok(), "waited in vain: {what}");
}

/// A directory with an identity; it goes when this drops.
pub(crate) struct Home {
    pub(crate) peer: PeerId,
    dir: DataDir,
    _outer: TempDir,
}

impl Home {
    pub(crate) fn new() -> Home {
        let outer = tempfile::tempdir().unwrap();
        let dir = DataDir::create(&outer.path().join("data")).unwrap();
        initialise(&dir, None, &locked(&dir)).unwrap();
        let peer = identity_file::load(dir.path()).unwrap().peer_id();
        Home { peer, dir, _outer: outer }
    }

    /// Starts a node that trusts `allow` by rule, with what `settings` changes.
    pub(crate) fn start(&self, listen: SocketAddr, allow: &[PeerId], settings: impl FnOnce(&mut Config)) -> Node {
        self.start_on(listen, allow, settings, |directory| directory)
    }

    /// As `start`, with the directory behind what `medium` puts before it.
    pub(crate) fn start_on<M: Medium>(
        &self,
        listen: SocketAddr,
        allow: &[PeerId],
        settings: impl FnOnce(&mut Config),
        medium: impl FnOnce(RealDir) -> M,
    ) -> Node {
        let mut config = Config::default();
        config.listen = vec![listen];
        config.policy_allow = allow.to_vec();
        settings(&mut config);
        Node::start_on(&self.dir, config, medium).unwrap()
    }

    /// Starts one without runtimes of its own, on the runtime that this is called in.
    pub(crate) fn start_bare(&self, settings: impl FnOnce(&mut Config)) -> BareNode {
        let mut config = Config::default();
        config.listen = vec![ANYWHERE];
        settings(&mut config);
        BareNode::start(stores::open_all(&self.dir, locked(&self.dir)).unwrap(), config).unwrap()
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &DataDir {
        &self.dir
    }

    /// Its files, as they are now. No node may run.
    pub(crate) fn copy(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_files(self.dir.path(), copy.path());
        copy
    }

    /// Puts back what was copied.
    pub(crate) fn put_back(&self, copy: &TempDir) {
        copy_files(copy.path(), self.dir.path());
    }
}

fn locked(dir: &DataDir) -> DirectoryLock {
    let owner = LockOwner { pid: std::process::id(), role: "test".to_owned(), socket: None };
    DirectoryLock::try_acquire(dir.path(), &owner).unwrap()
}

fn copy_files(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
