//! Disks without room. Twice the same story: the disk takes no more, revocations are in force and say that they are
//! not durable, the room comes back, the node catches up by itself, and a power cut right after takes nothing.
//!
//! *Below*: an ext4 file system whose image lies on a tmpfs that is full. Writes succeed, their fsync fails (the block
//! device has no space), the next fsync of the same file would say that all is well: the kernel has dropped what it
//! could not write. *Above*: an ext4 file system that is full itself: writes fail.

use std::path::{Path, PathBuf};

use handfast::clock::MonotonicClock;
use handfast::control::api::{InitReply, RevokeReply, TrustReply};

use crate::alone;
use crate::ledger::{Answer, Change, Found, Ledger, Said, edges};
use crate::machine::{Cutter, FileSystem, Image, Mount, Need, can_run, tool};
use crate::program::{Client, Node, check_files, handfast, output, peer, reply};

const NEEDS: [Need; 4] = [Need::LoopDevices, Need::Tool("mkfs.ext4"), Need::Tool("xfs_io"), Need::Tool("fstrim")];
const IMAGE_BYTES: u64 = 48 << 20;
const TMPFS_BYTES: u64 = 64 << 20;
/// More changes than fit into what a record file has allocated ahead.
const CHANGES_MAX: u64 = 6_000;
/// How often to ask whether the disk has caught up; each answer takes at most five seconds.
const ASK_AGAIN_MAX: u32 = 4;

#[test]
#[ignore = "needs root: .ci/root"]
fn a_full_disk_below_the_file_system_takes_nothing_that_was_acknowledged() {
    let _alone = alone();
    let suite = "ext4 on a full tmpfs";
    if !can_run(suite, &NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let below = Mount::tmpfs(&scratch.path().join("tmpfs"), TMPFS_BYTES);
    let image = Image::make_thin(below.path().join("image"), IMAGE_BYTES);
    let mount = image.mount(&scratch.path().join("mnt"));
    // The journal and the tables keep their room below; data has to get its own.
    tool("fstrim", [mount.path()]);
    let story = Story::begin(suite, &mount);
    below.fill();
    let story = story.the_disk_is_full();
    below.resize_tmpfs(4 * TMPFS_BYTES);
    story.there_is_room_again(&image, mount).unmount();
    // Before what it lies on.
    drop(image);
}

#[test]
#[ignore = "needs root: .ci/root"]
fn a_full_file_system_takes_nothing_that_was_acknowledged() {
    let _alone = alone();
    let suite = "a full ext4";
    if !can_run(suite, &NEEDS) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let image = Image::make(scratch.path().join("image"), FileSystem::EXT4);
    let mount = image.mount(&scratch.path().join("mnt"));
    let story = Story::begin(suite, &mount);
    let filler = mount.fill();
    let story = story.the_disk_is_full();
    std::fs::remove_file(filler).unwrap();
    story.there_is_room_again(&image, mount).unmount();
}

/// A node on a disk, and everything that it was asked.
struct Story {
    suite: &'static str,
    directory: PathBuf,
    node: Node,
    changes: Vec<Change>,
    next: u64,
}

impl Story {
    fn begin(suite: &'static str, mount: &Mount) -> Self {
        let directory = mount.path().join("data");
        let _: InitReply = reply(&directory, &["init"]);
        let node = Node::start(&directory);
        let mut story = Self { suite, directory, node, changes: Vec::new(), next: 0 };
        let mut client = story.node.client();
        for n in 0..20 {
            assert!(story.change(&mut client, n, "trust"), "the disk has room");
        }
        assert_eq!(client.status().health, "ok");
        story
    }

    /// Asks for a change; whether it is durable.
    fn change(&mut self, client: &mut Client, n: u64, what: &str) -> bool {
        let note = format!("{} {}", self.next, "x".repeat(200));
        self.next += 1;
        let kind = if what == "trust" { "grant" } else { "revoke" };
        let answer: TrustReply = client.change(what, &peer(n), &note).unwrap();
        self.answered(n, Said { kind, note }, answer.revision, answer.durable);
        answer.durable
    }

    fn answered(&mut self, n: u64, said: Said, revision: u64, durable: bool) {
        let answer = Some(Answer { revision, durable, late: false });
        self.changes.push(Change { peer: peer(n), said, answer });
    }

    fn the_disk_is_full(mut self) -> Self {
        let mut client = self.node.client();
        let refused = (0..CHANGES_MAX).find(|n| !self.change(&mut client, n % 10, "trust"));
        let durable = refused.unwrap_or_else(|| panic!("{}: the disk never got full", self.suite));
        let status = client.status();
        assert_eq!(status.health, "degraded", "{status:?}");
        assert!(!status.reasons.is_empty() && status.storage.last_error.is_some(), "{status:?}");
        assert!(status.durable_revision < status.revision);

        // Through the command, as an operator does it.
        let clock = MonotonicClock::start();
        let revoke = output(handfast(&self.directory, &["revoke", &peer(15), "--note", "while full"]));
        let seconds = clock.now().0.as_secs_f64();
        assert_eq!(revoke.status.code(), Some(9), "{revoke:?}");
        assert!(seconds < 6.5, "answered after {seconds:.1} s");
        let answer: RevokeReply = serde_json::from_slice(&revoke.stdout).unwrap();
        assert_eq!((answer.state.as_str(), answer.durable), ("revoked", false));
        let said = Said { kind: "revoke", note: "while full".to_owned() };
        assert_eq!(edges(client.peers()).get(&peer(15)), Some(&said), "in force");
        self.answered(15, said, answer.revision, false);
        println!(
            "{}: full after {durable} more changes; revoke answered exit 9 after {seconds:.1} s; status: {}, {}",
            self.suite,
            status.reasons.join(", "),
            status.storage.last_error.unwrap_or_default()
        );
        self
    }

    /// Returns the file system as it was mounted last.
    fn there_is_room_again(mut self, image: &Image, mount: Mount) -> Mount {
        let mut client = self.node.client();
        let clock = MonotonicClock::start();
        // The revoke that stands: nothing changes, the answer waits for the disk.
        let again = || client.change::<RevokeReply>("revoke", &peer(15), "while full").unwrap().durable;
        assert!(std::iter::repeat_with(again).take(ASK_AGAIN_MAX as usize).any(|durable| durable));
        let caught_up = clock.now().0.as_secs_f64();
        let status = client.status();
        assert_eq!((status.health.as_str(), status.durable_revision), ("ok", status.revision), "{status:?}");
        // All that was answered as not durable is durable now.
        for answer in self.changes.iter_mut().filter_map(|change| change.answer.as_mut()) {
            answer.durable = true;
        }
        assert!(self.change(&mut client, 16, "revoke"));

        let Self { suite, directory, node, changes, .. } = self;
        Cutter::at(&mount).cut();
        node.kill();
        let at = mount.path().to_owned();
        mount.unmount();
        let mount = image.mount(&at);
        let counts = judge(&directory, &changes).unwrap_or_else(|why| panic!("{suite}: {why}"));
        println!("{suite}: caught up {caught_up:.1} s after there was room; then a power cut; {counts:?}, lost 0");
        mount
    }
}

fn judge(directory: &Path, changes: &[Change]) -> Result<crate::ledger::Counts, String> {
    check_files(directory);
    let node = Node::start(directory);
    let mut client = node.client();
    let found = Found { revision: client.status().revision, edges: edges(client.peers()) };
    assert!(node.stop().success());
    Ledger::default().judge(changes, found)
}
