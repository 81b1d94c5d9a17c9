//! Work that is done ahead, by other threads or by this one, with results in the order in which it was asked for.
//!
//! Invariants: a result is handed out once, in order. Nobody waits for a thread that has not begun: a job that no helper
//! has room for is done by whoever brings it. Helpers end before [`Ahead::with`] returns; a panic in one is the caller's.
//!
//! Not here: what the work is (`replay`).

use std::collections::VecDeque;
use std::thread::{Builder, Scope, available_parallelism};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Jobs that wait for a helper, at most.
const WAITING_MAX: usize = 2;

pub(crate) struct Ahead<'w, J, D> {
    work: &'w (dyn Fn(J) -> D + Sync),
    helpers: Vec<Helper<J, D>>,
    /// The helper that is asked next.
    turn: usize,
    results: VecDeque<Place<D>>,
}

struct Helper<J, D> {
    jobs: Sender<J>,
    done: Receiver<D>,
}

/// Where a result is, or will be.
enum Place<D> {
    Here(D),
    WithHelper(usize),
}

impl<'w, J: Send, D: Send> Ahead<'w, J, D> {
    /// Runs `f` with up to so many helpers, as far as there are processors for them, and at most `results_max` jobs at a
    /// time whose results were not taken.
    pub(crate) fn with<T>(
        helpers_max: usize,
        results_max: usize,
        work: impl Fn(J) -> D + Sync,
        f: impl FnOnce(&mut Ahead<'_, J, D>) -> T,
    ) -> T {
        let processors = if helpers_max == 0 { 1 } else { available_parallelism().map_or(1, usize::from) };
        std::thread::scope(|scope| {
            let work: &(dyn Fn(J) -> D + Sync) = &work;
            let helpers = (0..helpers_max.min(processors - 1)).map_while(|_| help(scope, work, results_max)).collect();
            f(&mut Ahead { work, helpers, turn: 0, results: VecDeque::new() })
        })
    }

    /// Whether nobody helps.
    pub(crate) fn is_alone(&self) -> bool {
        self.helpers.is_empty()
    }

    /// Results that were not taken.
    pub(crate) fn len(&self) -> usize {
        self.results.len()
    }

    /// Has a job done.
    pub(crate) fn push(&mut self, mut job: J) {
        for _ in 0..self.helpers.len() {
            self.turn = (self.turn + 1) % self.helpers.len();
            match self.helpers[self.turn].jobs.try_send(job) {
                Ok(()) => return self.results.push_back(Place::WithHelper(self.turn)),
                Err(refused) => job = refused.into_inner(),
            }
        }
        self.results.push_back(Place::Here((self.work)(job)));
    }

    /// The next result, in the order of the jobs; waits for it.
    pub(crate) fn pop(&mut self) -> Option<D> {
        match self.results.pop_front()? {
            Place::Here(result) => Some(result),
            // A helper ends early only by a panic, which the scope passes on.
            Place::WithHelper(helper) => self.helpers[helper].done.recv().ok(),
        }
    }
}

/// `None` if the system has no thread left.
fn help<'scope, J: Send + 'scope, D: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: &'scope (dyn Fn(J) -> D + Sync),
    results_max: usize,
) -> Option<Helper<J, D>> {
    let (jobs, undone) = bounded::<J>(WAITING_MAX);
    // Never full: no more are asked for than may lie untaken.
    let (results, done) = bounded(results_max.max(1));
    let run = move || {
        for job in undone {
            if results.send(work(job)).is_err() {
                return;
            }
        }
    };
    Builder::new().name("ahead".to_owned()).spawn_scoped(scope, run).ok()?;
    Some(Helper { jobs, done })
}

#[cfg(test)]
#[cfg(not(handfast_loom))]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whoever_did_the_work() {
        for helpers in 0..4 {
            let sum = Ahead::with(
                helpers,
                8,
                |job: u64| job * 2,
                |ahead| {
                    let mut next = 0;
                    for job in 0..10_000 {
                        ahead.push(job);
                        if ahead.len() == 8 || job % 7 == 0 {
                            assert_eq!(ahead.pop(), Some(next * 2));
                            next += 1;
                        }
                    }
                    while let Some(result) = ahead.pop() {
                        assert_eq!(result, next * 2);
                        next += 1;
                    }
                    next
                },
            );
            assert_eq!(sum, 10_000);
        }
    }

    #[test]
    fn results_that_nobody_takes_do_not_keep_it_from_ending() {
        Ahead::with(2, 8, |job: u64| vec![job; 100], |ahead| (0..8).for_each(|job| ahead.push(job)));
    }
}
