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
    let Some(next) = decided.record.as_ref().filter(|next| next.is_strangers()) else {
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
    pub(super) fn new(before: Option<&TrustRecord>, mut record: TrustRecord) -> Next {
        let has_same_edges = before.is_some_and(|before| before.has_same_edges(&record));
        let only_delivered = before.is_some_and(|before| {
            let delivered = std::mem::replace(&mut record.delivered, before.delivered);
            let same = record == *before;
            record.delivered = delivered;
            same
        });
        Next { record: Arc::new(record), has_same_edges, only_delivered }
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
