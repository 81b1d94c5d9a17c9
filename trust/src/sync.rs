//! The only file that names a lock, a condition variable or a channel.
//!
//! What the store, its drainer, their waiters and the table of passes share goes through the types below, so that a model
//! checker can take their place (`cfg(handfast_loom)`, see `loom_models`) without a change elsewhere. (Counters of the rules and
//! the maps of networks, which no model has, are the standard library's and papaya's.) Access to a lock is by closure: no guard leaves this file.
//!
//! A panic inside a lock ends the process before the lock is released: a table that was left half changed must not be read, and a node
//! that cannot persist must not go on.
//!
//! Not here: what the locks protect.

mod ahead;

use std::io::Write as _;
use std::sync::PoisonError;
#[cfg(not(handfast_loom))]
use std::sync::{Condvar, Mutex};
use std::time::Duration;

#[cfg(handfast_loom)]
use loom::sync::{Condvar, Mutex};

pub(crate) use self::ahead::Ahead;
#[cfg(handfast_loom)]
pub(crate) use self::flag_bell::FlagBell as Bell;
#[cfg(not(handfast_loom))]
pub(crate) use self::token_bell::TokenBell as Bell;
#[cfg(handfast_loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(handfast_loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// A number that is only counted and shown: nobody relies on its order with anything.
pub(crate) use std::sync::atomic::AtomicU64 as Counter;

/// Something that is brought once and then stays.
pub(crate) use std::sync::OnceLock;

/// Has cache lines of its own (two, since processors fetch them in pairs): what some threads write often does not take
/// from others what they only read.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Apart<T>(pub(crate) T);

impl<T> std::ops::Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// So many pauses of the processor, in which a good disk syncs, a watch keeps it for itself,
const PAUSES_ALONE: u32 = 2_048;

/// and offers it to others after each so many of those that follow.
const PAUSES_TOGETHER: u32 = 128;

/// Asks again and again until it is so, with so many pauses of the processor in between at most (a hundred of them
/// take one to four microseconds). For what is mostly so before a thread that sleeps could be woken; never where there
/// is one processor, which is better left to whoever makes it so, nor in a model, where nothing takes time.
///
/// When it takes longer, others that want this processor go first. A sync may need a thread of the kernel that belongs to just
/// this one (ext4 notes in one that an allocated block has been written), which would wait until the watch is over.
pub(crate) fn watch(pauses_max: u32, mut is_so: impl FnMut() -> bool) -> bool {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let several = || *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from)) > 1;
    !cfg!(handfast_loom)
        && several()
        && (0..=pauses_max).any(|pause| {
            match pause {
                0 => {}
                PAUSES_ALONE.. if pause.is_multiple_of(PAUSES_TOGETHER) => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
            is_so()
        })
}

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
        std::mem::forget(self);
    }
}

impl Drop for DieOnUnwind {
    fn drop(&mut self) {
        // The model checker unwinds out of a deadlock that it has found.
        if !cfg!(handfast_loom) {
            die(self.0)
        }
    }
}

const PANIC_UNDER_LOCK: &str = "a panic under a store's lock";

/// A mutex with access by closure. The closure must not block, encode, log or take another lock.
#[derive(Debug)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
        // Never poisoned: a panic inside ends the process, and does so before the lock is released.
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fuse = DieOnUnwind::new(PANIC_UNDER_LOCK);
        let out = f(&mut guard);
        fuse.defuse();
        out
    }
}

impl<T: Default> Default for Lock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// A lock that threads can wait on.
#[derive(Debug)]
pub(crate) struct Monitor<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Monitor<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Condvar::new() }
    }

    pub(crate) fn with<U>(&self, f: impl FnOnce(&mut T) -> U) -> U {
        let mut guard = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let fuse = DieOnUnwind::new(PANIC_UNDER_LOCK);
        let out = f(&mut guard);
        fuse.defuse();
        out
    }

    /// Waits until `ready` gives a value, asking it first and after every [`notify_all`](Self::notify_all); `None`
    /// when the time is up.
    #[cfg(not(handfast_loom))]
    pub(crate) fn wait_until<U>(&self, timeout: Duration, mut ready: impl FnMut(&mut T) -> Option<U>) -> Option<U> {
        let mut out = None;
        let guard = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(guard, timeout, |value| {
            let fuse = DieOnUnwind::new(PANIC_UNDER_LOCK);
            out = ready(value);
            fuse.defuse();
            out.is_none()
        });
        drop(waited);
        out
    }

    /// The same, with all the time in the world: the checker has no clock.
    #[cfg(handfast_loom)]
    pub(crate) fn wait_until<U>(&self, _: Duration, mut ready: impl FnMut(&mut T) -> Option<U>) -> Option<U> {
        let mut guard = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(out) = ready(&mut guard) {
                return Some(out);
            }
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn notify_all(&self) {
        self.changed.notify_all();
    }
}

/// The bell that wakes the drainer: rung any number of times before it is heard, it is heard once.
#[cfg(not(handfast_loom))]
mod token_bell {
    use std::time::Duration;

    use crossbeam_channel::{Receiver, Sender, bounded};

    /// A channel with room for one token.
    #[derive(Debug, Clone)]
    pub(crate) struct TokenBell {
        ring: Sender<()>,
        hear: Receiver<()>,
    }

    impl TokenBell {
        pub(crate) fn new() -> Self {
            let (ring, hear) = bounded(1);
            Self { ring, hear }
        }

        pub(crate) fn ring(&self) {
            // Full means that it has been rung and not been heard yet.
            let _ = self.ring.try_send(());
        }

        /// Takes the token, if there is one. Whoever then looks for work sees all that was done before the ring.
        pub(crate) fn clear(&self) -> bool {
            self.hear.try_recv().is_ok()
        }

        /// Waits for a ring and takes its token; without a time, for as long as it takes. Whether it was rung.
        pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
            match timeout {
                None => self.hear.recv().is_ok(),
                Some(timeout) => self.hear.recv_timeout(timeout).is_ok(),
            }
        }
    }
}

/// The same bell for the model checker, which has no channels. A contract test compares the two.
#[cfg(any(test, handfast_loom))]
mod flag_bell {
    use std::sync::Arc;
    use std::time::Duration;

    use super::Monitor;

    /// A flag with a condition variable.
    #[derive(Debug, Clone)]
    pub(crate) struct FlagBell(Arc<Monitor<bool>>);

    impl FlagBell {
        pub(crate) fn new() -> Self {
            Self(Arc::new(Monitor::new(false)))
        }

        pub(crate) fn ring(&self) {
            self.0.with(|rung| *rung = true);
            self.0.notify_all();
        }

        pub(crate) fn clear(&self) -> bool {
            self.0.with(std::mem::take)
        }

        /// The checker has no clock: there, a wait with a time ends at once, or if it is longer than a day, never.
        pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
            if cfg!(handfast_loom) && timeout.is_some_and(|timeout| timeout < Duration::from_secs(86_400)) {
                return self.clear();
            }
            let timeout = timeout.unwrap_or(Duration::MAX);
            self.0.wait_until(timeout, |rung| std::mem::take(rung).then_some(())).is_some()
        }
    }
}

#[cfg(test)]
#[cfg(not(handfast_loom))]
mod tests {
    use std::time::Duration;

    use super::flag_bell::FlagBell;
    use super::token_bell::TokenBell;

    #[test]
    fn both_bells_are_heard_alike() {
        // Every sequence of eight of: ring, clear, wait without time.
        for sequence in 0..3_u32.pow(8) {
            let (token, flag) = (TokenBell::new(), FlagBell::new());
            for place in 0..8 {
                match sequence / 3_u32.pow(place) % 3 {
                    0 => {
                        token.ring();
                        flag.ring();
                    }
                    1 => assert_eq!(token.clear(), flag.clear(), "{sequence} at {place}"),
                    _ => assert_eq!(token.wait(Some(Duration::ZERO)), flag.wait(Some(Duration::ZERO)), "{sequence}"),
                }
            }
        }
    }

    #[test]
    fn both_bells_wake_who_waits() {
        let (token, flag) = (TokenBell::new(), FlagBell::new());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| (token.wait(None), flag.wait(None)));
            token.ring();
            flag.ring();
            assert_eq!(waiter.join().unwrap(), (true, true));
        });
    }
}
