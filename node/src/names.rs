//! Whom an operator means: a whole id, an alias, or the beginning of an id. And the texts that operators type.

use handfast_protocol::identity::IdentityFault;
use handfast_protocol::{Note, PeerId};
use handfast_trust::{Store, TrustRecord};

use crate::control::api::{ApiError, ErrorCode};

/// Characters after `hf1` that are enough to look at a peer, and to change something: 20 characters are 100 bits, more
/// than anybody can grind a key for.
const PREFIX_TO_LOOK_MIN: usize = 8;
const PREFIX_TO_CHANGE_MIN: usize = 20;
/// Characters of a whole id after `hf1`.
const WHOLE_ID: usize = 58;

/// What the id is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Nothing changes: a short prefix will do.
    Look,
    /// Something is decided.
    Change,
}

/// The peer that `text` names. For all but whole ids every record is looked at, off this thread; how many do that at once
/// is bounded by who may ask at once.
///
/// # Errors
/// As [`look_up`].
pub async fn resolve(known: &Store<TrustRecord>, text: &str, purpose: Purpose) -> Result<PeerId, ApiError> {
    if let Ok(peer) = text.parse::<PeerId>() {
        return Ok(peer);
    }
    let (known, text) = (known.clone(), text.to_owned());
    aside(move || look_up(&known, &text, purpose)).await
}

async fn aside<T: Send + 'static>(look: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    let looked = tokio::task::spawn_blocking(look).await;
    looked.unwrap_or_else(|_| Err(ApiError::new(ErrorCode::Failure, "The look-up was cut off.")))
}

/// As [`resolve`], in this thread.
///
/// # Errors
/// `Usage` for a bad id or a prefix that is too short or ambiguous, `NotFound` for an alias or prefix of nobody.
pub fn look_up(known: &Store<TrustRecord>, text: &str, purpose: Purpose) -> Result<PeerId, ApiError> {
    let fault = match text.parse::<PeerId>() {
        Ok(peer) => return Ok(peer),
        Err(fault) => fault,
    };
    let aliased = find(known, |_, alias| alias == Some(text));
    if let [peer] = aliased[..] {
        return Ok(peer);
    }
    let lower = text.to_ascii_lowercase();
    match lower.strip_prefix("hf1") {
        Some(prefix) if prefix.len() < WHOLE_ID => by_prefix(known, &lower, prefix.len(), purpose),
        _ if fault == IdentityFault::NotAnId => {
            Err(ApiError::new(ErrorCode::NotFound, format!("No peer has the alias `{}`.", shown(text)))
                .hint("`handfast peers` lists ids and aliases; an id begins with hf1"))
        }
        _ => Err(ApiError::new(ErrorCode::Usage, format!("`{}` is not a peer: {fault}.", shown(text)))
            .hint("copy the whole id; `handfast id` prints a node's own")),
    }
}

fn by_prefix(known: &Store<TrustRecord>, prefix: &str, len: usize, purpose: Purpose) -> Result<PeerId, ApiError> {
    let min = match purpose {
        Purpose::Look => PREFIX_TO_LOOK_MIN,
        Purpose::Change => PREFIX_TO_CHANGE_MIN,
    };
    if len < min {
        let message = format!("The id `{prefix}` is too short: {min} characters after hf1 are needed here.");
        return Err(ApiError::new(ErrorCode::Usage, message).hint("give the whole id, or an alias"));
    }
    match find(known, |peer, _| peer.to_string().starts_with(prefix))[..] {
        [peer] => Ok(peer),
        [] => Err(ApiError::new(ErrorCode::NotFound, format!("No known peer's id begins with `{prefix}`."))
            .hint("`handfast peers` lists who is known")),
        [first, second, ..] => {
            let message = format!("`{prefix}` is ambiguous: {first} and {second} begin with it.");
            Err(ApiError::new(ErrorCode::Usage, message).hint("give more characters"))
        }
    }
}

fn find(known: &Store<TrustRecord>, matches: impl Fn(&PeerId, Option<&str>) -> bool) -> Vec<PeerId> {
    let records = known.walk().flatten();
    records
        .filter(|(peer, record)| matches(peer, record.alias.as_ref().map(Note::as_str)))
        .map(|(peer, _)| peer)
        .take(2)
        .collect()
}

fn shown(text: &str) -> String {
    handfast_protocol::text::escaped(&text.chars().take(80).collect::<String>())
}

/// A note as an operator types it.
///
/// # Errors
/// `Usage`, with what is wrong.
pub fn note(text: &str) -> Result<Note, ApiError> {
    Note::new(text).map_err(|fault| ApiError::new(ErrorCode::Usage, format!("--note: {fault}.")))
}

/// An alias that nobody else has and that cannot be mistaken for an id. Looks at every record, off this thread.
///
/// # Errors
/// `Usage`, with what is wrong.
pub async fn new_alias(known: &Store<TrustRecord>, peer: PeerId, text: &str) -> Result<Note, ApiError> {
    let usage = |what: String| ApiError::new(ErrorCode::Usage, format!("--alias: {what}."));
    let alias = Note::new(text).map_err(|fault| usage(fault.to_string()))?;
    let lower = text.to_ascii_lowercase();
    let like_an_id = ["hf1", "hfnet1", "hfinv1", "did:"].iter().any(|prefix| lower.starts_with(prefix));
    if text.is_empty() || text.contains(['@', ' ']) || like_an_id || text.parse::<PeerId>().is_ok() {
        return Err(usage("an alias is not empty, has no space and no `@`, and does not look like an id".to_owned()));
    }
    let known = known.clone();
    aside(move || match find(&known, |other, taken| *other != peer && taken == Some(alias.as_str()))[..] {
        [] => Ok(alias),
        [other, ..] => Err(usage(format!("{} has this alias already", other.short()))),
    })
    .await
}

/// `HOST:PORT` or `[V6]:PORT`, as typed. Names are resolved when they are dialled.
///
/// # Errors
/// `Usage`.
pub fn host_and_port(text: &str) -> Result<String, ApiError> {
    let bad = || {
        ApiError::new(ErrorCode::Usage, format!("`{}` is not an address.", shown(text)))
            .hint("an address is HOST:PORT, for example 192.0.2.7:4433 or [2001:db8::7]:4433")
    };
    if text.parse::<std::net::SocketAddr>().is_ok_and(|at| at.port() != 0) {
        return Ok(text.to_owned());
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let host_is_plain = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    match port.parse::<u16>() {
        Ok(port) if port != 0 && host_is_plain => Ok(text.to_owned()),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_before_they_are_kept() {
        for good in ["192.0.2.7:4433", "[2001:db8::7]:4433", "node-1.example.org:1"] {
            assert_eq!(host_and_port(good).as_deref(), Ok(good));
        }
        for bad in ["", "host", "host:", "host:0", "host:99999", ":1", "a b:1", "2001:db8::7:x", "192.0.2.7:0"] {
            assert_eq!(host_and_port(bad).map_err(|e| e.code), Err(ErrorCode::Usage), "{bad}");
        }
    }
}
