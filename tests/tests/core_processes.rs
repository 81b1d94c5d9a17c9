//! What needs a process of its own: a panic that must end it, and a lock that must not be shared.
//!
//! A child is this test program again, told by the environment which part to play.

#![allow(clippy::unwrap_used, reason = "a suite stops at what it does not expect")]
#![allow(clippy::print_stdout, reason = "a child tells its parent by printing")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use handfast_trust::sim::{Blob, RigBlob, SMALL, SimClock, SimDisk, rig_site};
use handfast_trust::{
    Clock, DirectoryLock, DiskError, Drainer, DrainerThread, FileKind, Floor, LockError, LockOwner, Medium, Record,
    RecordFault, Store, Urgency, create,
};

const PART: &str = "HANDFAST_TEST_PART";
const DIRECTORY: &str = "HANDFAST_TEST_DIRECTORY";

fn child(test: &str, part: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(PART, part).env(DIRECTORY, directory).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// A record that cannot be encoded: a mistake in the drainer's thread.
struct Unencodable;

impl Record for Unencodable {
    type Key = u8;
    type Index = ();
    const KIND: FileKind = FileKind::Trust;

    fn encode_key(key: &u8, out: &mut Vec<u8>) {
        out.push(*key);
    }

    fn decode_key(bytes: &[u8]) -> Result<u8, RecordFault> {
        bytes.first().copied().ok_or(RecordFault::BadKey)
    }

    fn encode(&self, _: &mut Vec<u8>) {
        panic!("planted");
    }

    fn decode(_: &u8, _: &[u8]) -> Result<Self, RecordFault> {
        Ok(Self)
    }
}

fn running<R: Record, M: Medium>(mut medium: M) -> (Store<R>, handfast_trust::DrainerHandle) {
    let clock = Arc::new(SimClock::default());
    let site = rig_site(&clock, 1, SMALL);
    let opened = create::<R, _>(&mut medium, &site).unwrap();
    let mut drainer = Drainer::new(medium, &site, Floor::default());
    drainer.add(opened.log);
    let clock: Arc<dyn Clock> = clock;
    (opened.store, DrainerThread::spawn(drainer, clock).unwrap())
}

/// A medium that panics when the floor is first written.
struct Panicking(SimDisk);

impl Medium for Panicking {
    type File = <SimDisk as Medium>::File;

    fn open(&mut self, name: &str) -> Result<Self::File, DiskError> {
        self.0.open(name)
    }

    fn create_new(&mut self, name: &str) -> Result<Self::File, DiskError> {
        assert!(name != "floor.tmp", "planted");
        self.0.create_new(name)
    }

    fn exists(&mut self, name: &str) -> Result<bool, DiskError> {
        self.0.exists(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.0.rename(from, to)
    }

    fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.0.rename_new(from, to)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.0.remove(name)
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        self.0.sync_directory()
    }
}

fn play(part: &str) {
    match part {
        "panic while encoding" => {
            let (store, _drainer) = running::<Unencodable, _>(SimDisk::default());
            let ((), revision) = store.write(|table| table.put(1, Unencodable, Urgency::Critical));
            println!("told {:?}", store.durable().reached_blocking(revision, Duration::from_secs(60)));
        }
        "panic in the medium" => {
            let (store, drainer) = running::<RigBlob, _>(Panicking(SimDisk::default()));
            store.write(|table| table.put(1, Blob(vec![1]), Urgency::Critical));
            println!("told {:?}", drainer.stop());
        }
        "panic under the lock" => {
            let (store, _drainer) = running::<RigBlob, _>(SimDisk::default());
            let other = store.clone();
            let changer = std::thread::spawn(move || {
                other.write(|table| {
                    table.put(1, Blob(vec![1]), Urgency::Critical);
                    assert!(table.is_empty(), "planted");
                })
            });
            println!("told {:?}", changer.join().is_ok());
            println!("told {:?}", store.read(|table| table.len()));
        }
        part => panic!("{part}"),
    }
}

fn run_to_end(mut child: Child) -> Output {
    drop(child.stdin.take());
    child.wait_with_output().unwrap()
}

#[test]
fn a_panic_where_changes_would_be_lost_ends_the_process() {
    if let Some(part) = part() {
        return play(&part);
    }
    for part in ["panic while encoding", "panic in the medium", "panic under the lock"] {
        let test = "a_panic_where_changes_would_be_lost_ends_the_process";
        let output = run_to_end(child(test, part, Path::new("")).spawn().unwrap());
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.signal(), Some(6), "{part}: {stdout}{stderr}");
        assert!(!stdout.contains("told"), "{part}: somebody was told something: {stdout}");
        assert!(stderr.contains("handfast: fatal: a panic"), "{part}: {stderr}");
    }
}

#[test]
fn a_directory_is_one_process_s_until_it_dies() {
    let owner = LockOwner { pid: std::process::id(), role: "child".to_owned(), socket: None };
    if part().is_some() {
        let directory = std::env::var_os(DIRECTORY).unwrap();
        let lock = DirectoryLock::try_acquire(Path::new(&directory), &owner);
        println!("lock {}", lock.is_ok());
        // Until the parent has seen it, or has killed this process.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let test = "a_directory_is_one_process_s_until_it_dies";
    let mut holder = child(test, "hold", directory.path()).spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line.ends_with("lock true")));
    let Err(LockError::Held(found)) = DirectoryLock::try_acquire(directory.path(), &owner) else {
        panic!("two hold it");
    };
    assert_eq!(found, LockOwner { pid: holder.id(), ..owner.clone() });
    let refused = run_to_end(child(test, "hold", directory.path()).spawn().unwrap());
    assert!(String::from_utf8_lossy(&refused.stdout).contains("lock false"));
    holder.kill().unwrap();
    holder.wait().unwrap();
    DirectoryLock::try_acquire(directory.path(), &owner).unwrap();
}
