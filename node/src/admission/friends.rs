//! Where friends are expected: at which places peers that are trusted authenticated lately.
//!
//! A place is an IPv4 address or an IPv6 /64, of which a host changes the rest as it likes. Whoever is there may be taken
//! for the friend: an address translator's other hosts, a segment's other hosts. They share its permits in the friends'
//! lane (`FRIENDS_PER_PLACE_MAX`), whatever addresses they come from.
//!
//! Invariants (BOUND): [`FRIEND_PLACES_MAX`] entries in all, [`PLACES_PER_PEER_MAX`] of one peer, [`FRIENDS_AT_ONE_MAX`] at
//! one place. Where there are more, the one that would end first goes: a peer that moves about displaces its own. All in
//! time that grows with the logarithm of the entries.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use handfast_protocol::PeerId;

use super::sources::Place;

/// Where friends are expected: places with the peers that were there. About 15 MiB.
pub const FRIEND_PLACES_MAX: usize = 65_536;
/// Of which one peer has so many.
pub const PLACES_PER_PEER_MAX: usize = 16;
/// Friends that one place may stand for: a site behind one address translator.
pub(super) const FRIENDS_AT_ONE_MAX: usize = 16;
/// How long a place stays a friend's: 30 days.
pub const FRIEND_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Friends {
    /// Until when.
    at: BTreeMap<(Place, PeerId), Duration>,
    /// The same of each peer, what ends first in front.
    of: BTreeSet<(PeerId, Duration, Place)>,
    /// And of all.
    ends: BTreeSet<(Duration, PeerId, Place)>,
}

impl Friends {
    /// A peer that is trusted is expected at a place, until then at least.
    pub(super) fn expect(&mut self, peer: PeerId, place: Place, until: Duration) {
        let until = self.at.get(&(place, peer)).map_or(until, |known| until.max(*known));
        self.forget(peer, place);
        self.at.insert((place, peer), until);
        self.of.insert((peer, until, place));
        self.ends.insert((until, peer, place));
        if let Some(first) = excess(self.places_of(&peer), PLACES_PER_PEER_MAX) {
            self.forget(peer, first);
        }
        if let Some(first) = excess(self.peers_at(place), FRIENDS_AT_ONE_MAX) {
            self.forget(first, place);
        }
        if self.at.len() > FRIEND_PLACES_MAX
            && let Some((_, peer, place)) = self.ends.first().copied()
        {
            self.forget(peer, place);
        }
    }

    /// Whether a friend is expected at a place now.
    pub(super) fn is_expected(&self, place: Place, now: Duration, is_trusted: impl Fn(&PeerId) -> bool) -> bool {
        self.peers_at(place).any(|(peer, until)| until > now && is_trusted(&peer))
    }

    fn peers_at(&self, place: Place) -> impl Iterator<Item = (PeerId, Duration)> {
        let [least, greatest] = [0, u8::MAX].map(|byte| PeerId::from_stored([byte; 32]));
        self.at.range((place, least)..=(place, greatest)).map(|((_, peer), until)| (*peer, *until))
    }

    fn places_of(&self, peer: &PeerId) -> impl Iterator<Item = (Place, Duration)> {
        let range = (*peer, Duration::ZERO, Place::LEAST)..=(*peer, Duration::MAX, Place::GREATEST);
        self.of.range(range).map(|(_, until, place)| (*place, *until))
    }

    fn forget(&mut self, peer: PeerId, place: Place) {
        if let Some(until) = self.at.remove(&(place, peer)) {
            self.of.remove(&(peer, until, place));
            self.ends.remove(&(until, peer, place));
        }
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!((self.of.len(), self.ends.len()), (self.at.len(), self.at.len()));
        self.at.len()
    }
}

/// The one that ends first, where there is one too many.
fn excess<T>(list: impl Iterator<Item = (T, Duration)>, max: usize) -> Option<T> {
    let (mut count, mut first) = (0, None::<(T, Duration)>);
    for one in list {
        count += 1;
        if first.as_ref().is_none_or(|(_, until)| one.1 < *until) {
            first = Some(one);
        }
    }
    first.filter(|_| count > max).map(|(which, _)| which)
}
