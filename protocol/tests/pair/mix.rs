//! Everything at once, drawn from a seed: exchanges in both directions, old offers, decisions, crashes, hung disks,
//! deadlines, cuts and repeated frames, with pieces of any size.

use handfast_protocol::Kind;

use super::{A, Act, Cut, End, Pair, Role, Step};

/// splitmix64 (Steele, Lea, Flood 2014): one seed, one case.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())]) }
    }
}

/// Conversations that may be under way at once.
const CONVERSATIONS_MAX: usize = 6;
const ACTIONS: usize = 150;

/// What one mix has seen, so that a whole run can show that nothing was left out.
#[derive(Default, Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) granted: usize,
    pub(crate) busy: usize,
    pub(crate) crashes: usize,
    pub(crate) at_once_max: usize,
}

/// One case: chaos, then peace, then agreement.
pub(crate) fn mix(seed: u64) -> Seen {
    let mut dice = Dice::new(seed);
    let mut pair = Pair::new(format!("seed {seed}"), [End::new(1, 2), End::new(2, 1)]);
    let mut seen = Seen::default();
    for _ in 0..ACTIONS {
        if dice.below(4) == 0 {
            disturb(&mut pair, &mut dice, &mut seen);
        } else {
            advance(&mut pair, &mut dice);
        }
        let at_once = pair.conversations.iter().filter(|conversation| !conversation.is_over()).count();
        seen.at_once_max = seen.at_once_max.max(at_once);
    }
    pair.settle();
    pair.check_converged();
    Seen { granted: pair.granted, busy: pair.busy, ..seen }
}

/// Any one of the things that can happen next, bytes in pieces of any size.
fn advance(pair: &mut Pair, dice: &mut Dice) {
    match dice.pick(&pair.steps()) {
        Some(Step::Act { conversation, role, act: Act::Read(_) }) => {
            let most = if dice.below(2) == 0 { usize::MAX } else { 1 + dice.below(300) };
            pair.perform(Step::Act { conversation, role, act: Act::Read(most) });
        }
        Some(step) => pair.perform(step),
        None => {}
    }
}

fn disturb(pair: &mut Pair, dice: &mut Dice, seen: &mut Seen) {
    let side = dice.below(2);
    let open: Vec<usize> =
        (0..pair.conversations.len()).filter(|conversation| !pair.conversations[*conversation].is_over()).collect();
    match dice.below(20) {
        0..5 if open.len() < CONVERSATIONS_MAX => drop(pair.open(side)),
        5 if open.len() < CONVERSATIONS_MAX && !pair.offers.is_empty() => {
            let (opener, offer) = pair.offers[dice.below(pair.offers.len())].clone();
            pair.open_with(opener, offer);
        }
        6..9 => pair.issue(side, Kind::Grant),
        9 => pair.issue(side, Kind::Revoke),
        10..12 => pair.ends[side].disk_hangs = !pair.ends[side].disk_hangs,
        12 => {
            pair.crash(side);
            seen.crashes += 1;
        }
        13..15 => dice.pick(&pair.deadlines()).into_iter().for_each(|step| pair.perform(step)),
        other => {
            let Some(conversation) = dice.pick(&open) else { return };
            let conversation = &mut pair.conversations[conversation];
            let role = if side == A { Role::Opener } else { Role::Responder };
            match other {
                15 => conversation.cut_after(role, dice.below(400), Cut::OneWay),
                16 => conversation.cut_after(role, dice.below(400), Cut::BothWays),
                17 => conversation.lose(),
                18 => conversation.repeat_last_frame(),
                _ => {}
            }
        }
    }
}
