//! A changed trust record on its way into the table: what is known about the change before the lock is taken.
//!
//! Not here: whether it may be stored (`book`).

use std::sync::Arc;

use handfast_protocol::PeerId;

use crate::record::Revision;
use crate::rules::Decided;
use crate::table::{Table, Urgency};
use crate::trust_record::{Transition, TrustRecord};

/// True when the change is one that a stranger can cause again and again: a new record without an edge of ours, or
/// another statement in one.
pub(super) fn is_bought_by_a_stranger(before: Option<&TrustRecord>, decided: &Decided) -> bool {
    let Some(next) = decided.record.as_deref().filter(|next| next.is_strangers()) else {
        return false;
    };
    before.is_none_or(|before| !before.has_same_edges(next))
}

/// A record that is ready to be stored, allocated outside the lock.
pub(super) struct Next {
    pub(super) record: Arc<TrustRecord>,
    has_same_edges: bool,
    /// Only what the peer has made durable differs: losing that costs one repeat.
    only_delivered: bool,
}

impl Next {
    /// `None` where it says what `before` says.
    pub(super) fn new(before: Option<&Arc<TrustRecord>>, mut record: Arc<TrustRecord>) -> Option<Next> {
        if before.is_some_and(|before| Arc::ptr_eq(before, &record)) {
            return None;
        }
        // Most changes show in the edges, which costs less to look at.
        let has_same_edges = before.is_some_and(|before| before.has_same_edges(&record));
        let mut only_delivered = false;
        if let Some(before) = before.filter(|_| has_same_edges) {
            let next = Arc::make_mut(&mut record);
            let delivered = std::mem::replace(&mut next.delivered, before.delivered);
            only_delivered = *next == **before;
            next.delivered = delivered;
            if only_delivered && delivered == before.delivered {
                return None;
            }
        }
        Some(Next { record, has_same_edges, only_delivered })
    }

    /// Inside the lock. `revision`: in, that of the record before; out, what must be durable.
    pub(super) fn put(
        mut self,
        table: &mut Table<TrustRecord>,
        peer: PeerId,
        transition: Option<Transition>,
        revision: &mut Revision,
    ) {
        let now = table.revision().next();
        // Nobody else has it yet.
        if let Some(record) = Arc::get_mut(&mut self.record) {
            if !self.has_same_edges {
                record.edges_at = now;
            }
            if !self.only_delivered {
                record.changed_at = now;
                *revision = now;
            }
            if let (Some(transition), Some(last)) = (transition, record.history.last_mut()) {
                *last = transition;
            }
        }
        let urgency = if self.only_delivered { Urgency::Lazy } else { Urgency::Critical };
        table.put_shared(peer, self.record, urgency);
    }
}
