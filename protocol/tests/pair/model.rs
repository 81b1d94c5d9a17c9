//! One end as a model: two edges with their whole history, a disk that lags behind, and rules just rich enough to
//! answer. Stands in for the crate `handfast-trust`.

use handfast_protocol::exchange::{AnswerTerms, Disposition, Offer, Parties, Shown};
use handfast_protocol::statement::next_epoch;
use handfast_protocol::stream::Extensions;
use handfast_protocol::{
    Held, Incarnation, Kind, Note, PeerId, Rank, SecretKey, Statement, Terms, UnixMillis, Verified,
};

/// The two edges of a pair, from the view of one end.
#[derive(Clone, Default)]
pub(crate) struct Edges {
    pub(crate) ours: Option<Verified>,
    pub(crate) theirs: Option<Verified>,
    /// The newest grant of ours that the peer showed us and that we do not know.
    proven: u64,
}

/// Where the opener stood when it made its Offer: what the responder need not send.
#[derive(Clone, Copy, Default)]
pub(crate) struct Offered {
    theirs: Option<Rank>,
    ours: Option<Rank>,
}

#[derive(Clone)]
pub(crate) struct End {
    key: SecretKey,
    peer: PeerId,
    /// The edges at every revision; the last is what memory holds.
    history: Vec<Edges>,
    /// Everything up to this revision survives a crash.
    durable: usize,
    /// A hung disk confirms nothing.
    pub(crate) disk_hangs: bool,
    /// Which statement of ours the peer said that it has made durable.
    pub(crate) delivered: Option<Held>,
}

fn rank(edge: &Option<Verified>) -> Option<Rank> {
    edge.as_ref().map(Verified::rank)
}

fn kind(edge: &Option<Verified>) -> Option<Kind> {
    edge.as_ref().map(|edge| edge.terms().kind)
}

pub(crate) fn held(edge: &Option<Verified>) -> Option<Held> {
    edge.as_ref().map(Verified::held)
}

impl End {
    pub(crate) fn new(seed: u8, peer: u8) -> End {
        let peer = SecretKey::from_seed(&[peer; 32]).peer_id();
        let history = vec![Edges::default()];
        let key = SecretKey::from_seed(&[seed; 32]);
        End { key, peer, history, durable: 0, disk_hangs: false, delivered: None }
    }

    /// What the end goes by.
    pub(crate) fn memory(&self) -> &Edges {
        &self.history[self.history.len() - 1]
    }

    /// What a crash leaves.
    pub(crate) fn disk(&self) -> &Edges {
        &self.history[self.durable]
    }

    pub(crate) fn revision(&self) -> u64 {
        self.history.len() as u64 - 1
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable as u64
    }

    pub(crate) fn flush(&mut self) {
        assert!(!self.disk_hangs, "a hung disk confirms nothing");
        self.durable = self.history.len() - 1;
    }

    /// Whether the end ever had exactly this statement of its peer on disk, or skipped it for a newer one.
    pub(crate) fn has_made_durable(&self, of_theirs: Held) -> bool {
        self.history[..=self.durable].iter().any(|edges| held(&edges.theirs) == Some(of_theirs))
    }

    pub(crate) fn crash(&mut self) {
        self.history.truncate(self.durable + 1);
        self.delivered = None;
    }

    /// The data directory of an earlier day is put back.
    pub(crate) fn restore(&mut self, revision: u64) {
        self.history.truncate(revision as usize + 1);
        self.durable = revision as usize;
        self.delivered = None;
    }

    fn change(&mut self, edges: Edges) {
        self.history.push(edges);
    }

    /// The operator grants or revokes.
    pub(crate) fn issue(&mut self, kind: Kind, now: UnixMillis) {
        let mut edges = self.memory().clone();
        let epoch = next_epoch(edges.ours.as_ref().map(|ours| ours.terms().epoch), edges.proven, now);
        let note = Note::default();
        let terms = Terms { kind, epoch, issued_at: now, expires_at: None, scope: None, network: None, note };
        let statement = Statement { issuer: self.key.peer_id(), subject: self.peer, terms };
        edges.ours = Some(statement.sign(&self.key).unwrap());
        self.change(edges);
    }

    /// Only what is durable leaves the node.
    pub(crate) fn offer(&self) -> Offer {
        Offer {
            statement: self.disk().ours.as_ref().map(|ours| ours.signed().clone()),
            yours: self.memory().theirs.as_ref().map(|theirs| theirs.signed().clone()),
            incarnation: Incarnation([0; 16]),
            address: None,
            extensions: Extensions::default(),
        }
    }

    pub(crate) fn parties(&self) -> Parties {
        let Edges { ours, theirs, .. } = self.memory().clone();
        Parties { me: self.key.peer_id(), peer: self.peer, ours, theirs }
    }

    /// Merges what the peer showed. Our own newer revoke comes back into force; our own newer grant only raises the
    /// epoch of what we say next.
    pub(crate) fn merge(&mut self, shown: &Shown) -> Offered {
        let mut edges = self.memory().clone();
        if shown.theirs.as_ref().map(Verified::rank) > rank(&edges.theirs) {
            edges.theirs.clone_from(&shown.theirs);
        }
        if let Some(shown) = shown.ours.as_ref().filter(|shown| Some(shown.rank()) > rank(&edges.ours)) {
            match shown.terms().kind {
                Kind::Revoke => edges.ours = Some(shown.clone()),
                Kind::Grant => edges.proven = edges.proven.max(shown.terms().epoch),
            }
        }
        let before = self.memory();
        let changed = (rank(&edges.ours), rank(&edges.theirs), edges.proven)
            != (rank(&before.ours), rank(&before.theirs), before.proven);
        if changed {
            self.change(edges);
        }
        self.confirm(shown.holds);
        Offered { theirs: rank(&shown.theirs), ours: rank(&shown.ours) }
    }

    /// The peer says that it has made this statement of ours durable; counts when it is what we say now.
    pub(crate) fn confirm(&mut self, holds: Option<Held>) {
        if holds.is_some() && holds == held(&self.memory().ours) {
            self.delivered = holds;
        }
    }

    /// What the rules say now.
    pub(crate) fn decide(&self, offered: Offered) -> AnswerTerms {
        let Edges { ours, theirs, .. } = self.memory();
        let disposition = match (kind(ours), kind(theirs)) {
            (Some(Kind::Revoke), _) => Disposition::Refused,
            (Some(Kind::Grant), Some(Kind::Grant)) => Disposition::Granted,
            (None, Some(Kind::Grant)) => Disposition::Pending,
            _ => Disposition::Noted,
        };
        let newer = |edge: &Option<Verified>, than: Option<Rank>| {
            edge.as_ref().filter(|edge| Some(edge.rank()) > than).map(|edge| edge.signed().clone())
        };
        AnswerTerms {
            disposition,
            holds: held(theirs),
            statement: newer(ours, offered.ours),
            yours: newer(theirs, offered.theirs),
            incarnation: Incarnation([0; 16]),
            address: None,
            networks: Vec::new(),
        }
    }
}
