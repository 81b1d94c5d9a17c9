//! How many peers there are in each state: counts that follow every change of the trust store, read without a lock.
//!
//! Invariant: the counts are those of the stored records, as they were last told: a grant whose end has come, or a
//! membership that has ceased to count, is counted once its transition is recorded. Written by the holder of the store's
//! lock, one at a time.
//!
//! Not here: the deny list, which is configuration.

use std::sync::atomic::{AtomicU64, Ordering};

use handfast_protocol::UnixMillis;

use crate::trust_record::{TrustRecord, TrustState, View};

#[derive(Default)]
pub(crate) struct Census {
    by_state: [AtomicU64; TrustState::ALL.len()],
    undelivered: AtomicU64,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    by_state: [u64; TrustState::ALL.len()],
    /// Statements of ours that their subjects do not hold yet.
    pub undelivered: u64,
}

impl Counted {
    /// How many peers are in `state`.
    pub fn of(&self, state: TrustState) -> u64 {
        self.by_state[state as usize]
    }

    /// A peer is in another state than its record says.
    pub fn moved(&mut self, from: TrustState, to: TrustState) {
        self.by_state[from as usize] = self.by_state[from as usize].saturating_sub(1);
        self.by_state[to as usize] += 1;
    }
}

impl TrustRecord {
    /// The state that the record is counted under.
    pub fn counted_as(&self) -> TrustState {
        // What a membership holds up shows in the last transition; all else is in the record, ends by their marks.
        let of_marks = || self.state(&View::outside(false, UnixMillis::default()));
        if self.rests_on_networks() { self.told() } else { of_marks() }
    }
}

/// One less here, one more there.
fn moved(from: Option<&AtomicU64>, to: Option<&AtomicU64>) {
    if let Some(from) = from {
        from.fetch_sub(1, Ordering::Relaxed);
    }
    if let Some(to) = to {
        to.fetch_add(1, Ordering::Relaxed);
    }
}

impl Census {
    pub(crate) fn changed(&self, old: Option<&TrustRecord>, new: Option<&TrustRecord>) {
        let state = |record: Option<&TrustRecord>| record.map(TrustRecord::counted_as);
        let is_undelivered =
            |record: Option<&TrustRecord>| record.is_some_and(|record| record.ours.is_some() && !record.is_delivered());
        let of = |state: Option<TrustState>| state.map(|state| &self.by_state[state as usize]);
        let (from, to) = (state(old), state(new));
        if from != to {
            moved(of(from), of(to));
        }
        let undelivered = |record| is_undelivered(record).then_some(&self.undelivered);
        moved(undelivered(old), undelivered(new));
    }

    pub(crate) fn counted(&self) -> Counted {
        Counted {
            by_state: std::array::from_fn(|state| self.by_state[state].load(Ordering::Relaxed)),
            undelivered: self.undelivered.load(Ordering::Relaxed),
        }
    }
}
