//! What a node was asked, what it answered, and what was found of it after a power cut.

use std::collections::BTreeMap;

use handfast::control::api::PeersReply;

/// What our own edge to a peer says. Notes are never used twice, so that each names its change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) kind: &'static str,
    pub(crate) note: String,
}

/// A change that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) peer: String,
    pub(crate) said: Said,
    pub(crate) answer: Option<Answer>,
}

/// The answer to a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) revision: u64,
    pub(crate) durable: bool,
    /// The cut had begun when the answer came. Such an answer proves nothing: a sync that is under way while ext4 or
    /// XFS is shut down may end well although the journal has dropped what it waited for, which a program of ten lines
    /// shows as well. With real power, nobody would have been left to hear it.
    pub(crate) late: bool,
}

impl Change {
    fn is_durable(&self) -> bool {
        self.answer.is_some_and(|answer| answer.durable)
    }

    fn is_certain(&self) -> bool {
        self.answer.is_some_and(|answer| answer.durable && !answer.late)
    }

    fn revision(&self) -> Option<u64> {
        self.answer.map(|answer| answer.revision)
    }
}

/// What a node shows right after its start.
pub(crate) struct Found {
    pub(crate) revision: u64,
    pub(crate) edges: BTreeMap<String, Said>,
}

/// The edges of a list.
pub(crate) fn edges(peers: PeersReply) -> BTreeMap<String, Said> {
    let said = |kind: &str, note| Said { kind: if kind == "grant" { "grant" } else { "revoke" }, note };
    let rows = peers.peers.into_iter();
    rows.filter_map(|row| row.ours.map(|ours| (row.peer_id, said(&ours.kind, ours.note)))).collect()
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) asked: usize,
    pub(crate) acknowledged: usize,
    /// Acknowledged when the cut had begun, and how many of them are not there.
    pub(crate) late: usize,
    pub(crate) late_missing: usize,
    /// Changes that nobody was told of and that are there: legal.
    pub(crate) unasked_for: usize,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.asked += other.asked;
        self.acknowledged += other.acknowledged;
        self.late += other.late;
        self.late_missing += other.late_missing;
        self.unasked_for += other.unasked_for;
    }
}

/// What is on the disk for sure.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) edges: BTreeMap<String, Said>,
    revision: u64,
}

impl Ledger {
    /// Compares what was found with what had been answered. Of each peer, `changes` are in the order in which they
    /// were asked for, one after the other.
    ///
    /// ACK: what was answered as durable is there. ATOM: what is there is what memory held at the revision found.
    pub(crate) fn judge(&mut self, changes: &[Change], found: Found) -> Result<Counts, String> {
        let certain = changes.iter().filter(|change| change.is_certain());
        let newest = certain.clone().filter_map(Change::revision).max().unwrap_or(0).max(self.revision);
        if found.revision < newest {
            return Err(format!("LOST: revision {newest} was acknowledged, {} was found", found.revision));
        }
        let late = changes.iter().filter(|change| change.is_durable() && !change.is_certain());
        let missing = late.clone().filter(|change| change.revision() > Some(found.revision));
        let mut counts = Counts {
            asked: changes.len(),
            acknowledged: certain.count(),
            late: late.count(),
            late_missing: missing.count(),
            unasked_for: 0,
        };
        let mut by_peer: BTreeMap<&str, Vec<&Change>> = BTreeMap::new();
        for change in changes {
            by_peer.entry(&change.peer).or_default().push(change);
        }
        for (peer, changes) in &by_peer {
            counts.unasked_for += self.judge_peer(peer, changes, &found)?;
        }
        let others = |edges: &BTreeMap<String, Said>| {
            let rest = edges.iter().filter(|(peer, _)| !by_peer.contains_key(peer.as_str()));
            rest.map(|(peer, said)| (peer.clone(), said.clone())).collect::<Vec<_>>()
        };
        if others(&self.edges) != others(&found.edges) {
            return Err("LOST: a peer that was left alone has changed".to_owned());
        }
        *self = Self { edges: found.edges, revision: found.revision };
        Ok(counts)
    }

    /// Returns how many changes are there that nobody was told of.
    fn judge_peer(&self, peer: &str, changes: &[&Change], found: &Found) -> Result<usize, String> {
        let shown = found.edges.get(peer);
        // 0: as before; n: after change n.
        let at = if shown == self.edges.get(peer) {
            0
        } else {
            let place = changes.iter().position(|change| Some(&change.said) == shown);
            place.ok_or_else(|| format!("INVENTED: {peer} says {shown:?}, which nobody asked for"))? + 1
        };
        if let Some(lost) = changes[at..].iter().find(|change| change.is_certain()) {
            return Err(format!("LOST: {lost:?} was acknowledged, {shown:?} was found"));
        }
        let too_new = changes[..at].iter().filter_map(|change| change.revision()).find(|r| *r > found.revision);
        let left_out = changes[at..].iter().filter_map(|change| change.revision()).find(|r| *r <= found.revision);
        if too_new.or(left_out).is_some() {
            return Err(format!("MIXED: {peer} says {shown:?} at revision {}: {changes:?}", found.revision));
        }
        Ok(changes[..at].iter().filter(|change| !change.is_durable()).count())
    }
}
