//! `network`, `invite` and `trust undo`: what an operator decides about networks, and gets to see of them.

use handfast_protocol::text::escaped;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;

use super::backend::{Backend, Call, operation_id, query_value};
use super::change::with_durability;
use super::{Context, Verdict};
use crate::cli::{
    InviteArgs, InviteCommand, InviteRevokeArgs, NetworkCommand, NetworkPeerArgs, NewInviteArgs, UndoArgs,
};
use crate::control::api::*;
use crate::output::{counted, or_dash, table};

pub(super) async fn network(context: &Context<'_>, command: &NetworkCommand) -> Result<Verdict, ApiError> {
    match command {
        NetworkCommand::Create(arguments) => {
            let mut backend = Backend::new(context, "network")?;
            let request = NetworkCreateRequest { name: arguments.name.clone(), operation_id: Some(operation_id()) };
            let call = Call::post("/v1/network/create", &request);
            let reply = backend.ask(call, async |operator| operator.network_create(&request).await).await?;
            context.output.reply(&reply, created_text)?;
            Ok(Verdict::durable(reply.durable))
        }
        NetworkCommand::List => {
            let mut backend = Backend::new(context, "network")?;
            let reply = backend.ask(Call::get("/v1/networks"), async |operator| Ok(operator.network_list())).await?;
            context.output.reply(&reply, networks_text)?;
            Ok(Verdict::Done)
        }
        NetworkCommand::Leave(arguments) => {
            let mut backend = Backend::new(context, "network")?;
            let request = request_of(arguments.network.as_deref(), None);
            let call = Call::post("/v1/network/leave", &request);
            let reply: NetworkReply =
                backend.ask(call, async |operator| operator.network_leave(&request).await).await?;
            context.output.reply(&reply, left_text)?;
            Ok(Verdict::durable(reply.durable))
        }
        NetworkCommand::Members(arguments) => {
            let mut backend = Backend::new(context, "network")?;
            let network = arguments.network.as_deref();
            let query = network.map(|network| format!("?network={}", query_value(network))).unwrap_or_default();
            let call = Call::get(format!("/v1/network/members{query}"));
            let reply = backend.ask(call, async |operator| operator.network_members(network)).await?;
            context.output.reply(&reply, members_text)?;
            Ok(Verdict::Done)
        }
        NetworkCommand::Expel(arguments) => notice(context, arguments, true).await,
        NetworkCommand::Readmit(arguments) => notice(context, arguments, false).await,
    }
}

async fn notice(context: &Context<'_>, arguments: &NetworkPeerArgs, expel: bool) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "network")?;
    let request = request_of(arguments.network.as_deref(), Some(&arguments.peer));
    let reply = if expel {
        let call = Call::post("/v1/network/expel", &request);
        backend.ask(call, async |operator| operator.network_expel(&request).await).await?
    } else {
        let call = Call::post("/v1/network/readmit", &request);
        backend.ask(call, async |operator| operator.network_readmit(&request).await).await?
    };
    context.output.reply(&reply, |reply| notice_text(reply, expel))?;
    Ok(Verdict::durable(reply.durable))
}

pub(super) async fn invite(context: &Context<'_>, arguments: &InviteArgs) -> Result<Verdict, ApiError> {
    match &arguments.command {
        None => new_invite(context, &arguments.invite).await,
        Some(InviteCommand::List) => {
            let mut backend = Backend::new(context, "invite")?;
            let reply = backend.ask(Call::get("/v1/invites"), async |operator| Ok(operator.invite_list())).await?;
            context.output.reply(&reply, invites_text)?;
            Ok(Verdict::Done)
        }
        Some(InviteCommand::Revoke(InviteRevokeArgs { invite })) => {
            let mut backend = Backend::new(context, "invite")?;
            let request = InviteRevokeRequest { invite: invite.clone(), operation_id: Some(operation_id()) };
            let call = Call::post("/v1/invite/revoke", &request);
            let reply: InviteRevokeReply =
                backend.ask(call, async |operator| operator.invite_revoke(&request).await).await?;
            context.output.reply(&reply, invite_revoked_text)?;
            Ok(Verdict::durable(reply.durable))
        }
    }
}

async fn new_invite(context: &Context<'_>, arguments: &NewInviteArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "invite")?;
    let request = InviteRequest {
        network: arguments.network.clone(),
        uses: arguments.uses,
        for_ms: arguments.lasts_ms,
        sponsor: arguments.sponsor,
        operation_id: Some(operation_id()),
    };
    let call = Call::post("/v1/invite", &request);
    let reply: InviteReply = backend.ask(call, async |operator| operator.invite(&request).await).await?;
    context.output.reply(&reply, |reply| reply.ticket.clone())?;
    context.output.aside(&format!(
        "It lets {} in until {}, at {}. Elsewhere: handfast join TICKET",
        counted(u64::from(reply.uses), "key", "keys"),
        escaped(&reply.expires_at),
        escaped(&reply.addresses.join(", "))
    ));
    if arguments.qr {
        context.output.aside(&qr_text(&reply.ticket)?);
    }
    Ok(Verdict::durable(reply.durable))
}

/// A ticket in capitals is the same ticket, in the denser alphabet of QR codes.
fn qr_text(ticket: &str) -> Result<String, ApiError> {
    let code = QrCode::new(ticket.to_ascii_uppercase()).map_err(|error| {
        ApiError::new(ErrorCode::Failure, format!("The ticket cannot be drawn as a QR code: {error}."))
    })?;
    // Drawn for light characters on a dark ground, as most terminals are.
    Ok(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).quiet_zone(true).build())
}

pub(super) async fn undo(context: &Context<'_>, arguments: &UndoArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "trust")?;
    let request = UndoRequest {
        rule: arguments.rule.clone(),
        since_ms: arguments.since,
        dry_run: arguments.dry_run,
        operation_id: Some(operation_id()),
    };
    let call = Call::post("/v1/undo", &request);
    let reply: UndoReply = backend.ask(call, async |operator| operator.undo(&request).await).await?;
    context.output.reply(&reply, undo_text)?;
    Ok(Verdict::durable(reply.durable))
}

fn request_of(network: Option<&str>, peer: Option<&str>) -> NetworkRequest {
    let owned = |text: &str| text.to_owned();
    NetworkRequest { network: network.map(owned), peer: peer.map(owned), operation_id: Some(operation_id()) }
}

fn created_text(reply: &NetworkReply) -> String {
    let (name, network) = (escaped(&reply.name), escaped(&reply.network));
    let text = format!(
        "Made the network {name}: {network}\nKeep a copy of network-{network}.pem: only with it can members be \
         expelled.\nInvite others: handfast invite --network {name}"
    );
    with_durability(text, reply.durable, "A crash now would undo it.")
}

fn left_text(reply: &NetworkReply) -> String {
    let text = format!("Left the network {}. What its rule granted does not count any more.", escaped(&reply.name));
    with_durability(text, reply.durable, "It is in force, but a crash now would undo it.")
}

fn networks_text(reply: &NetworksReply) -> String {
    if reply.networks.is_empty() {
        return "No networks. Found one: handfast network create NAME. Join one: handfast join TICKET".into();
    }
    let rows = reply.networks.iter().map(|row| {
        let role = match (row.authority, &row.role) {
            (true, _) => "authority".to_owned(),
            (false, Some(role)) => role.clone(),
            (false, None) => row.standing.clone(),
        };
        let members = format!("{} of {}", row.trusted, row.members);
        let state = if row.joining { "joining" } else { "joined" };
        vec![row.name.clone(), role, members, state.into(), or_dash(row.until.as_deref()), row.network.clone()]
    });
    table(&["NAME", "ROLE", "TRUSTED", "STATE", "CERTIFICATE UNTIL", "NETWORK"], &["NETWORK", "NAME"], rows)
}

fn members_text(reply: &MembersReply) -> String {
    let rows = reply.members.iter().map(|row| {
        let role = row.role.clone().unwrap_or_else(|| row.standing.clone());
        let state = row.state.as_deref().unwrap_or("this node");
        vec![row.peer_id.clone(), role, state.into(), or_dash(row.until.as_deref())]
    });
    table(&["PEER", "ROLE", "STATE", "CERTIFICATE UNTIL"], &["PEER"], rows)
}

fn notice_text(reply: &MemberReply, expel: bool) -> String {
    let peer = escaped(&reply.peer_id);
    let text = if expel {
        let closed = match reply.sessions_closed {
            0 => String::new(),
            closed => format!(" {} closed.", counted(u64::from(closed), "session", "sessions")),
        };
        format!("Expelled: {peer}.{closed} Every member learns of it at its next contact. `readmit` takes it back.")
    } else {
        format!("Readmitted: {peer}; its membership is worth: {}.", escaped(&reply.standing))
    };
    with_durability(text, reply.durable, "It is in force, but a crash now would undo it.")
}

fn invites_text(reply: &InvitesReply) -> String {
    if reply.invites.is_empty() {
        return "No invites. Make one: handfast invite".into();
    }
    let rows = reply.invites.iter().map(|row| {
        let used = format!("{} of {}", row.used, row.uses);
        vec![row.invite.clone(), row.state.clone(), used, row.expires_at.clone(), row.network.clone()]
    });
    table(&["INVITE", "STATE", "USED", "UNTIL", "NETWORK"], &["INVITE"], rows)
}

fn invite_revoked_text(reply: &InviteRevokeReply) -> String {
    let text = format!(
        "Took the invite {} back. {} had joined with it, and stays.",
        escaped(&reply.invite),
        counted(u64::from(reply.used), "key", "keys")
    );
    with_durability(text, reply.durable, "It is in force, but a crash now would undo it.")
}

fn undo_text(reply: &UndoReply) -> String {
    let rule = escaped(&reply.rule);
    if reply.undone.is_empty() {
        return format!("Nothing that the rule {rule} granted in that time still stands.");
    }
    let grants = counted(reply.undone.len() as u64, "grant", "grants");
    let rows = reply.undone.iter().map(|row| vec![row.peer_id.clone(), row.state.clone()]);
    let mut text = table(&["PEER", "STATE"], &["PEER"], rows);
    text.push_str(&match reply.dry_run {
        true => format!("\n{grants} of the rule {rule} would be revoked. Nothing was changed."),
        false => format!("\n{grants} of the rule {rule} revoked."),
    });
    with_durability(text, reply.durable, "It is in force, but a crash now would undo it.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_of_any_length_can_be_drawn() {
        for length in [60, 970] {
            let drawn = qr_text(&format!("hfinv1{}", "q".repeat(length))).unwrap();
            let lines: Vec<&str> = drawn.lines().collect();
            assert!(lines.len() > 10 && lines.iter().all(|line| line.chars().count() == lines[0].chars().count()));
        }
    }

    #[test]
    fn undoing_says_whether_anything_was_changed() {
        let row = UndoRow { peer_id: "hf1a".into(), short: "hf1a".into(), state: "revoked".into() };
        let mut reply = UndoReply { rule: "allow".into(), dry_run: true, undone: vec![row], durable: true };
        assert!(undo_text(&reply).ends_with("1 grant of the rule allow would be revoked. Nothing was changed."));
        reply.dry_run = false;
        assert!(undo_text(&reply).ends_with("1 grant of the rule allow revoked."));
        reply.undone.clear();
        assert!(undo_text(&reply).starts_with("Nothing"));
    }
}
