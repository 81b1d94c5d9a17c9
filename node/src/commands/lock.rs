//! Waiting for the right to write to a data directory. Bounded, and for commands only: a node never waits for a node.

use std::time::Duration;

use handfast_trust::{DirectoryLock, LockError, LockOwner};
use tokio::time::{Instant, MissedTickBehavior};

use crate::control::api::ApiError;
use crate::data_dir::DataDir;

/// The role that a node writes into the lock file.
pub const NODE_ROLE: &str = "node";
/// How long a command tries to get at a directory.
pub(super) const COMMAND_PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries: fifty commands at once, each with a few milliseconds of work, are through in a second or two.
pub(super) const TRY_EVERY: Duration = Duration::from_millis(20);

/// For how long, and for whom, to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Up to 15 s, whoever holds it.
    Command,
    /// Not for a node, and up to 5 s for a command.
    Node,
}

impl Patience {
    fn limit(self) -> Duration {
        match self {
            Patience::Command => COMMAND_PATIENCE,
            Patience::Node => Duration::from_secs(5),
        }
    }
}

/// This process as the holder of a lock.
pub(crate) fn myself(role: &str) -> LockOwner {
    LockOwner { pid: std::process::id(), role: role.to_owned(), socket: None }
}

/// Ticks at which to try again. The first comes at once.
pub(super) fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(TRY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Takes the lock of a directory, and waits for it as long as `patience` says.
///
/// # Errors
/// `InUse` with the name of the holder when the time is up, or at once for a node that meets another one.
pub async fn acquire(directory: &DataDir, role: &str, patience: Patience) -> Result<DirectoryLock, ApiError> {
    let mut ticks = ticks();
    let end = Instant::now() + patience.limit();
    loop {
        ticks.tick().await;
        match DirectoryLock::try_acquire(directory.path(), &myself(role)) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held(owner)) if is_worth_waiting(patience, &owner) && Instant::now() < end => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_worth_waiting(patience: Patience, owner: &LockOwner) -> bool {
    patience == Patience::Command || owner.role != NODE_ROLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::ErrorCode;

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_lock_is_bounded_and_names_the_holder() {
        let outer = tempfile::tempdir().unwrap();
        let directory = DataDir::create(&outer.path().join("data")).unwrap();
        let held = acquire(&directory, "revoke", Patience::Command).await.unwrap();
        let check = |refused: ApiError, holder: &str| {
            assert_eq!(refused.code, ErrorCode::InUse);
            assert!(refused.message.contains(holder), "{refused:?}");
        };
        let begun = Instant::now();
        check(acquire(&directory, "trust", Patience::Command).await.unwrap_err(), "revoke");
        assert!(begun.elapsed() >= COMMAND_PATIENCE && begun.elapsed() < COMMAND_PATIENCE * 2);
        let begun = Instant::now();
        check(acquire(&directory, NODE_ROLE, Patience::Node).await.unwrap_err(), "revoke");
        assert!(begun.elapsed() >= Duration::from_secs(5) && begun.elapsed() < COMMAND_PATIENCE);
        drop(held);

        let _node = acquire(&directory, NODE_ROLE, Patience::Node).await.unwrap();
        let begun = Instant::now();
        check(acquire(&directory, NODE_ROLE, Patience::Node).await.unwrap_err(), "node");
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}
