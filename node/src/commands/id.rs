//! `id`: who this node is. Needs nothing but `identity.pem`.

use super::{Context, Verdict};
use crate::control::api::{ApiError, IdReply};
use crate::data_dir::Access;
use crate::identity_file;

pub(super) fn id(context: &Context<'_>) -> Result<Verdict, ApiError> {
    let directory = context.directory(Access::Own)?;
    let peer = identity_file::load(directory.path())?.peer_id();
    let reply = IdReply { peer_id: peer.to_string(), short: peer.short(), hex: peer.to_hex(), did: peer.to_did() };
    context.output.reply(&reply, id_text)?;
    Ok(Verdict::Done)
}

fn id_text(reply: &IdReply) -> String {
    format!("{}\n\nhex: {}\ndid: {}", reply.peer_id, reply.hex, reply.did)
}
