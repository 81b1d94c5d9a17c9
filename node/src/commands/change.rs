//! `trust`, `reject`, `revoke`, `block`, `unblock`: what an operator decides.

use std::time::Duration;

use handfast_protocol::text::escaped;

use super::backend::{Backend, Call, operation_id};
use super::{Context, Verdict, network};
use crate::cli::{GrantArgs, PeerArgs, RevokeArgs, TrustArgs, TrustCommand};
use crate::control::api::{ApiError, ErrorCode, PeerRequest, RevokeReply, TrustReply, TrustRequest};
use crate::control::client::REPLY_TIMEOUT;
use crate::identity_file;
use crate::operations::TELL_PATIENCE;
use crate::output::counted;

pub(super) async fn trust(context: &Context<'_>, arguments: &TrustArgs) -> Result<Verdict, ApiError> {
    match arguments {
        TrustArgs { command: Some(TrustCommand::Undo(arguments)), .. } => network::undo(context, arguments).await,
        TrustArgs { grant: Some(arguments), .. } => grant(context, arguments).await,
        // The form of the command line excludes it.
        TrustArgs { .. } => Err(ApiError::new(ErrorCode::Usage, "Whom?").hint("handfast trust PEER")),
    }
}

async fn grant(context: &Context<'_>, arguments: &GrantArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "trust")?;
    let request = TrustRequest {
        peer: arguments.peer.peer.clone(),
        address: arguments.peer.address.clone(),
        alias: arguments.alias.clone(),
        note: arguments.note.clone(),
        for_ms: arguments.lasts_ms,
        scope: arguments.scope.clone(),
        wait_ms: arguments.wait,
        operation_id: Some(operation_id()),
    };
    let reply: TrustReply = match arguments.wait {
        Some(wait_ms) => {
            let timeout = REPLY_TIMEOUT.saturating_add(Duration::from_millis(wait_ms));
            let call = Call::Post { path: "/v1/trust", request: &request, timeout };
            backend.ask_node(call, "--wait needs one that talks to the peer").await?
        }
        None => {
            let call = Call::post("/v1/trust", &request);
            backend.ask(call, async |operator| operator.trust(&request).await).await?
        }
    };
    let me = identity_file::load(backend.directory.path()).ok().map(|key| key.peer_id().to_string());
    context.output.reply(&reply, |reply| trust_text(reply, me.as_deref()))?;
    if arguments.wait.is_some() && reply.durable && reply.state != "trusted" {
        return Ok(Verdict::But(ErrorCode::TimedOut));
    }
    Ok(Verdict::durable(reply.durable))
}

pub(super) async fn reject(context: &Context<'_>, arguments: &RevokeArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "reject")?;
    let request = revocation_of(arguments);
    let call = Call::post("/v1/reject", &request);
    let reply = backend.ask(call, async |operator| operator.reject(&request).await).await?;
    context.output.reply(&reply, |reply| revoke_text("Rejected", reply))?;
    Ok(Verdict::durable(reply.durable))
}

pub(super) async fn revoke(context: &Context<'_>, arguments: &RevokeArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "revoke")?;
    let request = revocation_of(arguments);
    let call = Call::post("/v1/revoke", &request);
    let reply = backend.ask(call, async |operator| operator.revoke(&request).await).await?;
    context.output.reply(&reply, |reply| revoke_text("Revoked", reply))?;
    Ok(Verdict::durable(reply.durable))
}

pub(super) async fn block(context: &Context<'_>, arguments: &PeerArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "block")?;
    let request = request_of(&arguments.peer);
    let call = Call::post("/v1/block", &request);
    let reply = backend.ask(call, async |operator| operator.block(&request).await).await?;
    context.output.reply(&reply, block_text)?;
    Ok(Verdict::durable(reply.durable))
}

pub(super) async fn unblock(context: &Context<'_>, arguments: &PeerArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "unblock")?;
    let request = request_of(&arguments.peer);
    let call = Call::post("/v1/unblock", &request);
    let reply = backend.ask(call, async |operator| operator.unblock(&request).await).await?;
    context.output.reply(&reply, unblock_text)?;
    Ok(Verdict::durable(reply.durable))
}

fn request_of(peer: &str) -> PeerRequest {
    PeerRequest { peer: peer.to_owned(), operation_id: Some(operation_id()), ..PeerRequest::default() }
}

/// People are told whether the peer knows.
fn revocation_of(arguments: &RevokeArgs) -> PeerRequest {
    let wait_ms = u64::try_from(TELL_PATIENCE.as_millis()).ok();
    PeerRequest { note: arguments.note.clone(), wait_ms, ..request_of(&arguments.peer) }
}

fn trust_text(reply: &TrustReply, me: Option<&str>) -> String {
    let peer = escaped(&reply.peer_id);
    let text = match reply.state.as_str() {
        "trusted" => format!("Trusted: {peer}."),
        "requested" => {
            let me = me.unwrap_or("ID (the one that `handfast id` shows here)");
            format!("Requested trust from {peer}.\nAsk the other side to run: handfast trust {me}")
        }
        "refused" => {
            format!("Granted, but {peer} refuses: it has revoked its own grant. Only its operator can lift that.")
        }
        state => format!("Granted {peer}; its state is {}.", escaped(state)),
    };
    with_durability(text, reply.durable, "The grant counts as soon as it is there.")
}

fn revoke_text(what: &str, reply: &RevokeReply) -> String {
    let sessions = match reply.sessions_closed {
        0 => String::new(),
        closed => format!(" {} closed.", counted(u64::from(closed), "session", "sessions")),
    };
    let told = if reply.delivered {
        "It has been told, and has it on its disk."
    } else {
        "It will be told as soon as it can be reached."
    };
    let text = format!("{what}: {}.{sessions} {told}", escaped(&reply.peer_id));
    with_durability(text, reply.durable, "It is in force, but a crash now would undo it.")
}

fn block_text(reply: &TrustReply) -> String {
    let text = format!("Blocked: {}. `handfast unblock` lifts it.", escaped(&reply.peer_id));
    with_durability(text, reply.durable, "It is in force, but a crash now would undo it.")
}

fn unblock_text(reply: &TrustReply) -> String {
    let text = format!("No longer blocked: {}; its state is {}.", escaped(&reply.peer_id), escaped(&reply.state));
    with_durability(text, reply.durable, "It is in force, but a crash now would undo it.")
}

pub(super) fn with_durability(text: String, durable: bool, otherwise: &str) -> String {
    if durable { text } else { format!("{text}\nThe disk has not confirmed it. {otherwise} See: handfast status") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusted(state: &str, durable: bool) -> TrustReply {
        TrustReply { peer_id: "hf1peer".into(), state: state.into(), revision: 3, durable }
    }

    #[test]
    fn trust_says_what_happened_and_what_to_do_next() {
        let requested = trust_text(&trusted("requested", true), Some("hf1me"));
        assert_eq!(requested, "Requested trust from hf1peer.\nAsk the other side to run: handfast trust hf1me");
        assert_eq!(trust_text(&trusted("trusted", true), None), "Trusted: hf1peer.");
        assert!(trust_text(&trusted("refused", true), None).contains("Only its operator"));
        assert!(trust_text(&trusted("trusted", false), None).contains("has not confirmed"));
    }

    #[test]
    fn revoke_says_who_knows() {
        let mut reply = RevokeReply {
            peer_id: "hf1peer".into(),
            state: "revoked".into(),
            revision: 4,
            durable: true,
            sessions_closed: 1,
            delivered: false,
        };
        let text = "Revoked: hf1peer. 1 session closed. It will be told as soon as it can be reached.";
        assert_eq!(revoke_text("Revoked", &reply), text);
        reply.delivered = true;
        reply.sessions_closed = 0;
        let text = "Rejected: hf1peer. It has been told, and has it on its disk.";
        assert_eq!(revoke_text("Rejected", &reply), text);
        reply.durable = false;
        assert!(revoke_text("Revoked", &reply).contains("a crash now would undo it"));
    }

    #[test]
    fn only_what_is_on_the_disk_is_done() {
        assert_eq!(Verdict::durable(true).exit_code(), 0);
        assert_eq!(Verdict::durable(false).exit_code(), 9);
    }
}
