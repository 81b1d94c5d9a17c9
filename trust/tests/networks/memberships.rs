//! What a membership is worth, whatever came in whatever order.

use handfast_protocol::{
    Certificate, ExpulsionsHeld, MembershipFault, NoticeKind, PeerId, Role, UnixMillis, VerifiedMembership,
    VerifiedNotice,
};
use handfast_trust::networks::{CERTIFICATE_LIFE_MS, ISSUERS_MAX, Joined, NetKey};
use handfast_trust::{NetworkRefusal, Standing, Urgency};

use crate::support::{
    DAY, NOON, Node, authority, certificate, certified, key, name, network, notice, orders, peer, sponsor, sponsored,
};

/// One thing that a node may learn.
#[derive(Clone)]
enum Letter {
    Certificate(VerifiedMembership),
    Notice(VerifiedNotice),
}

fn learn(node: &Node, letter: &Letter) {
    match letter {
        Letter::Certificate(one) => node.learns(&[one]),
        Letter::Notice(one) => drop(node.hears(&[*one])),
    }
}

/// Certificates of member 5 by the authority and by two sponsors, notices about it and about a sponsor.
fn alphabet() -> Vec<Letter> {
    use NoticeKind::{Expel, Readmit};
    vec![
        Letter::Certificate(sponsored(5, 3, 2)),
        Letter::Certificate(sponsored(5, u64::MAX, 3)),
        Letter::Notice(notice(3, 7, Expel)),
        Letter::Notice(notice(5, 8, Expel)),
        Letter::Notice(notice(5, 9, Readmit)),
        Letter::Certificate(certified(5, 1)),
    ]
}

/// By the words of the design: the last notice about the member decides, then any certificate by an issuer that is not
/// expelled.
fn expected(letters: &[Letter]) -> bool {
    let expelled = |member: PeerId| {
        let about = letters.iter().filter_map(|letter| match letter {
            Letter::Notice(one) if one.notice().member == member => Some(one.notice()),
            _ => None,
        });
        about
            .max_by_key(|said| (said.number, said.kind == NoticeKind::Expel))
            .is_some_and(|said| said.kind == NoticeKind::Expel)
    };
    let certified = letters.iter().any(|letter| match letter {
        Letter::Certificate(one) => !one.membership().sponsor().is_some_and(expelled),
        Letter::Notice(_) => false,
    });
    certified && !expelled(peer(5))
}

/// As if nothing had been learnt.
fn forget(node: &Node) {
    let keys =
        [NetKey::Member(network(1), peer(5)), NetKey::Notice(network(1), peer(5)), NetKey::Notice(network(1), peer(3))];
    node.networks.store().write(|table| keys.iter().for_each(|key| drop(table.remove(key, Urgency::Lazy))));
    assert_eq!(node.networks.members().expulsions(&network(1)), ExpulsionsHeld::default());
    assert_eq!(node.standing(5, NOON), Standing::Unknown);
}

/// NOW, REV: after every prefix of every order the membership is worth what follows from the set alone, and the lists
/// are the same in the end.
#[test]
fn every_order_of_certificates_and_notices_ends_alike() {
    let alphabet = alphabet();
    let mut held = Vec::new();
    let node = Node::member();
    for order in orders(alphabet.len()) {
        forget(&node);
        let mut learnt = Vec::new();
        for letter in &order {
            learn(&node, &alphabet[*letter]);
            learnt.push(alphabet[*letter].clone());
            assert_eq!(node.counts(5), expected(&learnt), "after {} of {order:?}", learnt.len());
        }
        // Again, all of them: nothing moves.
        let revision = node.networks.store().revision();
        alphabet.iter().for_each(|letter| learn(&node, letter));
        assert_eq!(node.networks.store().revision(), revision, "{order:?}");
        held.push((node.networks.members().expulsions(&network(1)), node.networks.member(network(1), peer(5))));
    }
    assert_eq!(held.len(), 720);
    assert!(held.windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn an_expulsion_beats_every_certificate_until_readmission() {
    let node = Node::member();
    node.learns(&[&certified(5, 1)]);
    assert!(node.counts(5));
    node.hears(&[notice(5, 1, NoticeKind::Expel)]);
    node.learns(&[&certified(5, u64::MAX), &sponsored(5, u64::MAX, 2)]);
    assert_eq!(node.standing(5, NOON), Standing::Expelled);
    node.hears(&[notice(5, 2, NoticeKind::Readmit)]);
    assert!(node.counts(5));
    // A notice is not heard twice: an old one does not expel again.
    node.hears(&[notice(5, 1, NoticeKind::Expel)]);
    assert!(node.counts(5));
}

#[test]
fn expelling_a_sponsor_voids_what_it_issued_and_nothing_else() {
    let node = Node::member();
    node.learns(&[&sponsor(2), &sponsored(5, 1, 2), &sponsored(6, 1, 3), &certified(7, 1)]);
    let mut affected = node.hears(&[notice(2, 1, NoticeKind::Expel)]);
    affected.sort_unstable();
    let mut both = vec![peer(2), peer(5)];
    both.sort_unstable();
    assert_eq!(affected, both);
    assert_eq!(node.standing(2, NOON), Standing::Expelled);
    assert_eq!(node.standing(5, NOON), Standing::SponsorExpelled);
    assert!(node.counts(6) && node.counts(7));
    // Another sponsor lets the member in again; a later certificate of the expelled one does not.
    node.learns(&[&sponsored(5, 9, 2)]);
    assert!(!node.counts(5));
    node.learns(&[&sponsored(5, 1, 3)]);
    assert!(node.counts(5));
}

/// A sponsor that goes wrong cannot displace what others signed by a greater epoch.
#[test]
fn a_sponsors_epoch_does_not_outbid_another_issuer() {
    let node = Node::member();
    let doomed = Certificate { expires_at: NOON.plus(1), ..certificate(5, u64::MAX, Role::Member) };
    node.learns(&[&certified(5, 1), &doomed.by_sponsor(&key(2), &sponsor(2)).unwrap()]);
    assert!(node.standing(5, NOON.plus(DAY)).counts());
}

#[test]
fn a_certificate_that_was_seen_to_end_does_not_come_back_with_the_clock() {
    let mut node = Node::member();
    let short = |epoch, ms| Certificate { expires_at: NOON.plus(ms), ..certificate(5, epoch, Role::Member) };
    let first = short(1, DAY).by_authority(&authority(1)).unwrap();
    node.learns(&[&first]);
    assert_eq!(node.networks.expire(NOON.plus(DAY - 1)), []);
    assert!(node.counts(5));
    assert_eq!(node.networks.expire(NOON.plus(DAY)), [peer(5)]);
    assert_eq!(node.standing(5, NOON), Standing::Ended);
    node.learns(&[&first]);
    assert_eq!(node.standing(5, NOON), Standing::Ended);
    node = node.reopened();
    assert_eq!(node.standing(5, NOON), Standing::Ended);
    node.learns(&[&short(2, 2 * DAY).by_authority(&authority(1)).unwrap()]);
    assert!(node.counts(5));
    assert_eq!(node.networks.expire(NOON.plus(2 * DAY)), [peer(5)]);
}

#[test]
fn a_chain_ends_with_its_sponsors_certificate() {
    let node = Node::member();
    let by = Certificate { expires_at: NOON.plus(DAY), ..certificate(2, 1, Role::Sponsor) };
    let by = by.by_authority(&authority(1)).unwrap();
    node.learns(&[&certificate(5, 1, Role::Member).by_sponsor(&key(2), &by).unwrap()]);
    assert!(node.standing(5, NOON.plus(DAY - 1)).counts());
    assert_eq!(node.standing(5, NOON.plus(DAY)), Standing::Ended);
}

/// BOUND: of many issuers those are kept whose certificates are worth most.
#[test]
fn few_certificates_of_one_member_are_kept() {
    let node = Node::member();
    let issuers = 10..10 + ISSUERS_MAX as u32;
    issuers.clone().for_each(|by| node.learns(&[&sponsored(5, 1, by)]));
    node.hears(&[notice(11, 1, NoticeKind::Expel)]);
    node.learns(&[&sponsored(5, 1, 99)]);
    let kept = node.networks.member(network(1), peer(5)).unwrap();
    assert_eq!(kept.kept.len(), ISSUERS_MAX);
    assert!(kept.by(Some(peer(99))).is_some() && kept.by(Some(peer(11))).is_none(), "the worthless one went");
    assert!(node.counts(5));
}

#[test]
fn nothing_is_heard_of_networks_that_we_are_not_in() {
    let node = Node::alone();
    node.learns(&[&certified(5, 1)]);
    assert_eq!(node.hears(&[notice(5, 1, NoticeKind::Expel)]), []);
    assert_eq!(node.standing(5, NOON), Standing::NotHere);
    assert!(node.networks.store().read(|table| table.is_empty()));
}

#[test]
fn a_forged_chain_is_refused_and_what_came_before_it_is_kept() {
    let node = Node::member();
    let mut forged = certified(6, 1).membership().clone();
    forged.certificate.certificate.role = Role::Sponsor;
    let good = certified(5, 1);
    let shown = [good.membership(), &forged, good.membership()];
    assert_eq!(node.networks.learn(shown, NOON), Err(MembershipFault::BadSignature));
    assert!(node.counts(5) && !node.counts(6));
    let mut notice = *notice(5, 1, NoticeKind::Expel).signed();
    notice.notice.number = 2;
    assert_eq!(node.networks.learn_notices(&[notice]), Err(MembershipFault::BadSignature));
    assert!(node.counts(5));
}

#[test]
fn leaving_ends_every_membership_here_and_keeps_the_expulsions() {
    let node = Node::member();
    node.learns(&[&certified(5, 1)]);
    node.hears(&[notice(6, 1, NoticeKind::Expel)]);
    node.networks.leave(network(1)).unwrap();
    assert_eq!((node.standing(5, NOON), node.standing(0, NOON)), (Standing::NotHere, Standing::NotHere));
    assert_eq!(node.networks.leave(network(1)), Err(NetworkRefusal::NotHere));
    let node = node.reopened();
    node.joins(&certified(0, 2));
    node.learns(&[&certified(6, 9)]);
    assert_eq!(node.standing(6, NOON), Standing::Expelled);
    assert!(!node.counts(5), "who else is a member is learnt anew");
}

#[test]
fn the_authority_alone_expels_and_numbers_go_on_after_a_restart() {
    let node = Node::founder();
    let now = UnixMillis(NOON.0 + 1);
    let expelled = node.networks.expel(network(1), peer(5), now).unwrap();
    assert_eq!(expelled.affected, [peer(5)]);
    assert_eq!(node.networks.expel(network(1), peer(5), now), Err(NetworkRefusal::SaidAlready));
    assert_eq!(node.networks.readmit(network(1), peer(6), now), Err(NetworkRefusal::SaidAlready));
    let node = node.reopened();
    assert_eq!(node.networks.readmit(network(1), peer(5), now), Err(NetworkRefusal::NotTheAuthority));
    node.networks.hold_authority(authority(1));
    // With the clock set back: the number is past that of the expulsion all the same.
    node.networks.readmit(network(1), peer(5), UnixMillis(1)).unwrap();
    assert!(!node.networks.members().is_expelled(&network(1), &peer(5)));
    assert_eq!(Node::member().networks.expel(network(1), peer(5), now), Err(NetworkRefusal::NotTheAuthority));
}

#[test]
fn two_networks_may_call_themselves_the_same() {
    let node = Node::founder();
    let other = Certificate { network: network(2), ..certificate(0, 1, Role::Member) };
    let joined = Joined { name: name("lab"), inviter: peer(9), addresses: Vec::new() };
    node.networks.joined(&joined, &other.by_authority(&authority(2)).unwrap(), NOON).unwrap();
    assert_eq!(node.networks.by_name("lab"), Some(network(1)));
    assert_eq!(node.networks.by_name("lab-2"), Some(network(2)));
    assert_eq!(node.networks.create(authority(3), name("lab"), NOON), Err(NetworkRefusal::NameTaken));
    assert_eq!(node.networks.rename(network(2), &name("lab")), Err(NetworkRefusal::NameTaken));
    node.networks.rename(network(2), &name("home")).unwrap();
    assert_eq!(node.networks.by_name("home"), Some(network(2)));
}

#[test]
fn somebody_elses_certificate_is_no_join() {
    let node = Node::alone();
    let joined = Joined { name: name("lab"), inviter: peer(9), addresses: Vec::new() };
    assert_eq!(node.networks.joined(&joined, &certified(5, 1), NOON), Err(NetworkRefusal::WrongCertificate));
}

#[test]
fn a_half_done_join_is_known_after_a_restart() {
    let node = Node::alone();
    let joined = Joined { name: name("lab"), inviter: peer(9), addresses: Vec::new() };
    node.networks.joined(&joined, &certified(0, 1), NOON).unwrap();
    let node = node.reopened();
    let (id, record) = node.networks.members().networks().remove(0);
    assert_eq!((id, record.joining.as_ref().map(|joining| joining.inviter())), (network(1), Some(peer(9))));
    assert_eq!(node.networks.proof(network(1), peer(0), NOON).as_ref(), Some(certified(0, 1).membership()));
    node.networks.roster_is_read(network(1)).unwrap();
    assert!(node.reopened().networks.members().here(&network(1)).unwrap().joining.is_none());
}

#[test]
fn a_certificate_is_due_when_a_third_of_its_life_is_left() {
    let node = Node::member();
    let (third, end) = (CERTIFICATE_LIFE_MS / 3, NOON.plus(CERTIFICATE_LIFE_MS));
    let due = |before_end: u64| node.networks.due_for_renewal(UnixMillis(end.0 - before_end)).len();
    assert_eq!((due(third), due(third - 1), due(1), due(0)), (0, 1, 1, 0));
    // Whose authority's key is here renews itself.
    let founder = Node::founder();
    let late = UnixMillis(end.0 - 1);
    assert_eq!(founder.networks.renew_own(NOON).affected, []);
    assert_eq!(
        (founder.networks.due_for_renewal(late), founder.networks.renew_own(late).affected),
        (vec![], vec![peer(0)])
    );
    assert!(founder.standing(0, end.plus(DAY)).counts());
}
