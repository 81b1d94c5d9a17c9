//! A change that is asked for twice happens once.
//!
//! A client that lost its connection before the reply asks again with the same operation id, and gets the reply of the
//! first time; one that asks while the first is still at work waits for it. The work runs in its own task: a client
//! that goes away does not stop a change half-way.
//!
//! Invariants: of the operations with one id the work of exactly one runs, as long as the id is remembered
//! ([`OPERATIONS_KEPT`]; one that is at work is not forgotten). An id that comes back with another request is refused.
//! BOUND: at most [`OPERATIONS_AT_WORK`] run at a time.
//!
//! Not here: ids that outlive the node. After a restart a repeat is a new change, which trust rules make harmless.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::api::{ApiError, ErrorCode};

/// How many operation ids are remembered.
pub const OPERATIONS_KEPT: usize = 1_024;
/// How many operations are at work at a time: far fewer than are remembered.
pub const OPERATIONS_AT_WORK: usize = 256;
/// Longest operation id, in bytes.
pub const OPERATION_ID_BYTES_MAX: usize = 64;

/// What a client is answered: a reply as JSON, or an error.
pub type Outcome = Result<serde_json::Value, ApiError>;

type Slot = watch::Receiver<Option<Outcome>>;

/// The operations that are at work or were done lately.
#[derive(Debug)]
pub struct Once {
    known: Mutex<Known>,
    at_work: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Known {
    operations: HashMap<String, (String, Slot)>,
    order: VecDeque<String>,
}

impl Default for Once {
    fn default() -> Once {
        Once { known: Mutex::default(), at_work: Arc::new(Semaphore::new(OPERATIONS_AT_WORK)) }
    }
}

impl Once {
    /// Runs `work`, unless the operation is at work or was done already: then its outcome is awaited or repeated.
    /// `request` is the whole of what is asked, to notice an id that is used for something else. Without an id the
    /// work is always done.
    ///
    /// # Errors
    /// What the work says; `Usage` for an id that cannot be one; `TryAgain` when too many are at work.
    pub async fn run<F>(&self, id: Option<&str>, request: &str, work: F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut slot = match id {
            None => self.start(work)?,
            Some(id) => self.find_or_start(id, request, work)?,
        };
        let outcome = slot.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| {
            let error = ApiError::new(ErrorCode::Failure, "The operation ended without a result: a fault of handfast.");
            Err(error.hint("`handfast peers` shows what came of it; the log of the node says more"))
        })
    }

    fn find_or_start<F>(&self, id: &str, request: &str, work: F) -> Result<Slot, ApiError>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        if id.is_empty() || id.len() > OPERATION_ID_BYTES_MAX {
            let message = format!("An operation id has 1 to {OPERATION_ID_BYTES_MAX} bytes.");
            return Err(ApiError::new(ErrorCode::Usage, message));
        }
        // Starting the task under the lock: a duplicate must find it, and spawning does not wait.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((first, slot)) = known.operations.get(id) {
            if first != request {
                let error = ApiError::new(ErrorCode::Usage, "This operation id was used for another request.");
                return Err(error.hint("make a new id for each change"));
            }
            return Ok(slot.clone());
        }
        let slot = self.start(work)?;
        known.remember(id, request, slot.clone());
        Ok(slot)
    }

    fn start<F>(&self, work: F) -> Result<Slot, ApiError>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let permit = Arc::clone(&self.at_work).try_acquire_owned().map_err(|_| {
            ApiError::new(ErrorCode::TryAgain, "Too many changes are at work.").hint("try again in a moment")
        })?;
        let (sender, slot) = watch::channel(None);
        tokio::spawn(async move {
            sender.send_replace(Some(work.await));
            drop(permit);
        });
        Ok(slot)
    }
}

impl Known {
    fn remember(&mut self, id: &str, request: &str, slot: Slot) {
        // An operation at work keeps its place; there are fewer of those than places.
        for _ in 0..OPERATIONS_AT_WORK {
            if self.order.len() < OPERATIONS_KEPT {
                break;
            }
            let Some(oldest) = self.order.pop_front() else { break };
            let at_work = self.operations.get(&oldest).is_some_and(|(_, slot)| is_at_work(slot));
            if at_work {
                self.order.push_back(oldest);
            } else {
                self.operations.remove(&oldest);
            }
        }
        self.order.push_back(id.to_owned());
        self.operations.insert(id.to_owned(), (request.to_owned(), slot));
    }
}

/// No outcome yet, and somebody who can give one: a task that died gives none.
fn is_at_work(slot: &Slot) -> bool {
    slot.borrow().is_none() && slot.has_changed().is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::json;
    use tokio::sync::oneshot;

    use super::*;

    /// Work that counts itself and answers with the count.
    fn count(counter: &Arc<AtomicU32>) -> impl Future<Output = Outcome> + Send + 'static {
        let counter = counter.clone();
        async move { Ok(json!(counter.fetch_add(1, Ordering::Relaxed))) }
    }

    #[tokio::test]
    async fn a_repeat_gets_the_first_reply() {
        let (once, counter) = (Once::default(), Arc::new(AtomicU32::new(0)));
        assert_eq!(once.run(Some("a"), "revoke x", count(&counter)).await, Ok(json!(0)));
        assert_eq!(once.run(Some("a"), "revoke x", count(&counter)).await, Ok(json!(0)));
        assert_eq!(once.run(Some("b"), "revoke x", count(&counter)).await, Ok(json!(1)));
        assert_eq!(once.run(None, "revoke x", count(&counter)).await, Ok(json!(2)));
        let misused = once.run(Some("a"), "trust x", count(&counter)).await.unwrap_err();
        assert_eq!(misused.code, ErrorCode::Usage);
        let too_long = "x".repeat(OPERATION_ID_BYTES_MAX + 1);
        assert!(once.run(Some(&too_long), "", count(&counter)).await.is_err());
        assert!(once.run(Some(""), "", count(&counter)).await.is_err());
        assert_eq!(counter.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_client_that_leaves_does_not_stop_the_work() {
        let once = Arc::new(Once::default());
        let (go, gone) = oneshot::channel::<()>();
        let work = async move {
            let _ = gone.await;
            Ok(json!("done"))
        };
        // Polled once, so that the work has started; then the client is gone.
        tokio::select! {
            biased;
            _ = once.run(Some("a"), "", work) => panic!("it cannot be done yet"),
            () = std::future::ready(()) => {}
        }
        let second = tokio::spawn({
            let once = once.clone();
            async move { once.run(Some("a"), "", async { Ok(json!("twice")) }).await }
        });
        go.send(()).unwrap();
        assert_eq!(second.await.unwrap(), Ok(json!("done")));
    }

    #[tokio::test]
    async fn work_that_dies_is_an_error_for_all() {
        let once = Once::default();
        let died = once.run(Some("a"), "", async { panic!("as the test wants") }).await.unwrap_err();
        assert_eq!(died.code, ErrorCode::Failure);
        assert_eq!(once.run(Some("a"), "", async { Ok(json!(1)) }).await, Err(died));
    }

    #[tokio::test]
    async fn the_oldest_is_forgotten_unless_it_is_at_work() {
        let (once, counter) = (Arc::new(Once::default()), Arc::new(AtomicU32::new(0)));
        let (go, gone) = oneshot::channel::<()>();
        let first = tokio::spawn({
            let once = once.clone();
            let work = async move {
                let _ = gone.await;
                Ok(json!("slow"))
            };
            async move { once.run(Some("slow"), "", work).await }
        });
        tokio::task::yield_now().await;
        for n in 0..=OPERATIONS_KEPT {
            once.run(Some(&n.to_string()), "", count(&counter)).await.unwrap();
        }
        let repeated = once.run(Some("0"), "", count(&counter)).await.unwrap();
        assert_eq!(repeated, json!(OPERATIONS_KEPT + 1), "0 was forgotten and ran again");
        let waiting = tokio::spawn({
            let once = once.clone();
            async move { once.run(Some("slow"), "", async { Ok(json!("again")) }).await }
        });
        go.send(()).unwrap();
        assert_eq!((first.await.unwrap(), waiting.await.unwrap()), (Ok(json!("slow")), Ok(json!("slow"))));
        assert_eq!(once.known.lock().unwrap().operations.len(), OPERATIONS_KEPT);
    }
}
