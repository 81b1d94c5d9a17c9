//! The lock, the real directory, retry, and the drainer's thread.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::error::DiskErrorKind;
use crate::medium::{Clock as _, Medium as _, MediumFile as _, Monotonic};
use crate::record::Revision;
use crate::retry::{Backoff, RetryPolicy};
use crate::sim::{Blob, Rig, RigBlob, SMALL, SimClock, rig_site};
use crate::table::Urgency;
use crate::{
    DirectoryLock, Drainer, DrainerThread, Floor, LockError, LockOwner, RealDir, Tuning, create, lock_owner, open,
};

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

fn owner(role: &str) -> LockOwner {
    LockOwner { pid: std::process::id(), role: role.to_owned(), socket: None }
}

#[test]
fn a_directory_has_one_holder_and_names_it() {
    let directory = directory();
    let mut first = DirectoryLock::try_acquire(directory.path(), &owner("node")).unwrap();
    let holder = LockOwner { socket: Some("/run/some where/control.sock".into()), ..owner("node") };
    first.set_owner(&holder).unwrap();
    // Another descriptor of the same process is refused like another process.
    let refused = DirectoryLock::try_acquire(directory.path(), &owner("trust")).unwrap_err();
    assert_eq!(refused, LockError::Held(holder.clone()));
    assert_eq!(lock_owner(directory.path()), Some(holder));
    drop(first);
    DirectoryLock::try_acquire(directory.path(), &owner("trust")).unwrap();
}

#[test]
fn a_lock_that_is_no_file_is_refused() {
    let directory = directory();
    std::os::unix::fs::symlink("/dev/null", directory.path().join("lock")).unwrap();
    assert!(matches!(DirectoryLock::try_acquire(directory.path(), &owner("node")), Err(LockError::Io(_))));
}

#[test]
fn a_real_directory_refuses_what_is_not_ours_alone() {
    let directory = directory();
    let kind = |name: &str| RealDir::open(directory.path()).and_then(|mut dir| dir.open(name)).err().map(|e| e.kind);
    let path = |name: &str| directory.path().join(name);
    assert_eq!(kind("absent"), Some(DiskErrorKind::NotFound));
    std::os::unix::fs::symlink(path("absent"), path("link")).unwrap();
    assert_eq!(kind("link"), Some(DiskErrorKind::NotRegular));
    std::fs::create_dir(path("directory")).unwrap();
    assert_eq!(kind("directory"), Some(DiskErrorKind::NotRegular));
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(kind("fifo"), Some(DiskErrorKind::NotRegular));
    drop(RealDir::open(directory.path()).unwrap().create_new("file").unwrap());
    assert_eq!(kind("file"), None);
    std::fs::set_permissions(path("file"), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(kind("file"), Some(DiskErrorKind::Exposed));
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(kind("file"), Some(DiskErrorKind::Exposed));
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(directory.path(), path("itself")).unwrap();
    assert_eq!(RealDir::open(&path("itself")).unwrap_err().kind, DiskErrorKind::NotRegular);
}

#[test]
fn a_real_file_does_as_the_simulated_one() {
    let directory = directory();
    let mut real = RealDir::open(directory.path()).unwrap();
    let mut simulated = crate::sim::SimDisk::default();
    fn drive<M: crate::Medium>(medium: &mut M) -> Vec<u8> {
        let mut file = medium.create_new("a").unwrap();
        assert_eq!(medium.create_new("a").err().unwrap().kind, DiskErrorKind::Exists);
        assert_eq!(file.write_at(3, b"hello").unwrap(), 5);
        file.truncate(6).unwrap();
        file.allocate(6, 10).unwrap();
        assert_eq!(file.length().unwrap(), 16);
        file.sync_data().unwrap();
        file.sync().unwrap();
        medium.rename_new("a", "b").unwrap();
        assert!(!medium.exists("a").unwrap());
        drop(medium.create_new("c").unwrap());
        assert_eq!(medium.rename_new("c", "b").unwrap_err().kind, DiskErrorKind::Exists);
        medium.rename("b", "c").unwrap();
        medium.sync_directory().unwrap();
        let mut bytes = vec![9; 20];
        assert_eq!(medium.open("c").unwrap().read_at(0, &mut bytes).unwrap(), 16);
        medium.remove("c").unwrap();
        assert_eq!(medium.remove("c").unwrap_err().kind, DiskErrorKind::NotFound);
        bytes
    }
    assert_eq!(drive(&mut real), drive(&mut simulated));
}

#[test]
fn backoff_grows_is_capped_and_ends() {
    let policy = RetryPolicy {
        first: Duration::from_millis(10),
        cap: Duration::from_millis(80),
        deadline: Some(Duration::from_secs(1)),
    };
    let mut rng = StdRng::seed_from_u64(1);
    let mut backoff = Backoff::new(policy);
    let mut now = Monotonic::default();
    let mut delays = Vec::new();
    while let Some(next) = backoff.failed(now, &mut rng) {
        delays.push(next.since(now));
        now = next;
    }
    assert!(now <= Monotonic(Duration::from_secs(1)));
    assert!(delays[0] <= Duration::from_millis(10));
    assert!(delays.iter().all(|delay| *delay <= Duration::from_millis(80)));
    assert!(delays.iter().any(|delay| *delay > Duration::from_millis(40)));
    backoff.succeeded();
    assert_eq!(backoff.failures(), 0);
}

#[test]
fn a_thread_drains_what_many_threads_change() {
    let directory = directory();
    let clock = Arc::new(SimClock::default());
    let site = rig_site(&clock, 1, Tuning { checkpoint_bytes_min: 100_000, ..Tuning::default() });
    let mut medium = RealDir::open(directory.path()).unwrap();
    Floor::default().write(&mut medium, site.owner()).unwrap();
    let opened = create::<RigBlob, _>(&mut medium, &site).unwrap();
    let mut drainer = Drainer::new(medium, &site, Floor::default());
    drainer.add(opened.log);
    let handle = DrainerThread::spawn(drainer, Arc::<SimClock>::clone(&clock)).unwrap();
    let store = opened.store;
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..200_u64 {
                    let put = |table: &mut crate::Table<RigBlob>| {
                        table.put(thread * 7 + number % 7, Blob(vec![1; 100]), Urgency::Critical);
                    };
                    let ((), revision) = store.write(put);
                    store.durable().reached_blocking(revision, Duration::from_secs(60)).unwrap();
                    assert!(store.durable().current() >= revision);
                }
            });
        }
    });
    let health = handle.health();
    assert!(health.checkpoints > 0);
    assert!(health.batches < 1_600, "changes go together: {} batches", health.batches);
    assert_eq!(handle.stop(), crate::FinalReport::default());
    let mut medium = RealDir::open(directory.path()).unwrap();
    let floor = Floor::read(&mut medium, site.owner()).unwrap();
    let again = open::<RigBlob, _>(&mut medium, &site, &floor).unwrap();
    assert_eq!((again.report.revision, again.report.records), (Revision(1_600), 56));
}

#[test]
fn a_start_and_a_stop_leave_real_files_alone() {
    let directory = directory();
    let mut rig = Rig::create(RealDir::open(directory.path()).unwrap(), 1, SMALL).unwrap();
    rig.put(1, b"one");
    rig.stop();
    drop(rig);
    let state = || {
        ["trust.hf", "floor"].map(|name| {
            let path = directory.path().join(name);
            let metadata = std::fs::metadata(&path).unwrap();
            (std::fs::read(&path).unwrap(), metadata.modified().unwrap(), metadata.permissions().mode() & 0o777)
        })
    };
    let before = state();
    assert!(before.iter().all(|(_, _, mode)| *mode == 0o600));
    let mut rig = Rig::open(RealDir::open(directory.path()).unwrap(), 1, SMALL).unwrap();
    rig.settle(Duration::from_secs(10));
    rig.stop();
    assert_eq!(rig.clock.now(), Monotonic::default());
    assert_eq!(state(), before);
}
