//! What networks' rules grant, and what ends it.

use handfast_protocol::{Certificate, Kind, NoticeKind, Role, UnixMillis};
use handfast_trust::networks::Joined;
use handfast_trust::rules::{Grant, Refusal, Showing};
use handfast_trust::{Actor, Cause, Denied, Direction, Policy, Purpose, Rule, TrustState};

use crate::support::{
    DAY, HOUR, MINUTE, NOON, Node, authority, certificate, certified, name, network, notice, open_policy, orders, peer,
    sponsored,
};

fn lab() -> Rule {
    Rule::Network(network(1))
}

/// A node that trusts members 5 (by the authority) and 6 (by sponsor 2), durably.
fn with_two_members() -> Node {
    let mut node = Node::member();
    node.learns(&[&certified(5, 1), &sponsored(6, 1, 2)]);
    for member in [5, 6] {
        assert_eq!(node.is_granted(member, NOON), TrustState::Trusted);
    }
    node.drain();
    node.events();
    node
}

#[test]
fn the_rule_grants_to_members_and_to_nobody_else() {
    let node = with_two_members();
    assert!(node.lets_in(5, NOON) && node.lets_in(6, NOON));
    let record = node.book.record(&peer(6)).unwrap();
    assert_eq!((record.rule, record.ours.as_ref().unwrap().terms.network), (Some(lab()), Some(network(1))));
    assert_eq!(record.sponsor.as_deref(), Some(&peer(2)));
    assert_eq!(record.history.last().unwrap().actor, Actor::Rule(lab()));
    // A stranger that names the network is a stranger.
    assert_eq!(node.is_granted(7, NOON), TrustState::Pending);
    node.networks.set_rule(network(1), false).unwrap();
    node.learns(&[&certified(8, 1)]);
    assert_eq!(node.is_granted(8, NOON), TrustState::Pending);
}

/// A grant by the rule of a network that we are not in does not even make us keep a record.
#[test]
fn a_foreign_networks_grant_is_not_kept() {
    let node = Node::member();
    assert_eq!(node.is_told(5, Kind::Grant, 1, Some(network(2)), NOON), TrustState::Unknown);
    assert!(node.book.record(&peer(5)).is_none());
}

/// NOW: from the release of the networks' lock on, before anybody has looked at a trust record.
#[test]
fn an_expulsion_cuts_at_once() {
    let node = with_two_members();
    let revision = node.book.store().revision();
    let affected = node.hears(&[notice(2, 1, NoticeKind::Expel), notice(5, 2, NoticeKind::Expel)]);
    assert_eq!(node.book.store().revision(), revision, "no trust record has changed");
    let ask = |of| node.book.authorise(&peer(of), Purpose::Session, Direction::Inbound, NOON);
    for member in [5, 6] {
        assert_eq!(ask(member), Err(Denied::NotAMember));
        assert_eq!(node.state(member, NOON), TrustState::Pending);
    }
    // The refusal has written it down; `reconcile` finds nothing left to say.
    assert_eq!(node.events(), [(Cause::Expelled, TrustState::Pending), (Cause::Expelled, TrustState::Pending)]);
    node.book.reconcile(&affected, NOON);
    assert_eq!((node.events(), node.book.store().index().trusted()), (vec![], 0));
}

#[test]
fn reconciling_writes_history_once_and_names_the_fallen() {
    let node = with_two_members();
    let affected = node.hears(&[notice(5, 1, NoticeKind::Expel)]);
    assert_eq!(node.book.reconcile(&affected, NOON).fallen, [peer(5)]);
    let last = *node.book.record(&peer(5)).unwrap().history.last().unwrap();
    assert_eq!((last.cause, last.actor), (Cause::Expelled, Actor::Network(network(1))));
    assert_eq!((last.from, last.to), (TrustState::Trusted, TrustState::Pending));
    assert_eq!(node.book.store().index().trusted(), 1);
    assert_eq!(node.book.reconcile(&affected, NOON).fallen, []);
    let affected = node.hears(&[notice(5, 2, NoticeKind::Readmit)]);
    assert_eq!(node.book.reconcile(&affected, NOON).fallen, []);
    assert!(node.lets_in(5, NOON));
    let expected = [(Cause::Expelled, TrustState::Pending), (Cause::MembershipRegained, TrustState::Trusted)];
    assert_eq!((node.events().as_slice(), node.book.store().index().trusted()), (expected.as_slice(), 2));
}

#[test]
fn our_own_expulsion_ends_what_the_others_granted() {
    let node = with_two_members();
    let affected = node.hears(&[notice(0, 1, NoticeKind::Expel)]);
    let mut fallen = node.book.reconcile(&affected, NOON).fallen;
    fallen.retain(|one| *one == peer(5) || *one == peer(6));
    assert_eq!(fallen.len(), 2);
    assert_eq!((node.state(5, NOON), node.lets_in(5, NOON)), (TrustState::Requested, false));
    // And the rule does not grant any more.
    node.learns(&[&certified(7, 1)]);
    assert_eq!(node.is_granted(7, NOON), TrustState::Unknown);
    assert!(matches!(node.book.enlist(peer(7), network(1), NOON), Err(Refusal::NotNamed)));
}

/// A trust that an operator granted is not touched.
#[test]
fn an_operators_grant_does_not_depend_on_membership() {
    let mut node = Node::member();
    node.learns(&[&certified(5, 1), &certified(6, 1)]);
    node.book.trust(peer(5), &Grant::default(), NOON).unwrap();
    node.is_told(5, Kind::Grant, 1, None, NOON);
    // Made by the rule first, then by the operator.
    node.is_told(6, Kind::Grant, 1, None, NOON);
    node.book.trust(peer(6), &Grant::default(), NOON).unwrap();
    node.drain();
    let affected = node.hears(&[notice(5, 1, NoticeKind::Expel), notice(6, 2, NoticeKind::Expel)]);
    assert_eq!(node.book.reconcile(&affected, NOON).fallen, []);
    assert!(node.lets_in(5, NOON) && node.lets_in(6, NOON));
    assert_eq!((node.rule_of(5), node.rule_of(6)), (None, None));
    // One whose own grant is the network's is not trusted all the same once we are out of it.
    node.is_told(6, Kind::Grant, 2, Some(network(1)), NOON);
    node.networks.leave(network(1)).unwrap();
    assert!(node.lets_in(5, NOON) && !node.lets_in(6, NOON));
}

/// REV: neither a membership nor a rule lifts what an operator revoked, nor what a peer did.
#[test]
fn no_membership_lifts_a_revoke() {
    let node = with_two_members();
    node.book.revoke(peer(5), &Default::default(), Cause::Revoked, NOON).unwrap();
    node.is_told(6, Kind::Revoke, 2, None, NOON);
    node.learns(&[&certified(5, 9), &certified(6, 9)]);
    for member in [5, 6] {
        let outcome = node.book.enlist(peer(member), network(1), NOON).unwrap();
        assert!(outcome.transition.is_none(), "{outcome:?}");
    }
    assert_eq!(node.is_told(5, Kind::Grant, 9, Some(network(1)), NOON), TrustState::Revoked);
    assert_eq!(node.state(6, NOON), TrustState::Refused);
    let affected = node.hears(&[notice(5, 1, NoticeKind::Expel), notice(5, 2, NoticeKind::Readmit)]);
    node.book.reconcile(&affected, NOON);
    assert_eq!(node.state(5, NOON), TrustState::Revoked);
    // Nor does undoing touch them.
    assert!(node.book.undo(&lab(), UnixMillis(0), false, NOON).iter().all(|(who, _)| *who != peer(5)));
}

#[test]
fn an_end_of_membership_cuts_and_stays_ended() {
    let mut node = Node::member();
    let short = Certificate { expires_at: NOON.plus(HOUR), ..certificate(5, 1, Role::Member) };
    node.learns(&[&short.by_authority(&authority(1)).unwrap()]);
    node.is_granted(5, NOON);
    node.drain();
    let last = NOON.plus(HOUR - 1);
    assert!(node.lets_in(5, last) && node.book.expire(last).is_empty());
    assert!(!node.lets_in(5, NOON.plus(HOUR)));
    // What refused has recorded it: the clock goes back and the peer stays out, also after a restart.
    assert!(!node.lets_in(5, NOON));
    assert_eq!(node.book.expire(NOON), [peer(5)]);
    let node = node.reopened();
    assert!(!node.lets_in(5, NOON));
    assert_eq!(node.state(5, NOON), TrustState::Pending);
    node.learns(&[&certified(5, 2)]);
    node.book.reconcile(&[peer(5)], NOON);
    assert_eq!(node.state(5, NOON), TrustState::Trusted);
}

#[test]
fn time_alone_brings_the_event() {
    let mut node = with_two_members();
    let end = certified(5, 1).membership().ends_at();
    node.drain();
    let mut fallen = node.book.expire(end);
    fallen.sort_unstable();
    // Our own certificate ends at the same time.
    assert!(fallen.contains(&peer(5)) && fallen.contains(&peer(6)));
    assert!(node.events().iter().all(|(cause, _)| *cause == Cause::MembershipEnded));
    assert_eq!(node.book.expire(end), []);
}

/// Whatever comes first, the grant, the certificates, the expulsion: in the end the same, and never in between is
/// somebody let in without a membership.
#[test]
fn every_order_of_grants_certificates_and_expulsions_ends_alike() {
    for (number, order) in orders(6).into_iter().enumerate() {
        let mut node = Node::member();
        let (mut certified_yet, mut expelled_yet) = (false, false);
        for step in &order {
            match step {
                0 => drop(node.is_granted(5, NOON)),
                1 => node.learns(&[&certified(5, 1)]),
                2 => node.learns(&[&sponsored(5, 7, 2)]),
                3 => drop(node.hears(&[notice(5, 4, NoticeKind::Expel)])),
                4 => drop(node.hears(&[notice(2, 3, NoticeKind::Expel)])),
                _ => drop(node.book.enlist(peer(5), network(1), NOON)),
            }
            node.drain();
            certified_yet |= *step == 1 || (*step == 2 && !node.networks.members().is_expelled(&network(1), &peer(2)));
            expelled_yet |= *step == 3;
            let passes = node.lets_in(5, NOON);
            assert!(!passes || (certified_yet && !expelled_yet), "{order:?} at {step}");
            let record = node.book.record(&peer(5));
            let told = record.as_ref().map_or(TrustState::Unknown, |record| record.told());
            node.book.reconcile(&[peer(5)], NOON);
            let history = node.book.record(&peer(5)).map_or(Vec::new(), |record| record.history.clone());
            assert!(history.windows(2).all(|two| two[0].to == two[1].from), "{order:?}: {told}");
        }
        assert!(!node.lets_in(5, NOON));
        // What was told is what is.
        let record = node.book.record(&peer(5)).unwrap();
        assert_eq!(record.told(), node.state(5, NOON), "{order:?}");
        assert_ne!(record.told(), TrustState::Trusted);
        if number.is_multiple_of(16) {
            assert!(!node.reopened().lets_in(5, NOON));
        }
    }
}

#[test]
fn a_budget_bounds_what_a_rule_grants_and_a_restart_does_not_renew_it() {
    let check = |policy: Policy, granted: usize, later: usize| {
        let mut node = Node::member_under(policy);
        let granted_now = |node: &Node, members: std::ops::Range<u32>, now: UnixMillis| {
            members
                .filter(|member| {
                    node.learns(&[&sponsored(*member, 1, 2)]);
                    let enlisted = node.book.enlist(peer(*member), network(1), now);
                    assert!(matches!(enlisted, Ok(_) | Err(Refusal::NoBudget)));
                    enlisted.is_ok()
                })
                .count()
        };
        assert_eq!(granted_now(&node, 10..20, NOON), granted);
        // The other way to a grant is bound as well: a request waits.
        assert_eq!(node.is_granted(30, NOON), TrustState::Pending);
        node.learns(&[&sponsored(31, 1, 2)]);
        assert_eq!(node.is_granted(31, NOON), TrustState::Pending);
        node.drain();
        node = node.reopened();
        assert_eq!(granted_now(&node, 40..50, NOON.plus(30 * MINUTE)), 0, "a restart resets nothing");
        assert_eq!(granted_now(&node, 50..60, NOON.plus(2 * HOUR)), later);
        // Another sponsor, or none.
        node.learns(&[&sponsored(70, 1, 3), &certified(71, 1)]);
        let others = [70, 71].map(|other| node.book.enlist(peer(other), network(1), NOON.plus(4 * HOUR)).is_ok());
        let bounded_in_all = granted == 4;
        assert_eq!(others, [!bounded_in_all; 2]);
    };
    check(Policy { grants_per_hour: 3, ..open_policy() }, 3, 3);
    check(Policy { grants_total: 4, ..open_policy() }, 4, 0);
    check(Policy { grants_per_sponsor: 5, ..open_policy() }, 5, 0);
}

/// Two networks are counted, and named, each by itself.
#[test]
fn budgets_of_two_networks_are_not_confused() {
    let node = Node::member_under(Policy { grants_total: 1, ..open_policy() });
    let mine = Certificate { network: network(2), ..certificate(0, 1, Role::Member) };
    let joined = Joined { name: name("lab"), inviter: peer(9), addresses: Vec::new() };
    node.networks.joined(&joined, &mine.by_authority(&authority(2)).unwrap(), NOON).unwrap();
    let theirs = Certificate { network: network(2), ..certificate(6, 1, Role::Member) };
    node.networks.learn([theirs.by_authority(&authority(2)).unwrap().membership()], NOON).unwrap();
    node.learns(&[&certified(5, 1), &certified(7, 1)]);
    assert_eq!(node.is_granted(5, NOON), TrustState::Trusted);
    assert_eq!(node.is_granted(7, NOON), TrustState::Pending);
    assert_eq!(node.is_told(6, Kind::Grant, 1, Some(network(2)), NOON), TrustState::Trusted);
    let count = |number| node.book.store().index().grants_of(&Rule::Network(network(number)), NOON);
    assert_eq!((count(1), count(2)), ((1, 1), (1, 1)));
    let undone = node.book.undo(&Rule::Network(network(2)), NOON, false, NOON);
    assert_eq!(undone.iter().map(|(who, _)| *who).collect::<Vec<_>>(), [peer(6)]);
    assert!(node.state(5, NOON) == TrustState::Trusted && node.state(6, NOON) == TrustState::Revoked);
}

/// A peer that is in two of our networks stays trusted through the other one.
#[test]
fn a_grant_passes_to_another_network_when_the_first_is_gone() {
    let mut node = Node::member();
    let in_second = |member| {
        let one = Certificate { network: network(2), ..certificate(member, 1, Role::Member) };
        one.by_authority(&authority(2)).unwrap()
    };
    let joined = Joined { name: name("home"), inviter: peer(9), addresses: Vec::new() };
    node.networks.joined(&joined, &in_second(0), NOON).unwrap();
    node.learns(&[&certified(5, 1), &in_second(5)]);
    // Ascending ids: whichever of the two is first.
    node.is_told(5, Kind::Grant, 1, None, NOON);
    let Some(Rule::Network(first)) = node.rule_of(5) else { panic!("a network's rule grants") };
    let other = if first == network(1) { network(2) } else { network(1) };
    let affected = node.networks.leave(first).unwrap().affected;
    assert_eq!(node.book.reconcile(&affected, NOON).fallen, [peer(5)]);
    assert_eq!(node.state(5, NOON), TrustState::Pending);
    node.book.enlist(peer(5), other, NOON).unwrap();
    node.drain();
    assert!(node.lets_in(5, NOON));
    assert_eq!(node.rule_of(5), Some(Rule::Network(other)));
}

#[test]
fn undoing_takes_back_what_a_rule_granted_since_then_and_nothing_else() {
    let mut node = Node::member();
    node.learns(&[&certified(5, 1), &certified(6, 1), &certified(7, 1)]);
    node.is_granted(5, NOON);
    node.is_granted(6, NOON.plus(HOUR));
    node.is_granted(7, NOON.plus(HOUR));
    node.book.trust(peer(7), &Grant::default(), NOON.plus(HOUR)).unwrap();
    node.is_told(8, Kind::Grant, 1, None, NOON.plus(HOUR));
    node.drain();
    node.events();
    let now = NOON.plus(2 * HOUR);
    let since = NOON.plus(HOUR);
    let dry = node.book.undo(&lab(), since, true, now);
    assert_eq!(dry.iter().map(|(who, did)| (*who, did.is_some())).collect::<Vec<_>>(), [(peer(6), false)]);
    assert_eq!((node.events(), node.state(6, now)), (vec![], TrustState::Trusted));
    let undone = node.book.undo(&lab(), since, false, now);
    assert_eq!(undone.len(), 1);
    assert_eq!(node.events(), [(Cause::Undone, TrustState::Revoked)]);
    assert!(!node.lets_in(6, now) && node.lets_in(5, now) && node.lets_in(7, now));
    assert_eq!(node.book.undo(&lab(), since, false, now).len(), 0);
    // The rule does not grant again what was undone.
    assert_eq!(node.is_granted(6, now), TrustState::Revoked);
    node.drain();
    let node = node.reopened();
    assert_eq!(node.state(6, now), TrustState::Revoked);
}

/// What an Offer says: a grant whose subject is not a member any more is not offered.
#[test]
fn a_grant_that_does_not_count_is_not_offered() {
    let node = Node::member();
    node.learns(&[&certified(5, 1)]);
    node.book.enlist(peer(5), network(1), NOON).unwrap();
    let showing = |node: &Node| Showing {
        incarnation: handfast_protocol::Incarnation([2; 16]),
        address: None,
        networks: node.networks.standings_with(&peer(5), NOON),
    };
    let offer = node.book.offer(peer(5), &showing(&node), NOON).1;
    assert_eq!(offer.statement.unwrap().statement.terms.network, Some(network(1)));
    assert!(offer.extensions.value(handfast_protocol::exchange::NETWORKS_TAG).is_some());
    node.hears(&[notice(5, 1, NoticeKind::Expel)]);
    let offer = node.book.offer(peer(5), &showing(&node), NOON).1;
    assert_eq!(offer.statement, None);
    // To a peer that we do not know as a member nothing is shown of what we are in.
    assert_eq!(node.networks.standings_with(&peer(6), NOON), []);
    assert_eq!(node.state(5, NOON.plus(DAY)), TrustState::Unknown);
}
