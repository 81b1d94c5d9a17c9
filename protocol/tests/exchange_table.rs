//! Every state of both exchange machines against every input, as text: what comes out, and the state after it.
//!
//! An input that no state takes ends the exchange with a fault; no cell may be empty, panic, or lead to an Answer or
//! a Receipt except from a state that only `Durable` leads to.
#![allow(clippy::unwrap_used, reason = "a test ends where a value is not what it must be")]

use std::fmt::Write;

use handfast_protocol::codec;
use handfast_protocol::exchange::{
    Agreement, Answer, AnswerTerms, Disposition, Initiator, InitiatorInput, InitiatorOutput, Offer, Parties, Receipt,
    Responder, ResponderInput, ResponderOutput,
};
use handfast_protocol::stream::{Extension, Extensions};
use handfast_protocol::{
    AddressRecord, Incarnation, Kind, Note, SecretKey, SignedAddressRecord, SignedStatement, Statement, Terms,
    UnixMillis,
};
use serde::Serialize;

const ME: u8 = 1;
const PEER: u8 = 2;
const STRANGER: u8 = 3;
/// The revision that the machines are told to wait for.
const REVISION: u64 = 7;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn parties() -> Parties {
    Parties { me: key(ME).peer_id(), peer: key(PEER).peer_id(), ours: None, theirs: None }
}

fn grant(issuer: u8, subject: u8) -> SignedStatement {
    let terms = Terms {
        kind: Kind::Grant,
        epoch: 5,
        issued_at: UnixMillis(5),
        expires_at: None,
        scope: None,
        network: None,
        note: Note::default(),
    };
    let statement = Statement { issuer: key(issuer).peer_id(), subject: key(subject).peer_id(), terms };
    statement.sign(&key(issuer)).unwrap().signed().clone()
}

fn address(peer: u8) -> SignedAddressRecord {
    let record =
        AddressRecord { peer: key(peer).peer_id(), addresses: Vec::new(), epoch: 1, expires_at: UnixMillis(1) };
    record.sign(&key(peer)).unwrap()
}

fn critical() -> Extensions {
    Extensions::new(vec![Extension { tag: 1, critical: true, bytes: Vec::new() }])
}

fn unknown() -> Extensions {
    Extensions::new(vec![Extension { tag: 1, critical: false, bytes: Vec::new() }])
}

fn forged(mut statement: SignedStatement) -> SignedStatement {
    statement.signature.0[0] ^= 1;
    statement
}

fn offer() -> Offer {
    Offer {
        statement: Some(grant(PEER, ME)),
        yours: Some(grant(ME, PEER)),
        incarnation: Incarnation([0; 16]),
        address: Some(address(PEER)),
        extensions: Extensions::default(),
    }
}

fn answer() -> Answer {
    Answer {
        disposition: Disposition::Granted,
        holds: None,
        statement: Some(grant(PEER, ME)),
        yours: None,
        incarnation: Incarnation([0; 16]),
        address: Some(address(PEER)),
        extensions: Extensions::default(),
    }
}

fn receipt() -> Receipt {
    Receipt { holds: None, extensions: Extensions::default() }
}

fn terms(disposition: Disposition) -> Box<AnswerTerms> {
    let incarnation = Incarnation([0; 16]);
    Box::new(AnswerTerms {
        disposition,
        holds: None,
        statement: None,
        yours: None,
        incarnation,
        address: None,
        networks: Vec::new(),
    })
}

type Named<T> = Vec<(&'static str, T)>;

/// Bodies that both machines may be sent, whatever they wait for.
fn bodies() -> Named<Vec<u8>> {
    fn body<T: Serialize>(value: T) -> Vec<u8> {
        codec::encode(&value)
    }
    let trailing = |mut body: Vec<u8>| {
        body.push(0);
        body
    };
    vec![
        ("offer", body(offer())),
        ("offer, unknown extension", body(Offer { extensions: unknown(), ..offer() })),
        ("offer, critical extension", body(Offer { extensions: critical(), ..offer() })),
        ("offer, forged statement", body(Offer { statement: Some(forged(grant(PEER, ME))), ..offer() })),
        ("offer, forged yours", body(Offer { yours: Some(forged(grant(ME, PEER))), ..offer() })),
        ("offer, a stranger's statement", body(Offer { statement: Some(grant(STRANGER, ME)), ..offer() })),
        ("offer, edges swapped", body(Offer { statement: Some(grant(ME, PEER)), ..offer() })),
        ("offer, a stranger's address", body(Offer { address: Some(address(STRANGER)), ..offer() })),
        ("offer, trailing byte", trailing(body(offer()))),
        ("answer", body(answer())),
        ("answer, unknown extension", body(Answer { extensions: unknown(), ..answer() })),
        ("answer, critical extension", body(Answer { extensions: critical(), ..answer() })),
        ("answer, forged statement", body(Answer { statement: Some(forged(grant(PEER, ME))), ..answer() })),
        ("answer, a stranger's statement", body(Answer { statement: Some(grant(PEER, STRANGER)), ..answer() })),
        ("answer, a stranger's address", body(Answer { address: Some(address(STRANGER)), ..answer() })),
        ("answer, trailing byte", trailing(body(answer()))),
        ("receipt", body(receipt())),
        ("receipt, unknown extension", body(Receipt { extensions: unknown(), ..receipt() })),
        ("receipt, critical extension", body(Receipt { extensions: critical(), ..receipt() })),
        ("receipt, trailing byte", trailing(body(receipt()))),
        ("nothing", Vec::new()),
        ("too long", vec![0; handfast_protocol::limits::FRAME_BYTES_MAX + 1]),
    ]
}

fn initiator_inputs() -> Named<InitiatorInput> {
    let mut inputs: Named<_> = bodies().into_iter().map(|(name, body)| (name, InitiatorInput::Frame(body))).collect();
    inputs.extend([
        ("merged, rests on 7", InitiatorInput::Merged { holds: None, revision: REVISION }),
        ("durable 6", InitiatorInput::Durable(REVISION - 1)),
        ("durable 7", InitiatorInput::Durable(REVISION)),
        ("durable 8", InitiatorInput::Durable(REVISION + 1)),
        ("deadline", InitiatorInput::Deadline),
        ("closed", InitiatorInput::Closed),
    ]);
    inputs
}

fn initiator_states() -> Vec<Vec<InitiatorInput>> {
    let frame = InitiatorInput::Frame(codec::encode(&answer()));
    let merged = InitiatorInput::Merged { holds: None, revision: REVISION };
    vec![
        vec![],
        vec![frame.clone()],
        vec![frame.clone(), merged.clone()],
        vec![frame, merged, InitiatorInput::Durable(REVISION)],
    ]
}

fn responder_inputs() -> Named<ResponderInput> {
    let decided = |disposition, revision| ResponderInput::Decided { terms: terms(disposition), revision };
    let mut inputs: Named<_> = bodies().into_iter().map(|(name, body)| (name, ResponderInput::Frame(body))).collect();
    inputs.extend([
        ("decided granted, rests on 6", decided(Disposition::Granted, REVISION - 1)),
        ("decided granted, rests on 7", decided(Disposition::Granted, REVISION)),
        ("decided granted, rests on 8", decided(Disposition::Granted, REVISION + 1)),
        ("decided refused, rests on 7", decided(Disposition::Refused, REVISION)),
        ("decided refused, rests on 8", decided(Disposition::Refused, REVISION + 1)),
        ("decided busy", decided(Disposition::Busy { retry_after_ms: 1 }, 0)),
        ("durable 6", ResponderInput::Durable(REVISION - 1)),
        ("durable 7", ResponderInput::Durable(REVISION)),
        ("durable 8", ResponderInput::Durable(REVISION + 1)),
        ("deadline", ResponderInput::Deadline),
        ("closed", ResponderInput::Closed),
    ]);
    inputs
}

fn responder_states() -> Vec<Vec<ResponderInput>> {
    let frame = ResponderInput::Frame(codec::encode(&offer()));
    let decided = ResponderInput::Decided { terms: terms(Disposition::Granted), revision: REVISION };
    let durable = ResponderInput::Durable(REVISION);
    let whole = [frame, decided.clone(), durable, decided, ResponderInput::Closed];
    (0..=whole.len()).map(|taken| whole[..taken].to_vec()).collect()
}

fn frame_name(frame: &[u8]) -> String {
    let body = &frame[4..];
    if let Ok(answer) = codec::decode::<Answer>(body, body.len()) {
        return format!("answer {:?}", answer.disposition);
    }
    codec::decode::<Receipt>(body, body.len()).map_or("another frame".to_owned(), |_| "receipt".to_owned())
}

fn initiator_output(output: InitiatorOutput) -> String {
    match output {
        InitiatorOutput::Merge(_) => "Merge".to_owned(),
        InitiatorOutput::AwaitDurable(revision) => format!("AwaitDurable {revision}"),
        InitiatorOutput::Finish { receipt, result } => {
            let sent = receipt.map_or(String::new(), |frame| format!("{}, ", frame_name(&frame)));
            let result = result.map(|Agreement { disposition, .. }| disposition);
            format!("Finish, {sent}{result:?}")
        }
    }
}

fn responder_output(output: ResponderOutput) -> String {
    match output {
        ResponderOutput::Merge(_) => "Merge".to_owned(),
        ResponderOutput::Reconsider => "Reconsider".to_owned(),
        ResponderOutput::AwaitDurable(revision) => format!("AwaitDurable {revision}"),
        ResponderOutput::Answer(frame) => format!("Send {}", frame_name(&frame)),
        ResponderOutput::Finish { answer, result } => {
            let sent = answer.map_or(String::new(), |frame| format!("{}, ", frame_name(&frame)));
            format!("Finish, {sent}{result:?}")
        }
    }
}

fn initiator_in(path: &[InitiatorInput]) -> Initiator {
    let (mut machine, _) = Initiator::start(parties(), &offer());
    for input in path {
        machine.handle(input.clone());
    }
    machine
}

fn responder_in(path: &[ResponderInput]) -> Responder {
    let mut machine = Responder::new(parties());
    for input in path {
        machine.handle(input.clone());
    }
    machine
}

fn heading(table: &mut String, state: &str, patience: impl std::fmt::Debug) {
    writeln!(table, "{state} (patience: {patience:?})").unwrap();
}

/// One line for each input; one for all frames together where they all end alike.
fn rows(table: &mut String, outcomes: &[(&str, String, &'static str)]) {
    let (frames, rest) = outcomes.split_at(bodies().len());
    let (_, output, next) = &frames[0];
    if frames.iter().all(|(_, o, n)| (o, n) == (output, next)) {
        row(table, "any frame", output, next);
    } else {
        frames.iter().for_each(|(name, output, next)| row(table, name, output, next));
    }
    rest.iter().for_each(|(name, output, next)| row(table, name, output, next));
}

fn row(table: &mut String, input: &str, output: &str, next: &str) {
    writeln!(table, "  {input:<32} | {output:<58} | {next}").unwrap();
}

#[test]
fn the_initiator_answers_every_input_in_every_state() {
    let mut table = String::new();
    for path in initiator_states() {
        let at = initiator_in(&path);
        heading(&mut table, at.state_name(), at.patience());
        let mut outcomes = Vec::new();
        for (name, input) in initiator_inputs() {
            let mut machine = initiator_in(&path);
            let output = machine.handle(input);
            assert_eq!(machine.is_finished(), matches!(output, InitiatorOutput::Finish { .. }), "{name}");
            let receipt = matches!(output, InitiatorOutput::Finish { receipt: Some(_), .. });
            assert!(!receipt || at.state_name() == "AwaitDurable", "a receipt from {}", at.state_name());
            outcomes.push((name, initiator_output(output), machine.state_name()));
        }
        rows(&mut table, &outcomes);
    }
    insta::assert_snapshot!(table);
}

#[test]
fn the_responder_answers_every_input_in_every_state() {
    let mut table = String::new();
    for path in responder_states() {
        let at = responder_in(&path);
        heading(&mut table, at.state_name(), at.patience());
        let mut outcomes = Vec::new();
        for (name, input) in responder_inputs() {
            let mut machine = responder_in(&path);
            let output = machine.handle(input);
            assert_eq!(machine.is_finished(), matches!(output, ResponderOutput::Finish { .. }), "{name}");
            let answered = matches!(output, ResponderOutput::Answer(_));
            assert!(!answered || at.state_name() == "AwaitReconsidered", "an answer from {}", at.state_name());
            outcomes.push((name, responder_output(output), machine.state_name()));
        }
        rows(&mut table, &outcomes);
    }
    insta::assert_snapshot!(table);
}
