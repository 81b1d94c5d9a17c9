//! Nodes in this process, on directories of their own.
#![allow(dead_code, reason = "each suite is a crate of its own and uses a part of this")]

use std::net::SocketAddr;
use std::path::Path;

use handfast::config::Config;
use handfast::data_dir::DataDir;
use handfast::identity_file;
use handfast::initialise::initialise;
use handfast::node::Node;
use handfast_protocol::PeerId;
use handfast_trust::{DirectoryLock, LockOwner, Medium, RealDir};
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

fn copy_files(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
