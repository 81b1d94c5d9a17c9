//! What the simulated peers do, and in which proportion. Which operation comes at which place follows from the seed
//! alone, however many workers there are and whatever the node answers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What one simulated peer does in one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A key that the node has never seen asks for trust.
    New,
    /// A trusted peer exchanges again.
    Known,
    /// A trusted peer exchanges again over the session that stands.
    Again,
    /// A trusted peer takes its grant back.
    Revoke,
    /// A new peer grants, revokes and grants again.
    Flap,
    /// A stranger whose request waits for the operator.
    Pending,
    /// Bytes that are no protocol, at each stage of a conversation.
    Garbage,
    /// A statement that somebody else signed.
    Replay,
    /// A conversation that is begun and not gone on with, at each stage.
    Slow,
    /// A trusted peer that keeps its connection and says nothing.
    Idle,
    /// A new peer of which nothing comes any more, from some stage on.
    Vanish,
    /// A first packet from an address that proves nothing; an open loop sends it.
    Spoofed,
    /// A session that the operator revokes.
    Cut,
}

impl Kind {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Kind; 13] = [
        Kind::New,
        Kind::Known,
        Kind::Again,
        Kind::Revoke,
        Kind::Flap,
        Kind::Pending,
        Kind::Garbage,
        Kind::Replay,
        Kind::Slow,
        Kind::Idle,
        Kind::Vanish,
        Kind::Spoofed,
        Kind::Cut,
    ];

    /// Whether one completes only if the node answers.
    pub fn needs_answers(self) -> bool {
        !matches!(self, Kind::Garbage | Kind::Replay | Kind::Slow | Kind::Vanish | Kind::Spoofed)
    }

    /// Its name in options and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::New => "new",
            Kind::Known => "known",
            Kind::Again => "again",
            Kind::Revoke => "revoke",
            Kind::Flap => "flap",
            Kind::Pending => "pending",
            Kind::Garbage => "garbage",
            Kind::Replay => "replay",
            Kind::Slow => "slow",
            Kind::Idle => "idle",
            Kind::Vanish => "vanish",
            Kind::Spoofed => "spoofed",
            Kind::Cut => "cut",
        }
    }

    /// Whether it is what many strangers do at once: that load runs on threads that give way to all others.
    pub fn is_crowd(self) -> bool {
        !matches!(self, Kind::Known | Kind::Again | Kind::Revoke | Kind::Idle | Kind::Cut)
    }

    /// Whether the peer follows the protocol to its end: only such conversations count as handshakes and have a latency.
    pub fn is_honest(self) -> bool {
        matches!(self, Kind::New | Kind::Known | Kind::Again | Kind::Revoke | Kind::Flap | Kind::Pending)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The weight of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix([u32; Kind::ALL.len()]);

/// Largest weight, so that the sum fits.
const WEIGHT_MAX: u32 = 1_000_000;

/// Why a text is no mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MixFault {
    #[error(
        "a mix is KIND=WEIGHT,...; kinds are new, known, again, revoke, flap, pending, garbage, replay, slow, idle, \
         vanish, spoofed, cut"
    )]
    Form,
    #[error("a weight is a number from 0 to 1000000")]
    Weight,
    #[error("a kind is named twice")]
    Twice,
    #[error("every weight is 0")]
    Empty,
}

impl Default for Mix {
    fn default() -> Mix {
        let mut weights = [0; Kind::ALL.len()];
        weights[Kind::New as usize] = 1;
        Mix(weights)
    }
}

impl Mix {
    /// The weight of a kind.
    pub fn weight(&self, kind: Kind) -> u32 {
        self.0[kind as usize]
    }

    /// The kind of the operation at `index` in a run with `seed`.
    pub fn at(&self, seed: u64, index: u64) -> Kind {
        let total: u64 = self.0.iter().map(|weight| u64::from(*weight)).sum();
        let mut draw = scatter(seed, index) % total.max(1);
        for kind in Kind::ALL {
            let weight = u64::from(self.weight(kind));
            if draw < weight {
                return kind;
            }
            draw -= weight;
        }
        Kind::New
    }

    /// How many of `operations` are of this kind, on average.
    pub fn expected(&self, kind: Kind, operations: u64) -> u64 {
        let total: u64 = self.0.iter().map(|weight| u64::from(*weight)).sum();
        operations.saturating_mul(u64::from(self.weight(kind))) / total.max(1)
    }
}

impl FromStr for Mix {
    type Err = MixFault;

    fn from_str(text: &str) -> Result<Mix, MixFault> {
        let mut weights = [None; Kind::ALL.len()];
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or(MixFault::Form)?;
            let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name.trim()).ok_or(MixFault::Form)?;
            let weight: u32 = weight.trim().parse().map_err(|_| MixFault::Weight)?;
            if weight > WEIGHT_MAX {
                return Err(MixFault::Weight);
            }
            if weights[kind as usize].replace(weight).is_some() {
                return Err(MixFault::Twice);
            }
        }
        let weights = weights.map(Option::unwrap_or_default);
        if weights.iter().all(|weight| *weight == 0) { Err(MixFault::Empty) } else { Ok(Mix(weights)) }
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Kind::ALL.into_iter().filter(|kind| self.weight(*kind) > 0);
        for (place, kind) in named.enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma}{kind}={}", self.weight(kind))?;
        }
        Ok(())
    }
}

/// A number that looks random and follows from two (SplitMix64, Steele et al. 2014).
pub fn scatter(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_read_and_shown() {
        let check =
            |text: &str, shown: &str| assert_eq!(text.parse::<Mix>().map(|mix| mix.to_string()).unwrap(), shown);
        check("new=1", "new=1");
        check("slow=2, new=8,idle=0", "new=8,slow=2");
        assert_eq!(Mix::default().to_string(), "new=1");
        let refused = |text: &str, fault| assert_eq!(text.parse::<Mix>(), Err(fault), "{text}");
        refused("", MixFault::Form);
        refused("new", MixFault::Form);
        refused("old=1", MixFault::Form);
        refused("new=-1", MixFault::Weight);
        refused("new=1000001", MixFault::Weight);
        refused("new=1,new=1", MixFault::Twice);
        refused("new=0,idle=0", MixFault::Empty);
    }

    #[test]
    fn kinds_come_in_their_proportion_and_the_same_for_the_same_seed() {
        let mix: Mix = "new=6,known=3,garbage=1".parse().unwrap();
        let run = |seed| (0..10_000).map(|index| mix.at(seed, index)).collect::<Vec<_>>();
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let count = |kind| run(1).iter().filter(|found| **found == kind).count();
        for (kind, expected) in [(Kind::New, 6_000), (Kind::Known, 3_000), (Kind::Garbage, 1_000)] {
            assert!(count(kind).abs_diff(expected) < 250, "{kind}: {}", count(kind));
            assert_eq!(mix.expected(kind, 10_000), expected as u64);
        }
        assert_eq!(count(Kind::Slow), 0);
    }
}
