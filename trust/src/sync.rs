//! The only file that names a lock, a condition variable or a channel.
//!
//! Everything of this crate that threads share goes through the types below, so that a model checker can take their
//! place (`cfg(handfast_loom)`) without a change elsewhere. Access to a lock is by closure: no guard leaves this file.
//!
//! A panic inside a lock ends the process at once: a table that was left half changed must not be read, and a node
//! that cannot persist must not go on.
//!
//! Not here: what the locks protect.

use std::io::Write as _;
use std::mem;
use std::time::Duration;

pub(crate) use imp::{AtomicBool, AtomicU64, Bell, Lock, Monitor, Ordering};

/// Says why, and ends the process: no waiter may be told anything any more.
pub(crate) fn die(what: &str) -> ! {
    let _ = writeln!(
        std::io::stderr(),
        "handfast: fatal: {what}; the process ends now, so that nothing false is acknowledged"
    );
    std::process::abort()
}

/// Ends the process if it is dropped before [`defuse`](Self::defuse), which only unwinding does.
pub(crate) struct DieOnUnwind(&'static str);

impl DieOnUnwind {
    pub(crate) const fn new(what: &'static str) -> Self {
        Self(what)
    }

    pub(crate) fn defuse(self) {
        mem::forget(self);
    }
}

impl Drop for DieOnUnwind {
    fn drop(&mut self) {
        die(self.0)
    }
}

const PANIC_UNDER_LOCK: &str = "a panic under a store's lock";

#[cfg(not(handfast_loom))]
mod imp {
    use std::sync::{Condvar, Mutex, PoisonError};

    use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::{DieOnUnwind, Duration, PANIC_UNDER_LOCK};

    /// A mutex with access by closure. The closure must not block, encode, log or take another lock.
    #[derive(Debug, Default)]
    pub(crate) struct Lock<T>(Mutex<T>);

    impl<T> Lock<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        pub(crate) fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
            let fuse = DieOnUnwind::new(PANIC_UNDER_LOCK);
            // Never poisoned: a panic inside ends the process.
            let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let out = f(&mut guard);
            drop(guard);
            fuse.defuse();
            out
        }
    }

    /// A lock that threads can wait on.
    #[derive(Debug, Default)]
    pub(crate) struct Monitor<T> {
        value: Mutex<T>,
        changed: Condvar,
    }

    impl<T> Monitor<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self { value: Mutex::new(value), changed: Condvar::new() }
        }

        pub(crate) fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
            let fuse = DieOnUnwind::new(PANIC_UNDER_LOCK);
            let mut guard = self.value.lock().unwrap_or_else(PoisonError::into_inner);
            let out = f(&mut guard);
            drop(guard);
            fuse.defuse();
            out
        }

        /// Waits until `ready` gives a value, asking it first and after every [`notify_all`](Self::notify_all); `None`
        /// when the time is up.
        pub(crate) fn wait_until<U>(&self, timeout: Duration, mut ready: impl FnMut(&mut T) -> Option<U>) -> Option<U> {
            let fuse = DieOnUnwind::new(PANIC_UNDER_LOCK);
            let mut out = None;
            let guard = self.value.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self.changed.wait_timeout_while(guard, timeout, |value| {
                out = ready(value);
                out.is_none()
            });
            drop(waited);
            fuse.defuse();
            out
        }

        pub(crate) fn notify_all(&self) {
            self.changed.notify_all();
        }
    }

    /// Wakes the drainer. Rung any number of times before it is heard, it is heard once.
    #[derive(Debug, Clone)]
    pub(crate) struct Bell {
        ring: Sender<()>,
        hear: Receiver<()>,
    }

    impl Bell {
        pub(crate) fn new() -> Self {
            let (ring, hear) = bounded(1);
            Self { ring, hear }
        }

        pub(crate) fn ring(&self) {
            // Full means that it has been rung and not been heard yet.
            let _ = self.ring.try_send(());
        }

        /// Takes the token, if there is one. Whoever then looks for work sees all that was done before the ring.
        pub(crate) fn clear(&self) {
            let _ = self.hear.try_recv();
        }

        /// Waits for a ring and takes its token; without a time, for as long as it takes.
        pub(crate) fn wait(&self, timeout: Option<Duration>) {
            match timeout {
                None => drop(self.hear.recv()),
                Some(time) => match self.hear.recv_timeout(time) {
                    Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
                },
            }
        }
    }
}
