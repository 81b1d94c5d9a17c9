//! What a node replies on a join stream, to whom.

use handfast_protocol::join::{JoinReply, JoinRequest};
use handfast_protocol::limits::{NOTICE_PAGE_MAX, ROSTER_PAGE_MAX};
use handfast_protocol::{
    AddressRecord, Certificate, JoinRefusal, Membership, NoticeKind, PeerId, Role, SignedAddressRecord, UnixMillis,
};
use handfast_trust::networks::CERTIFICATE_LIFE_MS;

use crate::support::{NOON, Node, authority, boxed, certificate, certified, key, network, notice, peer, sponsored};

fn ask(node: &Node, by: u32, request: JoinRequest, now: UnixMillis) -> JoinReply {
    node.networks.reply(peer(by), &request, &|_: &PeerId| None, now).0
}

fn refused(node: &Node, by: u32, request: JoinRequest) -> Option<JoinRefusal> {
    match ask(node, by, request, NOON) {
        JoinReply::Refused(code) => Some(JoinRefusal::from_code(u64::from(code))),
        _ => None,
    }
}

fn address_of(member: &PeerId) -> Option<SignedAddressRecord> {
    let number = (0..300).find(|number| peer(*number) == *member)?;
    let record = AddressRecord { peer: *member, addresses: Vec::new(), epoch: 1, expires_at: NOON };
    record.sign(&key(number)).ok()
}

#[test]
fn a_roster_is_read_in_pages_and_lists_whose_membership_counts() {
    let node = Node::member();
    let mut expected: Vec<PeerId> = (5..205).map(peer).chain([peer(0)]).collect();
    (5..205).for_each(|member| node.learns(&[&certified(member, 1)]));
    node.hears(&[notice(7, 1, NoticeKind::Expel)]);
    expected.retain(|member| *member != peer(7));
    expected.sort_unstable();
    let proof = boxed(&certified(5, 1));
    let (mut after, mut read, mut pages) = (None, Vec::new(), 0);
    loop {
        let request = JoinRequest::Roster { membership: proof.clone(), after };
        let JoinReply::Roster(page) = node.networks.reply(peer(5), &request, &address_of, NOON).0 else {
            panic!("a page")
        };
        pages += 1;
        assert!(page.entries.iter().all(|entry| entry.address.as_ref().is_some_and(SignedAddressRecord::verify)));
        read.extend(page.entries.iter().map(|entry| entry.membership.member()));
        after = read.last().copied();
        if !page.more {
            break;
        }
        assert_eq!(page.entries.len(), ROSTER_PAGE_MAX);
    }
    assert_eq!((read, pages), (expected.clone(), 200_usize.div_ceil(ROSTER_PAGE_MAX)));
    assert_eq!(node.networks.roster(network(1), NOON), expected);
}

#[test]
fn notices_are_read_in_pages() {
    let node = Node::member();
    let about = 1_000..1_000 + 2 * NOTICE_PAGE_MAX as u32 + 1;
    let notices: Vec<_> = about.map(|member| notice(member, u64::from(member), NoticeKind::Expel)).collect();
    node.hears(&notices);
    let other = Node::member();
    let (mut after, mut pages) = (None, 0);
    loop {
        let request = JoinRequest::Expulsions { membership: boxed(&certified(5, 1)), after };
        let JoinReply::Expulsions(page) = ask(&node, 5, request, NOON) else { panic!("a page") };
        pages += 1;
        after = page.notices.last().map(|signed| signed.notice.member);
        other.networks.learn_notices(&page.notices).unwrap();
        if !page.more {
            break;
        }
    }
    let held = |node: &Node| node.networks.members().expulsions(&network(1));
    assert_eq!((pages, held(&other), held(&other).count as usize), (3, held(&node), notices.len()));
}

#[test]
fn only_members_read_the_roster_and_also_the_expelled_learn_of_it() {
    let node = Node::member();
    node.hears(&[notice(6, 1, NoticeKind::Expel)]);
    let roster = |membership: Box<Membership>| JoinRequest::Roster { membership, after: None };
    let notices = |membership: Box<Membership>| JoinRequest::Expulsions { membership, after: None };
    let five = || boxed(&certified(5, 1));
    assert_eq!(refused(&node, 5, roster(five())), None);
    assert_eq!(refused(&node, 7, roster(five())), Some(JoinRefusal::NotAMember), "a proof is not to be lent");
    assert_eq!(refused(&node, 6, roster(boxed(&certified(6, 9)))), Some(JoinRefusal::Expelled));
    assert_eq!(refused(&node, 6, notices(boxed(&certified(6, 9)))), None);
    let mut forged = five();
    forged.certificate.certificate.epoch += 1;
    assert_eq!(refused(&node, 5, roster(forged.clone())), Some(JoinRefusal::NotAMember));
    assert_eq!(refused(&node, 5, notices(forged)), Some(JoinRefusal::NotAMember));
    let ended = Certificate { expires_at: NOON, ..certificate(8, 1, Role::Member) };
    let ended = boxed(&ended.by_authority(&authority(1)).unwrap());
    assert_eq!(refused(&node, 8, roster(ended.clone())), Some(JoinRefusal::NotAMember));
    assert_eq!(refused(&node, 8, notices(ended)), None);
    assert_eq!(refused(&Node::alone(), 5, roster(five())), Some(JoinRefusal::NotHere));
}

#[test]
fn a_sponsor_renews_members_and_the_authority_sponsors() {
    let late = UnixMillis(NOON.0 + CERTIFICATE_LIFE_MS - 1);
    let renew = |membership: Box<Membership>| JoinRequest::Renew { membership };
    let renewed = |reply: JoinReply| match reply {
        JoinReply::Certified(membership) => membership.verify().unwrap(),
        other => panic!("{other:?}"),
    };
    // This node is a sponsor whose own certificate is fresh.
    let own = Certificate { expires_at: late.plus(CERTIFICATE_LIFE_MS), ..certificate(0, 1, Role::Sponsor) };
    let sponsor = Node::alone();
    sponsor.joins(&own.by_authority(&authority(1)).unwrap());
    let first = renewed(ask(&sponsor, 5, renew(boxed(&certified(5, 1))), late));
    assert_eq!((first.membership().sponsor(), first.role()), (Some(peer(0)), Role::Member));
    assert!(first.membership().ends_at() > certified(5, 1).membership().ends_at());
    // Asked again: the same, and nothing is written.
    let revision = sponsor.networks.store().revision();
    assert_eq!(renewed(ask(&sponsor, 5, renew(boxed(&certified(5, 1))), late)), first);
    assert_eq!(renewed(ask(&sponsor, 5, renew(boxed(&first)), late)), first);
    assert_eq!(sponsor.networks.store().revision(), revision);
    let another = certificate(3, 1, Role::Sponsor).by_authority(&authority(1)).unwrap();
    assert_eq!(refused(&sponsor, 3, renew(boxed(&another))), Some(JoinRefusal::CannotIssue));
    let founder = Node::founder();
    assert_eq!(renewed(ask(&founder, 3, renew(boxed(&another)), late)).role(), Role::Sponsor);
    // Not for who is out: expelled, ended, or let in by an expelled sponsor.
    sponsor.hears(&[notice(5, 1, NoticeKind::Expel), notice(2, 2, NoticeKind::Expel)]);
    assert_eq!(refused(&sponsor, 5, renew(boxed(&first))), Some(JoinRefusal::Expelled));
    assert_eq!(refused(&sponsor, 6, renew(boxed(&sponsored(6, 1, 2)))), Some(JoinRefusal::NotAMember));
    assert!(matches!(ask(&sponsor, 7, renew(boxed(&certified(7, 1))), late.plus(1)), JoinReply::Refused(_)));
    assert_eq!(refused(&Node::member(), 7, renew(boxed(&certified(7, 1)))), Some(JoinRefusal::CannotIssue));
}
