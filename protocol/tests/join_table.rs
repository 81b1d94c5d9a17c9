//! Every state of both join machines against every input, as text: what comes out, and the state after it.
//!
//! No cell may be empty or panic; no reply leaves the host except from a state that only `Durable` leads to, and no
//! members are kept behind a certificate and expulsions that are not durable.
#![allow(clippy::unwrap_used, reason = "a test ends where a value is not what it must be")]

use std::fmt::Write;

use handfast_protocol::codec;
use handfast_protocol::join::{
    Brought, Errand, JoinAnswer, JoinAsk, JoinFault, JoinHost, JoinHostInput, JoinHostOutput, JoinReply, JoinRequest,
    Joiner, JoinerInput, JoinerOutput, NoticePage, RosterEntry, RosterPage,
};
use handfast_protocol::limits::JOIN_REQUESTS_MAX;
use handfast_protocol::stream::{Extension, Extensions};
use handfast_protocol::{
    AddressRecord, Certificate, InviteSecret, JoinRefusal, Membership, Notice, NoticeKind, PeerId, RefuseCode, Role,
    SecretKey, SignedAddressRecord, SignedNotice, UnixMillis,
};
use serde::Serialize;

const NETWORK: u8 = 9;
/// The revision that the machines are told to wait for.
const REVISION: u64 = 7;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// Members in ascending order of their keys; the first is this end.
fn member(number: usize) -> SecretKey {
    let mut keys: Vec<SecretKey> = (1..=6).map(key).collect();
    keys.sort_by_key(SecretKey::peer_id);
    keys[number].clone()
}

fn me() -> PeerId {
    member(0).peer_id()
}

fn membership(of: usize, network: u8) -> Membership {
    let certificate = Certificate {
        network: key(network).network_id(),
        member: member(of).peer_id(),
        epoch: 1,
        issued_at: UnixMillis(1),
        expires_at: UnixMillis(2),
        role: Role::Member,
    };
    certificate.by_authority(&key(network)).unwrap().membership().clone()
}

fn forged(mut membership: Membership) -> Membership {
    membership.certificate.signature.0[0] ^= 1;
    membership
}

fn notice(about: usize, network: u8) -> SignedNotice {
    let (network, key) = (key(network).network_id(), key(network));
    let member = member(about).peer_id();
    let notice = Notice { network, member, number: 1, kind: NoticeKind::Expel, issued_at: UnixMillis(1) };
    *notice.sign(&key).unwrap().signed()
}

fn address(of: usize) -> SignedAddressRecord {
    let record =
        AddressRecord { peer: member(of).peer_id(), addresses: Vec::new(), epoch: 1, expires_at: UnixMillis(1) };
    record.sign(&member(of)).unwrap()
}

fn entry(of: usize) -> RosterEntry {
    RosterEntry { membership: membership(of, NETWORK), address: Some(address(of)) }
}

fn roster(entries: Vec<RosterEntry>, more: bool) -> JoinReply {
    JoinReply::Roster(RosterPage { entries, more })
}

fn notices(notices: Vec<SignedNotice>, more: bool) -> JoinReply {
    JoinReply::Expulsions(NoticePage { notices, more })
}

fn certified(membership: Membership) -> JoinReply {
    JoinReply::Certified(Box::new(membership))
}

fn critical() -> Extensions {
    Extensions::new(vec![Extension { tag: 1, critical: true, bytes: Vec::new() }])
}

fn body<T: Serialize>(value: &T) -> Vec<u8> {
    codec::encode(value)
}

fn reply(reply: JoinReply) -> Vec<u8> {
    body(&JoinAnswer { reply, extensions: Extensions::default() })
}

fn ask(request: JoinRequest) -> Vec<u8> {
    body(&JoinAsk { request, extensions: Extensions::default() })
}

fn redeem() -> JoinRequest {
    JoinRequest::Redeem { network: key(NETWORK).network_id(), secret: InviteSecret::new([5; 16]) }
}

type Named<T> = Vec<(&'static str, T)>;

fn replies() -> Named<Vec<u8>> {
    let trailing = |mut body: Vec<u8>| {
        body.push(0);
        body
    };
    let with_address = |of: usize| RosterEntry { address: Some(address(of)), ..entry(2) };
    vec![
        ("certificate", reply(certified(membership(0, NETWORK)))),
        ("certificate, forged", reply(certified(forged(membership(0, NETWORK))))),
        ("certificate of another", reply(certified(membership(1, NETWORK)))),
        ("certificate, other network", reply(certified(membership(0, 8)))),
        ("notices, last page", reply(notices(vec![notice(3, NETWORK), notice(4, NETWORK)], false))),
        ("notices, more", reply(notices(vec![notice(3, NETWORK), notice(4, NETWORK)], true))),
        ("notices, none", reply(notices(vec![], false))),
        ("notices, none but more", reply(notices(vec![], true))),
        ("notices, descending", reply(notices(vec![notice(4, NETWORK), notice(3, NETWORK)], false))),
        ("notices, other network", reply(notices(vec![notice(3, 8)], false))),
        ("roster, last page", reply(roster(vec![entry(3), entry(4)], false))),
        ("roster, more", reply(roster(vec![entry(3), entry(4)], true))),
        ("roster, none", reply(roster(vec![], false))),
        ("roster, none but more", reply(roster(vec![], true))),
        ("roster, twice the same", reply(roster(vec![entry(3), entry(3)], false))),
        ("roster, a lent address", reply(roster(vec![with_address(3)], false))),
        (
            "roster, other network",
            reply(roster(vec![RosterEntry { membership: membership(3, 8), address: None }], false)),
        ),
        ("refused", reply(JoinReply::refused(JoinRefusal::Exhausted))),
        ("busy", reply(JoinReply::Busy(5))),
        ("critical extension", body(&JoinAnswer { reply: JoinReply::Busy(5), extensions: critical() })),
        ("trailing byte", trailing(reply(roster(vec![], false)))),
        ("nothing", Vec::new()),
        ("too long", vec![0; handfast_protocol::limits::JOIN_FRAME_BYTES_MAX + 1]),
    ]
}

fn joiner_inputs() -> Named<JoinerInput> {
    let mut inputs: Named<_> = replies().into_iter().map(|(name, body)| (name, JoinerInput::Frame(body))).collect();
    inputs.extend([
        ("kept 7", JoinerInput::Kept(REVISION)),
        ("not believed", JoinerInput::NotBelieved),
        ("durable 6", JoinerInput::Durable(REVISION - 1)),
        ("durable 7", JoinerInput::Durable(REVISION)),
        ("deadline", JoinerInput::Deadline),
        ("closed", JoinerInput::Closed),
    ]);
    inputs
}

fn page(entries: JoinReply) -> JoinerInput {
    JoinerInput::Frame(reply(entries))
}

/// Each errand, and every prefix of a conversation of two pages each.
fn joiner_states() -> Vec<(Errand, Vec<JoinerInput>)> {
    let (kept, durable) = (JoinerInput::Kept(REVISION), JoinerInput::Durable(REVISION));
    let redeem = Errand::Redeem { network: key(NETWORK).network_id(), secret: InviteSecret::new([5; 16]) };
    let whole = [
        page(certified(membership(0, NETWORK))),
        kept.clone(),
        page(notices(vec![notice(1, NETWORK)], true)),
        kept.clone(),
        page(notices(vec![notice(2, NETWORK)], false)),
        kept.clone(),
        page(roster(vec![entry(1)], true)),
        durable.clone(),
        kept.clone(),
        page(roster(vec![entry(2)], false)),
        kept,
        durable,
    ];
    let mut states: Vec<(Errand, Vec<JoinerInput>)> =
        (0..=whole.len()).map(|taken| (redeem.clone(), whole[..taken].to_vec())).collect();
    let own = || Box::new(membership(0, NETWORK));
    states.push((Errand::Renew(own()), vec![]));
    states.push((Errand::Renew(own()), vec![page(certified(membership(0, NETWORK)))]));
    states.push((Errand::Resume(own()), vec![]));
    states.push((Errand::Expulsions(own()), vec![]));
    states.push((Errand::Expulsions(own()), vec![page(notices(vec![], false)), JoinerInput::Kept(REVISION)]));
    states
}

fn host_inputs() -> Named<JoinHostInput> {
    let member = || Box::new(membership(1, NETWORK));
    let frame = |bytes: Vec<u8>| JoinHostInput::Frame(bytes.into());
    let decided = |reply: JoinReply, revision| JoinHostInput::Decided { reply: Box::new(reply), revision };
    vec![
        ("redeem", frame(ask(redeem()))),
        ("renew", frame(ask(JoinRequest::Renew { membership: member() }))),
        ("roster", frame(ask(JoinRequest::Roster { membership: member(), after: None }))),
        ("expulsions", frame(ask(JoinRequest::Expulsions { membership: member(), after: Some(me()) }))),
        ("critical extension", frame(body(&JoinAsk { request: redeem(), extensions: critical() }))),
        ("nothing", frame(Vec::new())),
        ("decided certificate, rests on 6", decided(certified(membership(1, NETWORK)), REVISION - 1)),
        ("decided certificate, rests on 7", decided(certified(membership(1, NETWORK)), REVISION)),
        ("decided certificate, rests on 8", decided(certified(membership(1, NETWORK)), REVISION + 1)),
        ("decided roster, rests on 0", decided(roster(vec![], false), 0)),
        ("decided refused, rests on 7", decided(JoinReply::refused(JoinRefusal::Unknown), REVISION)),
        ("decided busy", decided(JoinReply::Busy(1), 0)),
        ("durable 6", JoinHostInput::Durable(REVISION - 1)),
        ("durable 7", JoinHostInput::Durable(REVISION)),
        ("deadline", JoinHostInput::Deadline),
        ("closed", JoinHostInput::Closed),
    ]
}

fn host_states() -> Vec<Vec<JoinHostInput>> {
    let frame = JoinHostInput::Frame(ask(redeem()).into());
    let reply = Box::new(certified(membership(1, NETWORK)));
    let decided = JoinHostInput::Decided { reply, revision: REVISION };
    let whole = [frame, decided.clone(), JoinHostInput::Durable(REVISION), decided, JoinHostInput::Closed];
    (0..=whole.len()).map(|taken| whole[..taken].to_vec()).collect()
}

fn joiner_output(output: JoinerOutput) -> String {
    match output {
        JoinerOutput::Ask(frame) => match codec::decode::<JoinAsk>(&frame[4..], frame.len()).unwrap().request {
            JoinRequest::Expulsions { after, .. } => format!("Ask for notices, further: {}", after.is_some()),
            JoinRequest::Roster { after, .. } => format!("Ask for the roster, further: {}", after.is_some()),
            other => format!("Ask {other:?}"),
        },
        JoinerOutput::Keep(Brought::Own(_)) => "Keep own".to_owned(),
        JoinerOutput::Keep(Brought::Members(entries)) => format!("Keep {} members", entries.len()),
        JoinerOutput::Keep(Brought::Notices(notices)) => format!("Keep {} notices", notices.len()),
        JoinerOutput::AwaitDurable(revision) => format!("AwaitDurable {revision}"),
        JoinerOutput::Finish(result) => format!("Finish, {result:?}"),
    }
}

fn reply_name(frame: &[u8]) -> &'static str {
    match codec::decode::<JoinAnswer>(&frame[4..], frame.len()).unwrap().reply {
        JoinReply::Certified(_) => "certificate",
        JoinReply::Roster(_) => "roster",
        JoinReply::Expulsions(_) => "notices",
        JoinReply::Refused(_) => "refusal",
        JoinReply::Busy(_) => "busy",
    }
}

fn host_output(output: JoinHostOutput) -> String {
    match output {
        JoinHostOutput::Decide(_) => "Decide".to_owned(),
        JoinHostOutput::Reconsider => "Reconsider".to_owned(),
        JoinHostOutput::AwaitDurable(revision) => format!("AwaitDurable {revision}"),
        JoinHostOutput::Answer(frame) => format!("Send {}", reply_name(&frame)),
        JoinHostOutput::Finish { answer, result } => {
            let sent = answer.map_or(String::new(), |frame| format!("{}, ", reply_name(&frame)));
            format!("Finish, {sent}{result:?}")
        }
    }
}

fn joiner_in((errand, path): &(Errand, Vec<JoinerInput>)) -> Joiner {
    let (mut machine, _) = Joiner::start(me(), errand.clone());
    for input in path {
        machine.handle(input.clone());
    }
    machine
}

fn host_in(path: &[JoinHostInput]) -> JoinHost {
    let mut machine = JoinHost::new();
    for input in path {
        machine.handle(input.clone());
    }
    machine
}

fn row(table: &mut String, input: &str, output: &str, next: &str) {
    writeln!(table, "  {input:<32} | {output:<44} | {next}").unwrap();
}

/// The inputs that end a conversation alike are one line.
fn rows(table: &mut String, outcomes: &[(&str, String, &'static str)]) {
    let same = |name: &str, output: &String| outcomes.iter().filter(|(_, o, _)| o == output).any(|(n, ..)| *n != name);
    let mut grouped: Vec<&String> = Vec::new();
    for (name, output, next) in outcomes {
        if !output.starts_with("Finish, Err") || !same(name, output) {
            row(table, name, output, next);
        } else if !grouped.contains(&output) {
            grouped.push(output);
            let names: Vec<&str> = outcomes.iter().filter(|(_, o, _)| o == output).map(|(name, ..)| *name).collect();
            row(table, &format!("{} inputs", names.len()), output, next);
            names.chunks(4).for_each(|line| writeln!(table, "      {}", line.join("; ")).unwrap());
        }
    }
}

#[test]
fn the_joiner_answers_every_input_in_every_state() {
    let mut table = String::new();
    for state in joiner_states() {
        let at = joiner_in(&state);
        let last = state.1.len();
        writeln!(table, "{} after {last} inputs (patience: {:?})", at.state_name(), at.patience()).unwrap();
        let mut outcomes = Vec::new();
        for (name, input) in joiner_inputs() {
            let mut machine = joiner_in(&state);
            let output = machine.handle(input);
            assert_eq!(machine.is_finished(), matches!(output, JoinerOutput::Finish(_)), "{name}");
            let ends_well = matches!(output, JoinerOutput::Finish(Ok(())));
            assert!(!ends_well || at.state_name() == "AwaitAllDurable", "an end from {}", at.state_name());
            let kept = matches!(output, JoinerOutput::Keep(Brought::Members(_)));
            let confirmed = state.1.iter().any(|input| matches!(input, JoinerInput::Durable(_)));
            assert!(!kept || confirmed || at.state_name() == "AwaitReliable", "members from {}", at.state_name());
            outcomes.push((name, joiner_output(output), machine.state_name()));
        }
        rows(&mut table, &outcomes);
    }
    insta::assert_snapshot!(table);
}

#[test]
fn the_host_answers_every_input_in_every_state() {
    let mut table = String::new();
    for path in host_states() {
        let at = host_in(&path);
        writeln!(table, "{} after {} inputs (patience: {:?})", at.state_name(), path.len(), at.patience()).unwrap();
        let mut outcomes = Vec::new();
        for (name, input) in host_inputs() {
            let mut machine = host_in(&path);
            let output = machine.handle(input);
            assert_eq!(machine.is_finished(), matches!(output, JoinHostOutput::Finish { .. }), "{name}");
            let answered = matches!(output, JoinHostOutput::Answer(_))
                || matches!(&output, JoinHostOutput::Finish { answer: Some(frame), .. } if reply_name(frame) == "refusal");
            assert!(!answered || at.state_name() == "AwaitReconsidered", "a reply from {}", at.state_name());
            outcomes.push((name, host_output(output), machine.state_name()));
        }
        rows(&mut table, &outcomes);
    }
    insta::assert_snapshot!(table);
}

/// A host that always has more is left after so many requests, and so is a joiner that always asks.
#[test]
fn a_walk_without_end_ends() {
    let mut keys: Vec<PeerId> = (0..1_100_u32)
        .map(|seed| SecretKey::from_seed(&seed.to_le_bytes().repeat(8).try_into().unwrap()).peer_id())
        .collect();
    keys.sort();
    let (mut joiner, _) = Joiner::start(me(), Errand::Resume(Box::new(membership(0, NETWORK))));
    let mut requests = 1;
    let mut signed = notice(1, NETWORK);
    for key in keys {
        signed.notice.member = key;
        let output = joiner.handle(JoinerInput::Frame(reply(notices(vec![signed], true))));
        assert!(matches!(output, JoinerOutput::Keep(_)), "{output:?}");
        match joiner.handle(JoinerInput::Kept(0)) {
            JoinerOutput::Ask(_) => requests += 1,
            end => {
                assert_eq!(end, JoinerOutput::Finish(Err(JoinFault::Peer(RefuseCode::BadFrame))));
                break;
            }
        }
    }
    assert_eq!(requests, JOIN_REQUESTS_MAX);

    let mut host = JoinHost::new();
    let asked = |host: &mut JoinHost| host.handle(JoinHostInput::Frame(ask(redeem()).into()));
    for _ in 0..JOIN_REQUESTS_MAX {
        assert!(matches!(asked(&mut host), JoinHostOutput::Decide(_)));
        let reply = || JoinHostInput::Decided { reply: Box::new(roster(vec![], false)), revision: 0 };
        host.handle(reply());
        host.handle(JoinHostInput::Durable(0));
        assert!(matches!(host.handle(reply()), JoinHostOutput::Answer(_)));
    }
    assert!(matches!(asked(&mut host), JoinHostOutput::Finish { .. }));
}
