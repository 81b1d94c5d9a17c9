use super::lanes::{INVITATION, INVITED_TO_FULL, USED_FOR};
use super::sources::BURST_S;
use super::*;

const RATES: Rates = Rates { per_address: 10, per_prefix: 40 };
const SECOND: Duration = Duration::from_secs(1);

fn admission(rates: Rates) -> Arc<Admission> {
    Arc::new(Admission::new(rates))
}

fn from(text: &str, is_validated: bool) -> Arrival {
    Arrival { remote: SocketAddr::new(text.parse().unwrap(), 4433), is_validated }
}

fn friend() -> PeerId {
    PeerId::from_stored([7; 32])
}

fn judge(admission: &Arc<Admission>, arrival: Arrival, now: Duration) -> Verdict {
    admission.judge(arrival, now, |peer| *peer == friend())
}

/// Takes what seats are free.
fn seated(admission: &Arc<Admission>, arrival: Arrival, now: Duration) -> Vec<Seat> {
    let seat = |_| match judge(admission, arrival, now) {
        Verdict::Wait(seat) => Some(seat),
        _ => None,
    };
    (0..=SEATS_MAX).filter_map(seat).collect()
}

fn accepted(admission: &Arc<Admission>, arrival: Arrival, now: Duration, tries: u32) -> Vec<Slot> {
    let slot = |_| match judge(admission, arrival, now) {
        Verdict::Accept(slot) => Some(slot),
        _ => None,
    };
    (0..tries).filter_map(slot).collect()
}

#[test]
fn an_address_gets_its_rate_and_then_must_prove_itself_and_then_is_refused() {
    let admission = admission(RATES);
    let slots = accepted(&admission, from("192.0.2.1", false), SECOND, 100);
    assert_eq!(slots.len(), 20, "two seconds of ten");
    assert!(matches!(judge(&admission, from("192.0.2.1", false), SECOND), Verdict::Retry));
    assert!(matches!(judge(&admission, from("192.0.2.1", true), SECOND), Verdict::Refuse));
    drop(slots);
    assert_eq!(accepted(&admission, from("192.0.2.1", false), 2 * SECOND, 100).len(), 10);
}

#[test]
fn a_prefix_bounds_its_addresses_together() {
    let admission = admission(Rates { per_address: 10, per_prefix: 20 });
    let mut all = 0;
    for host in 1..=50 {
        all += accepted(&admission, from(&format!("192.0.2.{host}"), true), SECOND, 10).len();
    }
    assert_eq!(all, 40, "two seconds of twenty");
    assert!(matches!(judge(&admission, from("198.51.100.1", true), SECOND), Verdict::Accept(_)));
}

#[test]
fn the_addresses_of_an_ipv6_64_are_one_source() {
    let admission = admission(RATES);
    let mut all = 0;
    for host in 1..=100 {
        all += accepted(&admission, from(&format!("2001:db8:1:2::{host:x}"), true), SECOND, 1).len();
    }
    assert_eq!(all, 20);
}

#[test]
fn a_crowd_must_prove_its_addresses() {
    let admission = admission(Rates { per_address: 1_000, per_prefix: 1_000 });
    let slots = accepted(&admission, from("192.0.2.1", false), SECOND, 1_000);
    assert_eq!(slots.len() as u32, UNPROVEN_MAX);
    assert!(matches!(judge(&admission, from("192.0.2.2", false), SECOND), Verdict::Retry));
    assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND), Verdict::Accept(_)));
    let mut slots = slots;
    slots[0].authenticated();
    assert!(matches!(judge(&admission, from("192.0.2.2", false), SECOND), Verdict::Accept(_)), "a key is enough");
}

#[test]
fn strangers_cannot_take_the_friends_permits_nor_friends_the_strangers() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    let strangers = accepted(&admission, from("192.0.2.1", true), SECOND, 2_000);
    assert_eq!(strangers.len() as u32, STRANGERS_MAX);
    let seats = seated(&admission, from("192.0.2.1", true), SECOND);
    assert!(matches!(judge(&admission, from("192.0.2.1", true), SECOND), Verdict::Refuse));
    assert!(matches!(judge(&admission, from("192.0.2.1", false), SECOND), Verdict::Refuse), "Retry would be vain");
    assert!(matches!(judge(&admission, from("203.0.113.9", false), SECOND), Verdict::Retry), "perhaps a friend");
    let friends = accepted(&admission, from("203.0.113.9", true), SECOND, 2_000);
    assert_eq!(friends.len() as u32, FRIENDS_PER_ADDRESS_MAX, "the rest of one address are strangers");
    assert!(matches!(judge(&admission, from("203.0.113.9", false), SECOND), Verdict::Refuse), "vain for it, too");
    drop((strangers, seats));
    assert!(matches!(judge(&admission, from("192.0.2.1", true), SECOND), Verdict::Accept(_)));
}

#[test]
fn a_spoofed_friends_address_takes_no_friends_permit() {
    let admission = admission(Rates { per_address: 5, per_prefix: 5 });
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    let spoofed = accepted(&admission, from("203.0.113.9", false), SECOND, 1_000);
    assert_eq!(spoofed.len(), 10, "as strangers: two seconds of five");
    assert_eq!(admission.in_use().friends, 0);
    assert_eq!(accepted(&admission, from("203.0.113.9", true), SECOND, 10).len(), 10, "friends still come in");
}

#[test]
fn a_friend_proves_its_address_where_others_prove_nothing_and_not_for_friends_beside_it() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    let friends = accepted(&admission, from("203.0.113.9", false), SECOND, 20);
    assert_eq!(friends.len(), 20);
    let mut strangers = accepted(&admission, from("192.0.2.1", false), SECOND, FRIENDS_UNPROVEN_MAX);
    assert!(matches!(judge(&admission, from("203.0.113.9", false), SECOND), Verdict::Retry));
    assert!(matches!(judge(&admission, from("192.0.2.1", false), SECOND), Verdict::Accept(_)));
    strangers[0].authenticated();
    assert!(matches!(judge(&admission, from("203.0.113.9", false), SECOND), Verdict::Accept(_)));
    drop((friends, strangers));
    let state = admission.state();
    assert_eq!((state.unproven, state.unproven_strangers), (0, 0));
}

#[test]
fn strangers_stand_back_only_in_a_crowd_and_while_friends_come() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    let strangers = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
    let (few, many) = strangers.split_at(STRANGERS_MAX as usize / 2 + 1);
    assert!(!few.iter().any(Slot::stands_back) && many.iter().all(Slot::stands_back));
    let friends = accepted(&admission, from("203.0.113.9", true), SECOND, 1);
    assert!(!friends[0].stands_back(), "never a friend");
    drop(strangers);
    let stands_back = |ip, now| accepted(&admission, from(ip, false), now, 1)[0].stands_back();
    assert!(stands_back("192.0.2.1", SECOND) && !stands_back("203.0.113.9", SECOND), "perhaps a friend");
    assert!(!stands_back("192.0.2.1", SECOND + USED_FOR));
}

#[test]
fn a_friend_is_one_only_while_trusted_and_for_thirty_days() {
    let admission = admission(Rates { per_address: 1, per_prefix: 1 });
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    let arrival = from("203.0.113.9", true);
    let slots: Vec<_> = (0..10).map(|_| admission.judge(arrival, SECOND, |_| false)).collect();
    assert_eq!(slots.iter().filter(|v| matches!(v, Verdict::Accept(_))).count(), 2, "revoked: a stranger");
    let later = FRIEND_FOR + 2 * SECOND;
    assert_eq!(accepted(&admission, arrival, later, 10).len(), 2, "a month later: a stranger");
}

fn peer(number: u32) -> PeerId {
    let mut bytes = [1; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PeerId::from_stored(bytes)
}

fn address(number: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + number).to_be_bytes())
}

fn is_friend(admission: &Arc<Admission>, ip: IpAddr, now: Duration) -> bool {
    admission.state().is_friend(ip, now, |_| true)
}

#[test]
fn a_peer_that_moves_about_displaces_its_own_addresses_only() {
    let admission = admission(RATES);
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    let places = u32::try_from(PLACES_PER_PEER_MAX).unwrap();
    (0..100_000).for_each(|n| admission.befriend(peer(1), address(n), SECOND * (2 + n)));
    let expected = |n| is_friend(&admission, address(n), 100_000 * SECOND);
    assert!((100_000 - places..100_000).all(expected) && !(0..100_000 - places).any(expected), "the last ones");
    assert!(is_friend(&admission, "203.0.113.9".parse().unwrap(), 100_000 * SECOND));
    assert_eq!(admission.state().expected.len(), PLACES_PER_PEER_MAX + 1);
}

#[test]
fn a_friend_finds_its_place_in_a_full_table_and_the_one_that_ends_first_goes() {
    let admission = admission(RATES);
    let all = u32::try_from(FRIEND_PLACES_MAX).unwrap();
    (0..all).for_each(|n| admission.befriend(peer(n), address(n), SECOND * (n + 1)));
    // Seen again, the first one ends last.
    let now = SECOND * (all + 1);
    admission.befriend(peer(0), address(0), now);
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), now);
    assert!(is_friend(&admission, "203.0.113.9".parse().unwrap(), now));
    assert_eq!([0, 1, 2].map(|n| is_friend(&admission, address(n), now)), [true, false, true]);
    assert_eq!(admission.state().expected.len(), FRIEND_PLACES_MAX);
}

#[test]
fn the_friends_at_one_address_are_bounded_and_the_latest_stay() {
    let admission = admission(RATES);
    let ip = address(1);
    (0..100).for_each(|n| admission.befriend(peer(n), ip, SECOND * (n + 1)));
    let state = admission.state();
    let stays = |n: u32| state.is_friend(ip, 100 * SECOND, |known| *known == peer(n));
    assert_eq!((0..100).filter(|n| stays(*n)).collect::<Vec<_>>(), (84..100).collect::<Vec<_>>());
}

#[test]
fn an_ipv6_64_is_one_place_for_friends_and_their_permits() {
    let admission = admission(Rates { per_address: 1, per_prefix: 1 });
    admission.befriend(friend(), "2001:db8:1:2::1".parse().unwrap(), SECOND);
    let mut friends = Vec::new();
    for host in 2..=100 {
        friends.extend(accepted(&admission, from(&format!("2001:db8:1:2::{host:x}"), true), SECOND, 1));
    }
    assert_eq!(admission.in_use().friends, FRIENDS_PER_ADDRESS_MAX);
    assert!(!is_friend(&admission, "2001:db8:1:3::1".parse().unwrap(), SECOND));
}

#[test]
fn every_reservation_comes_back_once() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    let mut slots = accepted(&admission, from("192.0.2.1", true), SECOND, 50);
    slots.extend(accepted(&admission, from("192.0.2.1", false), SECOND, 10));
    slots.extend(accepted(&admission, from("203.0.113.9", true), SECOND, 100));
    let (friends, strangers) = (FRIENDS_PER_ADDRESS_MAX, 160 - FRIENDS_PER_ADDRESS_MAX);
    assert_eq!(admission.in_use(), InUse { half_open: 160, friends, strangers, friend_addresses: 1, seated: 0 });
    slots.iter_mut().step_by(2).for_each(Slot::authenticated);
    slots.iter_mut().step_by(2).for_each(Slot::authenticated);
    assert_eq!(admission.in_use(), InUse { half_open: 80, friends, strangers, friend_addresses: 1, seated: 0 });
    slots.clear();
    assert_eq!(admission.in_use(), InUse::default());
    assert_eq!(admission.state().unproven, 0);
}

#[test]
fn who_sits_on_a_permit_makes_way_for_one_who_has_proven_an_address() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let sitting = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
    let soon = SECOND + FULL_PATIENCE - Duration::from_millis(1);
    assert!(matches!(judge(&admission, from("192.0.2.2", true), soon), Verdict::Wait(_)), "it has its time");
    let later = SECOND + FULL_PATIENCE;
    assert!(matches!(judge(&admission, from("192.0.2.2", false), later), Verdict::Retry), "not for a spoofed one");
    let next = accepted(&admission, from("192.0.2.2", true), later, 3);
    assert_eq!((next.len(), admission.in_use().strangers), (3, STRANGERS_MAX));
    let told = |slot: &Slot| tokio_told(&slot.gives_way());
    assert!(sitting[..3].iter().all(told), "the oldest");
    assert!(!sitting[3..].iter().any(told));
    assert_eq!(admission.counts().evicted, 3);
    drop(sitting);
    assert_eq!(admission.in_use().strangers, 3, "a permit that was given up is not given back again");
    drop(next);
    assert_eq!(admission.in_use(), InUse::default());
}

#[test]
fn where_all_take_long_nobody_makes_way_early() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let mut slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
    let took = FULL_PATIENCE;
    let (first, second) = (STRANGERS_MAX as usize / 2, STRANGERS_MAX as usize);
    slots[..first].iter_mut().for_each(|slot| slot.answered(SECOND + took));
    // Who stays for one exchange after the other counts once.
    (0..100).for_each(|_| slots[0].answered(100 * SECOND));
    assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND + 3 * took), Verdict::Wait(_)));
    assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND + 4 * took), Verdict::Accept(_)));
    slots[first..second].iter_mut().for_each(|slot| slot.answered(100 * SECOND));
    let at_most = SECOND + FULL_PATIENCE_MAX;
    assert!(matches!(judge(&admission, from("192.0.2.2", true), at_most), Verdict::Accept(_)), "nor ever");
}

/// Of so many first packets, those that were left out; the others are judged, and end at once.
fn overlooked(admission: &Arc<Admission>, ip: &str, now: Duration, packets: u64) -> u64 {
    let is_left_out = |_: &u64| {
        let is_left_out = admission.overlooks(ip.parse().unwrap(), now);
        drop((!is_left_out).then(|| judge(admission, from(ip, false), now)));
        is_left_out
    };
    (0..packets).filter(is_left_out).count() as u64
}

#[test]
fn where_there_is_no_room_so_many_are_told_and_the_rest_is_left_out() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    assert_eq!(overlooked(&admission, "192.0.2.1", SECOND, 10_000), 0, "there is room");
    let slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
    let seats = seated(&admission, from("192.0.2.1", true), SECOND);
    assert_eq!(overlooked(&admission, "192.0.2.1", SECOND, 10_000), 10_000 - REFUSALS_PER_S);
    assert_eq!(overlooked(&admission, "203.0.113.9", SECOND, 10_000), 0, "perhaps a friend");
    assert_eq!(admission.counts().overlooked, 10_000 - REFUSALS_PER_S);
    let later = SECOND + FULL_PATIENCE;
    assert_eq!(overlooked(&admission, "192.0.2.1", later, 10_000), 10_000 - REFUSALS_PER_S / 2, "others are first");
    drop(seats);
    let asked = 10_000 - overlooked(&admission, "192.0.2.1", later, 10_000);
    let room = INVITED_TO_FULL as u64 + u64::from(SEATS_MAX);
    assert_eq!(asked, room, "the oldest would make way for one with a proof, and others may wait");
    drop(slots);
    assert_eq!(overlooked(&admission, "192.0.2.1", later + SECOND, 10_000), 0, "there is room again");
}

#[test]
fn a_friend_is_a_stranger_where_the_friends_lane_is_full_and_not_left_out() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let places = FRIENDS_MAX / FRIENDS_PER_ADDRESS_MAX;
    let place = |n: u32| format!("203.0.113.{n}");
    (0..places).for_each(|n| admission.befriend(friend(), place(n).parse().unwrap(), SECOND));
    let mut slots = accepted(&admission, from("192.0.2.1", false), SECOND, UNPROVEN_MAX);
    (1..places)
        .for_each(|n| slots.extend(accepted(&admission, from(&place(n), true), SECOND, FRIENDS_PER_ADDRESS_MAX)));
    slots.extend(accepted(&admission, from(&place(0), true), SECOND, FRIENDS_PER_ADDRESS_MAX - 1));
    assert_eq!(admission.in_use().friends, FRIENDS_MAX - 1);
    assert_eq!(overlooked(&admission, &place(0), SECOND, 100), 0, "strangers have room");
    drop(slots);
}

#[test]
fn who_has_proven_an_address_and_finds_no_permit_waits_and_is_first() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let mut slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
    let seat = |ip| match judge(&admission, from(ip, true), SECOND) {
        Verdict::Wait(seat) => seat,
        verdict => panic!("{verdict:?}"),
    };
    let first = seat("192.0.2.2");
    let Turn::Wait(first) = admission.turn(first, SECOND) else { panic!("no permit has come back") };
    assert!(matches!(judge(&admission, from("192.0.2.3", false), SECOND), Verdict::Retry), "it may wait, too");
    drop(slots.pop());
    let second = seat("192.0.2.3");
    assert!(matches!(judge(&admission, from("192.0.2.4", false), SECOND), Verdict::Retry), "nobody comes before them");
    assert_eq!(admission.in_use().seated, 2);
    let Turn::Begin(slot) = admission.turn(first, SECOND) else { panic!("a permit has come back") };
    let Turn::Wait(second) = admission.turn(second, SECOND) else { panic!("it was the first one's") };
    assert_eq!((admission.in_use().strangers, admission.in_use().seated), (STRANGERS_MAX, 1));
    drop((slot, second));
    slots.clear();
    assert_eq!(admission.in_use(), InUse::default());
}

#[test]
fn nobody_waits_for_long_and_only_so_many_wait() {
    let rates = Rates { per_address: u64::from(STRANGERS_MAX) / 2 + 50, per_prefix: 1_000_000 };
    let admission = admission(rates);
    let slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
    let wait = |ip: &str, tries: u32| -> Vec<Seat> {
        let seat = |_| match judge(&admission, from(ip, true), SECOND) {
            Verdict::Wait(seat) => Some(seat),
            _ => None,
        };
        (0..tries).filter_map(seat).collect()
    };
    let mut seats = wait("192.0.2.1", 1_000);
    assert_eq!(seats.len(), 100, "a source has to pay for its seats");
    (2..9).for_each(|n| seats.extend(wait(&format!("192.0.2.{n}"), 1_000)));
    assert_eq!(seats.len() as u32, SEATS_MAX);
    assert!(matches!(judge(&admission, from("192.0.2.99", true), SECOND), Verdict::Refuse));
    // Friends have their own permits.
    admission.befriend(friend(), "203.0.113.9".parse().unwrap(), SECOND);
    assert!(matches!(judge(&admission, from("203.0.113.9", true), SECOND), Verdict::Accept(_)));
    let refused = admission.counts().refused;
    slots.iter().for_each(|slot| (0..100).for_each(|_| slot.begins(SECOND + FULL_PATIENCE_MAX)));
    let last = seats.pop().unwrap();
    let late = SECOND + SEAT_PATIENCE;
    let Turn::Wait(last) = admission.turn(last, late - Duration::from_millis(1)) else { panic!("it has time") };
    assert!(matches!(admission.turn(last, late), Turn::Refuse));
    assert_eq!((admission.counts().refused - refused, admission.in_use().seated), (1, SEATS_MAX - 1));
}

#[tokio::test(start_paused = true)]
async fn who_waits_hears_of_a_permit_that_comes_back_and_of_the_end_of_its_time() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let mut slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
    let Verdict::Wait(seat) = judge(&admission, from("192.0.2.2", true), SECOND) else { panic!("no seat") };
    let begun = tokio::time::Instant::now();
    drop(slots.pop());
    admission.freed(&seat, SECOND).await;
    assert_eq!(begun.elapsed(), Duration::ZERO, "also where it came back before somebody asked");
    let Turn::Begin(_) = admission.turn(seat, SECOND) else { panic!("a permit has come back") };
    slots.extend(accepted(&admission, from("192.0.2.1", true), SECOND, 1));
    let Verdict::Wait(seat) = judge(&admission, from("192.0.2.2", true), SECOND) else { panic!("no seat") };
    let begun = tokio::time::Instant::now();
    admission.freed(&seat, SECOND).await;
    assert_eq!(begun.elapsed(), FULL_PATIENCE, "the oldest has had its time");
    slots.iter().for_each(|slot| (0..100).for_each(|_| slot.begins(SECOND + FULL_PATIENCE_MAX)));
    let begun = tokio::time::Instant::now();
    admission.freed(&seat, SECOND).await;
    assert_eq!(begun.elapsed(), SEAT_PATIENCE, "its own time is up");
}

#[test]
fn a_crowd_that_proves_nothing_is_asked_so_many_times_for_its_proof() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let slots = accepted(&admission, from("192.0.2.1", false), SECOND, UNPROVEN_MAX);
    assert_eq!(overlooked(&admission, "192.0.2.2", SECOND, 10_000), 10_000 - RETRIES_PER_S);
    let later = 100 * SECOND;
    assert_eq!(overlooked(&admission, "192.0.2.2", later, 10_000), 10_000 - RETRIES_PER_S * BURST_S as u64);
    drop(slots);
    assert_eq!(overlooked(&admission, "192.0.2.2", 2 * later, 10_000), 0);
}

#[test]
fn of_many_that_come_together_no_more_are_looked_at_than_there_are_permits() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX - 10);
    let looked_at = |now| (0..1_000).filter(|_| !admission.overlooks("192.0.2.2".parse().unwrap(), now)).count() as u32;
    assert_eq!(looked_at(SECOND), 10 + SEATS_MAX, "before the first of them was judged");
    drop(slots);
}

#[test]
fn who_is_begun_does_not_make_way_while_all_wait_for_a_thread() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let slots = accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX);
    (0..100).for_each(|_| slots[0].begins(SECOND + WAIT_MAX));
    let patience = WAIT_MAX * (WAITS - 1);
    assert!(matches!(judge(&admission, from("192.0.2.2", true), SECOND + patience), Verdict::Wait(_)));
    let most = SECOND + WAIT_MAX * WAITS;
    assert!(matches!(judge(&admission, from("192.0.2.2", true), most), Verdict::Accept(_)));
}

#[test]
fn a_lane_shrinks_while_its_work_waits_for_a_thread_and_grows_again() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let first = accepted(&admission, from("192.0.2.1", true), SECOND, 1).remove(0);
    let permits = || accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX).len() as u32 + 1;
    (0..1_000).for_each(|_| first.begins(SECOND + BUSY_WAIT));
    assert_eq!(permits(), STRANGERS_MAX, "it did not wait long");
    (0..1_000).for_each(|_| first.begins(SECOND + WAIT_MAX));
    assert_eq!(permits(), BUSY_MAX, "there is always work");
    (0..60).for_each(|_| first.begins(SECOND + 2 * WAIT_MAX));
    let fewer = permits();
    assert!(fewer < BUSY_MAX && fewer > PERMITS_MIN, "{fewer}");
    (0..10_000).for_each(|_| first.begins(SECOND + 2 * WAIT_MAX));
    assert_eq!(permits(), PERMITS_MIN, "some are always there");
    assert_eq!(admission.state().friends.given(), FRIENDS_MAX, "friends have their own");
    (0..10_000).for_each(|_| first.begins(SECOND));
    assert_eq!(permits(), STRANGERS_MAX);
}

#[test]
fn no_more_are_asked_for_a_proof_than_there_are_permits() {
    let admission = admission(Rates { per_address: 1_000_000, per_prefix: 1_000_000 });
    let before = SECOND * 3 / 5;
    let mut slots = accepted(&admission, from("192.0.2.1", false), before, UNPROVEN_MAX);
    assert_eq!(overlooked(&admission, "192.0.2.2", before, 1_000), 0, "while many permits are free");
    let free = 20 + u64::from(SEATS_MAX);
    slots.extend(accepted(&admission, from("192.0.2.1", true), SECOND, STRANGERS_MAX - UNPROVEN_MAX - 20));
    let asked = |now| 1_000 - overlooked(&admission, "192.0.2.2", now, 1_000);
    assert_eq!(asked(SECOND), free);
    let soon = SECOND + INVITATION / 20;
    let gone = free as f64 * (1.0 - (-0.05_f64).exp());
    assert_eq!(asked(soon), gone.ceil() as u64, "some are not expected any more");
    let came = accepted(&admission, from("192.0.2.2", true), soon, 10);
    assert_eq!(came.len(), 10);
    assert_eq!(asked(soon), 0, "who came has a permit");
    drop((slots, came));
}

/// Whether a notification is there.
fn tokio_told(gives_way: &Notify) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::pin!(gives_way.notified()).poll(&mut context).is_ready()
}

#[test]
fn what_is_remembered_is_bounded() {
    let admission = admission(RATES);
    for i in 0..200_000u32 {
        let remote = SocketAddr::new(IpAddr::from(i.to_be_bytes()), 1);
        drop(judge(&admission, Arrival { remote, is_validated: true }, SECOND));
    }
    assert!(admission.state().sources.remembered() <= BUCKETS_MAX);
}
