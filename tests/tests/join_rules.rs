//! What a join promises beyond the way that all goes well: tickets that are not right, budgets, renewal, and how often
//! anybody is dialled. Whole nodes in this process, over loopback.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use handfast::authority_file;
use handfast::clock::unix_now;
use handfast::config::Config;
use handfast::control::api::{
    ApiError, ErrorCode, InviteRequest, JoinReply, JoinRequest, NetworkCreateRequest, PeerRequest, TrustRequest,
};
use handfast::node::Node;
use handfast_protocol::{
    Certificate, InviteSecret, Membership, NetworkId, NetworkName, Notice, NoticeKind, PeerId, Role, SecretKey, Ticket,
    UnixMillis, VerifiedMembership, codec,
};
use handfast_trust::networks::{Invitation, Joined};
use handfast_trust::{TrustState, peers};
use nodes::{ANYWHERE, Home, until, until_state};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

fn many(config: &mut Config) {
    config.handshakes_per_address = 100_000;
    config.handshakes_per_prefix = 100_000;
    config.socket_buffer_bytes = 256 * 1024;
}

fn start_with(home: &Home, more: impl FnOnce(&mut Config)) -> Node {
    let settings = |config: &mut Config| {
        many(config);
        more(config);
    };
    tokio::task::block_in_place(|| home.start(ANYWHERE, &[], settings))
}

fn start(home: &Home) -> Node {
    start_with(home, |_| {})
}

fn stop(nodes: impl IntoIterator<Item = Node>) {
    tokio::task::block_in_place(|| nodes.into_iter().for_each(|node| node.stop().unwrap()));
}

async fn found(node: &Node) -> NetworkId {
    let create = NetworkCreateRequest { name: "lab".to_owned(), operation_id: None };
    node.operator().network_create(&create).await.unwrap().network.parse().unwrap()
}

async fn invite(node: &Node, sponsor: bool) -> String {
    let invite = InviteRequest { uses: 100, for_ms: HOUR_MS, sponsor, ..InviteRequest::default() };
    node.operator().invite(&invite).await.unwrap().ticket
}

async fn join(node: &Node, ticket: &str) -> Result<JoinReply, ApiError> {
    node.operator().join(&JoinRequest { ticket: ticket.to_owned(), operation_id: None }).await
}

/// A new node that joins, with its home.
async fn joined(ticket: &str) -> (Home, Node) {
    let home = Home::new();
    let node = start(&home);
    join(&node, ticket).await.unwrap();
    (home, node)
}

fn trusted(node: &Node) -> u64 {
    node.engine().book.census().of(TrustState::Trusted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_one_bit_change_of_a_ticket_is_refused_and_takes_no_use() {
    let homes = [Home::new(), Home::new()];
    let [a, b] = [&homes[0], &homes[1]].map(start);
    found(&a).await;
    let text = invite(&a, false).await;
    // What is written: a checksum guards every character.
    for bit in 0..text.len() * 8 {
        let mut bytes = text.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(changed) = String::from_utf8(bytes) {
            let refused = join(&b, &changed).await.unwrap_err();
            assert_eq!(refused.code, ErrorCode::Usage, "bit {bit}: {refused:?}");
        }
    }
    // What is said, by whoever makes a checksum for it: another key at the address, another network, another secret.
    let right: Ticket = text.parse().unwrap();
    let mut tried = [0, 0, 0];
    for bit in 0..256 {
        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.get_mut(bit / 8).map(|byte| *byte ^= 1 << (bit % 8)).map(|()| bytes)
        };
        let mut changed = Vec::new();
        let whole = |bytes: &[u8]| -> [u8; 32] { flipped(bytes).unwrap().try_into().unwrap() };
        if let Ok(inviter) = PeerId::from_bytes(whole(right.inviter.as_bytes())) {
            changed.push((0, Ticket { inviter, ..right.clone() }, ErrorCode::Refused, "was not reached"));
        }
        if let Ok(network) = NetworkId::from_bytes(whole(right.network.as_bytes())) {
            changed.push((1, Ticket { network, ..right.clone() }, ErrorCode::Refused, "another network"));
        }
        if let Some(secret) = flipped(&codec::encode(&right.secret)) {
            let secret = InviteSecret::new(secret.try_into().unwrap());
            changed.push((2, Ticket { secret, ..right.clone() }, ErrorCode::NotFound, "no such invite"));
        }
        for (which, ticket, code, words) in changed {
            let refused = join(&b, &ticket.to_text()).await.unwrap_err();
            assert!(refused.code == code && refused.message.contains(words), "bit {bit}: {refused:?}");
            tried[which] += 1;
        }
    }
    // Half of all bytes are no key.
    assert!(tried[0] > 64 && tried[1] > 64 && tried[2] == 128, "{tried:?}");
    assert_eq!(a.operator().invite_list().invites[0].used, 0);
    join(&b, &text).await.unwrap();
    assert_eq!(a.operator().invite_list().invites[0].used, 1);
    // The rest of it is what the ticket says to its reader: another name, time or count gets nobody more.
    let mut let_in = 0;
    for bit in 0..u64::BITS {
        let mut name = right.name.as_str().to_owned().into_bytes();
        name[bit as usize / 8 % 3] ^= 1 << (bit % 8);
        let name = String::from_utf8(name).ok().and_then(|name| NetworkName::new(&name).ok());
        let changed = [
            name.map(|name| Ticket { name, ..right.clone() }),
            Some(Ticket { valid_from: UnixMillis(right.valid_from.0 ^ 1 << bit), ..right.clone() }),
            Some(Ticket { expires_at: UnixMillis(right.expires_at.0 ^ 1 << bit), ..right.clone() }),
            Some(Ticket { uses: right.uses ^ 1_u32.rotate_left(bit), ..right.clone() }),
        ];
        for ticket in changed.into_iter().flatten() {
            match join(&b, &ticket.to_text()).await {
                Ok(reply) => {
                    assert_eq!((reply.name.as_str(), reply.members), ("lab", 1), "bit {bit}");
                    let_in += 1;
                }
                Err(refused) => {
                    let codes = [ErrorCode::Usage, ErrorCode::Refused];
                    assert!(codes.contains(&refused.code), "bit {bit}: {refused:?}");
                }
            }
        }
    }
    assert!(let_in > 64, "{let_in}");
    assert_eq!(a.operator().invite_list().invites[0].used, 1);
    stop([a, b]);
}

/// What the peer says twice is taken in twice: each time that it is heard of is one change of the address book.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_join_exchanges_with_its_inviter_once() {
    let home = Home::new();
    let a = start(&home);
    found(&a).await;
    let ticket = invite(&a, false).await;
    let before = a.engine().peers.revision();
    let (joiner, b) = joined(&ticket).await;
    until_state(&a, &joiner.peer, TrustState::Trusted).await;
    // Behind whatever the outbox has begun: one contact of a peer at a time.
    b.engine().contact(home.peer, false).await.unwrap();
    assert_eq!(a.engine().peers.revision().0 - before.0, 1);
    stop([a, b]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_ticket_whose_time_has_not_come_is_refused_as_such() {
    let homes = [Home::new(), Home::new()];
    let [a, b] = [&homes[0], &homes[1]].map(start);
    let network = found(&a).await;
    let mut ticket: Ticket = invite(&a, false).await.parse().unwrap();
    let valid_from = unix_now().plus(HOUR_MS);
    let expires_at = valid_from.plus(HOUR_MS);
    ticket.secret = InviteSecret::new([3; 16]);
    let wanted = Invitation { network, role: Role::Member, uses: 1, valid_from, expires_at };
    a.engine().networks.invite(wanted, &ticket.secret, unix_now()).unwrap();
    let refused = join(&b, &ticket.to_text()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Refused);
    assert!(refused.message.contains("the invite is not valid yet"), "{refused:?}");
    stop([a, b]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rules_budget_for_an_hour_holds_also_after_a_restart() {
    let home = Home::new();
    let limited = |config: &mut Config| config.policy_grants_per_hour = 2;
    let a = start_with(&home, limited);
    found(&a).await;
    let ticket = invite(&a, false).await;
    let mut members = Vec::new();
    for granted in [1, 2] {
        members.push(joined(&ticket).await);
        until_state(&a, &members[granted - 1].0.peer, TrustState::Trusted).await;
    }
    members.push(joined(&ticket).await);
    until_state(&a, &members[2].0.peer, TrustState::Pending).await;
    stop([a]);
    let a = start_with(&home, limited);
    let ticket = invite(&a, false).await;
    members.push(joined(&ticket).await);
    until_state(&a, &members[3].0.peer, TrustState::Pending).await;
    assert_eq!(trusted(&a), 2);
    // The members' own rules have budget: they trust each other.
    let [(_, b), .., (d, _)] = &members[..] else { unreachable!() };
    until_state(b, &d.peer, TrustState::Trusted).await;
    stop(members.into_iter().map(|(_, node)| node).chain([a]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_one_sponsor_let_in_has_a_budget_of_its_own_also_after_a_restart() {
    let (a_home, m_home, s_home) = (Home::new(), Home::new(), Home::new());
    let limited = |config: &mut Config| config.policy_grants_per_sponsor = 1;
    let [a, s] = [&a_home, &s_home].map(start);
    let m = start_with(&m_home, limited);
    found(&a).await;
    join(&m, &invite(&a, false).await).await.unwrap();
    join(&s, &invite(&a, true).await).await.unwrap();
    until_state(&m, &s_home.peer, TrustState::Trusted).await;
    let by_sponsor = invite(&s, false).await;
    let (x_home, x) = joined(&by_sponsor).await;
    until_state(&m, &x_home.peer, TrustState::Trusted).await;
    let (y_home, y) = joined(&by_sponsor).await;
    until_state(&m, &y_home.peer, TrustState::Pending).await;
    stop([m]);
    let m = start_with(&m_home, limited);
    let (z_home, z) = joined(&by_sponsor).await;
    until_state(&z, &m_home.peer, TrustState::Requested).await;
    until("its request is there", || m.engine().book.state(&z_home.peer, unix_now()) == TrustState::Pending).await;
    // Who was let in by the authority itself is another matter.
    let (w_home, w) = joined(&invite(&a, false).await).await;
    until_state(&m, &w_home.peer, TrustState::Trusted).await;
    assert_eq!(m.engine().book.state(&y_home.peer, unix_now()), TrustState::Pending);
    stop([a, s, m, x, y, z, w]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_networks_of_one_name_have_a_budget_each() {
    let (first_home, second_home, home) = (Home::new(), Home::new(), Home::new());
    let limited = |config: &mut Config| config.policy_grants_total = 2;
    let [first, second] = [&first_home, &second_home].map(start);
    let node = start_with(&home, limited);
    found(&first).await;
    found(&second).await;
    let tickets = [invite(&first, false).await, invite(&second, false).await];
    let mut members = Vec::new();
    for ticket in &tickets {
        members.push(joined(ticket).await);
        join(&node, ticket).await.unwrap();
    }
    let names: Vec<String> = node.operator().network_list().networks.into_iter().map(|row| row.name).collect();
    assert_eq!(names.iter().map(String::as_str).collect::<HashSet<_>>(), HashSet::from(["lab", "lab-2"]));
    // Both are used up by two members each.
    for peer in [first_home.peer, second_home.peer, members[0].0.peer, members[1].0.peer] {
        until_state(&node, &peer, TrustState::Trusted).await;
    }
    stop([node]);
    let node = start_with(&home, limited);
    for ticket in &tickets {
        members.push(joined(ticket).await);
        until_state(&node, &members.last().unwrap().0.peer, TrustState::Pending).await;
    }
    assert_eq!(trusted(&node), 4);
    stop(members.into_iter().map(|(_, node)| node).chain([first, second, node]));
}

/// What the network's authority, whose node this is, signed for a member 70 days ago, for 90 days.
fn aged(home: &Home, network: NetworkId, (member, role): (PeerId, Role), epoch: u64) -> Membership {
    let keys = authority_file::load_all(home.dir().path()).unwrap();
    let authority = keys.iter().find(|key| key.network_id() == network).unwrap();
    let now = unix_now();
    let issued_at = UnixMillis(now.0 - 70 * DAY_MS);
    let expires_at = now.plus(20 * DAY_MS);
    let certificate = Certificate { network, member, epoch, issued_at, expires_at, role };
    certificate.by_authority(authority).unwrap().membership().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_with_a_third_of_its_life_left_is_renewed_and_shown_to_the_others() {
    let home = Home::new();
    let a = start(&home);
    let network = found(&a).await;
    let ticket = invite(&a, false).await;
    let (b_home, b) = joined(&ticket).await;
    let (_c_home, c) = joined(&ticket).await;
    until_state(&c, &b_home.peer, TrustState::Trusted).await;
    until_state(&b, &c.peer_id(), TrustState::Trusted).await;
    let ends_at = |node: &Node| {
        let proof = node.engine().networks.proof(network, b_home.peer, unix_now());
        proof.map(|proof| proof.ends_at())
    };
    // Everybody takes one that is newer, and has less than a third of its life left, for what B has.
    let old = aged(&home, network, (b_home.peer, Role::Member), unix_now().0 + 1);
    for node in [&a, &b, &c] {
        node.engine().networks.learn([&old], unix_now()).unwrap();
        assert_eq!(ends_at(node), Some(old.ends_at()));
    }
    b.engine().upkeep.lost(vec![network]);
    let later = unix_now().plus(80 * DAY_MS);
    until("renewed, and known to whoever has a session", || {
        [&a, &b, &c].into_iter().all(|node| ends_at(node).is_some_and(|end| end > later))
    })
    .await;
    assert_eq!(trusted(&b), 2);
    stop([a, b, c]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_authority_renews_its_own_certificate_and_shows_it_to_the_others() {
    let home = Home::new();
    let a = start(&home);
    let network = found(&a).await;
    let ticket = invite(&a, false).await;
    let (_b_home, b) = joined(&ticket).await;
    let ends_at = |node: &Node| {
        let proof = node.engine().networks.proof(network, home.peer, unix_now());
        proof.map(|proof| proof.ends_at())
    };
    until_state(&b, &home.peer, TrustState::Trusted).await;
    let old = aged(&home, network, (home.peer, Role::Sponsor), unix_now().0 + 1);
    for node in [&a, &b] {
        node.engine().networks.learn([&old], unix_now()).unwrap();
        assert_eq!(ends_at(node), Some(old.ends_at()));
    }
    a.engine().upkeep.lost(vec![network]);
    let later = unix_now().plus(80 * DAY_MS);
    until("renewed, and known to whoever has a session", || {
        [&a, &b].into_iter().all(|node| ends_at(node).is_some_and(|end| end > later))
    })
    .await;
    assert_eq!((trusted(&a), trusted(&b)), (1, 1));
    stop([a, b]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_is_blocked_gets_nothing_with_a_ticket() {
    let (home, other) = (Home::new(), Home::new());
    let a = start(&home);
    found(&a).await;
    let ticket = invite(&a, false).await;
    // It has said something, so that it is let in to take that back.
    let b = start(&other);
    let at = Some(a.local_addrs()[0].to_string());
    let request = |peer: &PeerId| PeerRequest { peer: peer.to_string(), ..PeerRequest::default() };
    let asks = TrustRequest { peer: home.peer.to_string(), address: at, ..TrustRequest::default() };
    b.operator().trust(&asks).await.unwrap();
    until_state(&a, &other.peer, TrustState::Pending).await;
    a.operator().block(&request(&other.peer)).await.unwrap();
    let refused = join(&b, &ticket).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(a.operator().invite_list().invites.iter().all(|invite| invite.used == 0));
    assert_eq!((trusted(&a), trusted(&b)), (0, 0));
    stop([a, b]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_join_opens_one_connection_to_each_member() {
    let home = Home::new();
    let a = start(&home);
    found(&a).await;
    let ticket = invite(&a, false).await;
    let mut members = Vec::new();
    for _ in 0..6 {
        members.push(joined(&ticket).await);
    }
    let (late_home, late) = joined(&ticket).await;
    for (member, node) in &members {
        until_state(&late, &member.peer, TrustState::Trusted).await;
        until("its session", || node.engine().registry.session(&late_home.peer).is_some()).await;
    }
    // Sessions that were closed stay listed: a second connection to anybody would have left one.
    let mut sessions = late.operator().sessions().sessions;
    assert!(sessions.iter().all(|row| row.state == "active" && row.role == "dialer"), "{sessions:#?}");
    sessions.sort_by(|one, other| one.peer_id.cmp(&other.peer_id));
    sessions.dedup_by(|one, other| one.peer_id == other.peer_id);
    assert_eq!(sessions.len(), 7);
    for (_, node) in &members {
        let with_it = node.operator().sessions().sessions;
        assert_eq!(with_it.iter().filter(|row| row.peer_id == late_home.peer.to_string()).count(), 1);
    }
    stop(members.into_iter().map(|(_, node)| node).chain([a, late]));
}

/// Where a member is that answers nothing: the ids that connections to it begin with, one for each dial.
fn silence() -> (std::net::SocketAddr, Arc<Mutex<HashSet<Vec<u8>>>>) {
    let socket = UdpSocket::bind(ANYWHERE).unwrap();
    let (at, dials) = (socket.local_addr().unwrap(), Arc::new(Mutex::new(HashSet::new())));
    let seen = dials.clone();
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok(length) = socket.recv(&mut packet) {
            // RFC 9000, section 17.2: first byte, version, length of the id, the id.
            let id = packet[..length].get(5).and_then(|of| packet.get(6..6 + usize::from(*of)));
            seen.lock().unwrap().extend(id.map(<[u8]>::to_vec));
        }
    });
    (at, dials)
}

fn lab() -> NetworkName {
    NetworkName::new("lab").unwrap()
}

/// What the authority signs for a member now.
fn certificate(authority: &SecretKey, member: PeerId) -> VerifiedMembership {
    let now = unix_now();
    let (network, expires_at) = (authority.network_id(), now.plus(90 * DAY_MS));
    let certificate = Certificate { network, member, epoch: now.0, issued_at: now, expires_at, role: Role::Member };
    certificate.by_authority(authority).unwrap()
}

#[tokio::test]
async fn a_dead_member_costs_a_bounded_number_of_dials_a_day() {
    let homes = [Home::new(), Home::new()];
    let [a, b] = [&homes[0], &homes[1]].map(|home| home.start_bare(many));
    let (authority, dead) = (SecretKey::from_seed(&[8; 32]), SecretKey::from_seed(&[9; 32]));
    let network = authority.network_id();
    let now = unix_now();
    let changed = a.engine().networks.create(authority.clone(), lab(), now).unwrap();
    a.engine().membership_changed(&changed.affected);
    // Somebody who was let in, and answers nobody since.
    let (at, dials) = silence();
    a.engine().networks.learn([certificate(&authority, dead.peer_id()).membership()], now).unwrap();
    // Its address is one that an operator typed, so that no budget for what others claim bounds the dials.
    for node in [&a, &b] {
        peers::update(&node.engine().peers, dead.peer_id(), |record| record.typed = Some(at.to_string()));
    }
    let secret = InviteSecret::new([1; 16]);
    let wanted = Invitation { network, role: Role::Member, uses: 1, valid_from: now, expires_at: now.plus(DAY_MS) };
    a.engine().networks.invite(wanted, &secret, now).unwrap();
    let ticket = Ticket {
        network,
        name: lab(),
        inviter: a.engine().book.me(),
        addresses: a.engine().address_record().unwrap().record.addresses,
        secret,
        uses: 1,
        valid_from: now,
        expires_at: now.plus(DAY_MS),
    };
    b.engine().join(&ticket, StdRng::seed_from_u64(1)).await.unwrap();
    until("the two have a session", || a.engine().registry.session(&b.engine().book.me()).is_some()).await;

    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    tokio::time::resume();
    let dials = dials.lock().unwrap().len();
    assert!(a.engine().registry.session(&b.engine().book.me()).is_some(), "the day was one of a running node");
    // By backoff up to a quarter of an hour, drawn evenly: 192 a day for each of the two who know the member.
    assert!((100..600).contains(&dials), "{dials} dials");
}

#[tokio::test]
async fn an_expelled_node_asks_members_a_bounded_number_of_times_a_day() {
    let home = Home::new();
    let node = home.start_bare(many);
    let (authority, dead) = (SecretKey::from_seed(&[8; 32]), SecretKey::from_seed(&[9; 32]));
    let (network, now, me) = (authority.network_id(), unix_now(), node.engine().book.me());
    let networks = &node.engine().networks;
    let joined = Joined { name: lab(), inviter: dead.peer_id(), addresses: Vec::new() };
    networks.joined(&joined, &certificate(&authority, me), now).unwrap();
    networks.roster_is_read(network).unwrap();
    networks.learn([certificate(&authority, dead.peer_id()).membership()], now).unwrap();
    let (at, dials) = silence();
    peers::update(&node.engine().peers, dead.peer_id(), |record| record.typed = Some(at.to_string()));
    let notice = Notice { network, member: me, number: 1, kind: NoticeKind::Expel, issued_at: now };
    networks.learn_notices(&[*notice.sign(&authority).unwrap().signed()]).unwrap();

    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    tokio::time::resume();
    let dials = dials.lock().unwrap().len();
    // By backoff from two minutes to six hours, drawn evenly.
    assert!((4..40).contains(&dials), "{dials} dials");
}
