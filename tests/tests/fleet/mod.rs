//! Nodes in this process, on directories of their own.

use std::net::SocketAddr;

use handfast::config::Config;
use handfast::data_dir::DataDir;
use handfast::identity_file;
use handfast::initialise::initialise;
use handfast::node::Node;
use handfast_protocol::PeerId;
use handfast_trust::{DirectoryLock, LockOwner};
use tempfile::TempDir;

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
        let owner = LockOwner { pid: std::process::id(), role: "test".to_owned(), socket: None };
        let lock = DirectoryLock::try_acquire(dir.path(), &owner).unwrap();
        initialise(&dir, None, &lock).unwrap();
        let peer = identity_file::load(dir.path()).unwrap().peer_id();
        Home { peer, dir, _outer: outer }
    }

    /// Starts a node that trusts `allow` by rule, with what `settings` changes.
    pub(crate) fn start(&self, listen: SocketAddr, allow: &[PeerId], settings: impl FnOnce(&mut Config)) -> Node {
        let mut config = Config::default();
        config.listen = vec![listen];
        config.policy_allow = allow.to_vec();
        settings(&mut config);
        Node::start(&self.dir, config).unwrap()
    }
}
