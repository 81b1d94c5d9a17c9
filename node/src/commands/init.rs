//! `init`: makes an identity and empty stores, or adopts a key.

use super::lock::{Patience, acquire};
use super::{Context, Verdict, block_on};
use crate::cli::InitArgs;
use crate::control::api::{ApiError, InitReply};
use crate::data_dir::DataDir;
use crate::initialise::{initialise, is_complete, present};

pub(super) fn init(context: &Context<'_>, arguments: &InitArgs) -> Result<Verdict, ApiError> {
    let directory = DataDir::create(&context.path()?)?;
    let identity = arguments.identity.as_deref();
    let reply = match present(&directory, identity)? {
        Some(present) => present,
        None => {
            let lock = block_on(acquire(&directory, "init", Patience::Command))?;
            initialise(&directory, identity, &lock)?
        }
    };
    context.output.reply(&reply, init_text)?;
    Ok(Verdict::Done)
}

/// Makes what a node needs, if it is not there: for `run`.
pub(super) fn init_if_needed(directory: &DataDir) -> Result<Option<InitReply>, ApiError> {
    if is_complete(directory)? {
        return Ok(None);
    }
    let lock = block_on(acquire(directory, "init", Patience::Node))?;
    initialise(directory, None, &lock).map(Some)
}

fn init_text(reply: &InitReply) -> String {
    if reply.created {
        format!("Made the identity {}\nin {}.\nStart the node: handfast run", reply.peer_id, reply.data_dir)
    } else {
        format!("The identity {} is there already,\nin {}. Nothing was changed.", reply.peer_id, reply.data_dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_says_what_comes_next() {
        let mut reply = InitReply { peer_id: "hf1me".into(), data_dir: "/d".into(), created: true };
        assert!(init_text(&reply).ends_with("Start the node: handfast run"));
        reply.created = false;
        assert!(init_text(&reply).ends_with("Nothing was changed."));
    }
}
