//! What is asked and answered about networks, invites and joins.

use serde::{Deserialize, Serialize};

/// `POST /v1/network/create`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkCreateRequest {
    pub name: String,
    #[serde(default)]
    pub operation_id: Option<String>,
}

/// `POST /v1/network/leave`, `/v1/network/expel` and `/v1/network/readmit`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    /// Name here, or id; absent: the only one.
    #[serde(default)]
    pub network: Option<String>,
    /// Only for expel and readmit.
    #[serde(default)]
    pub peer: Option<String>,
    #[serde(default)]
    pub operation_id: Option<String>,
}

/// Reply to `network create` and `network leave`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReply {
    pub network: String,
    pub name: String,
    pub revision: u64,
    pub durable: bool,
}

/// Reply to `network expel` and `network readmit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReply {
    pub network: String,
    pub peer_id: String,
    /// What the membership is worth now.
    pub standing: String,
    pub revision: u64,
    pub durable: bool,
    pub sessions_closed: u32,
}

/// `GET /v1/networks`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworksReply {
    pub networks: Vec<NetworkRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRow {
    pub network: String,
    pub name: String,
    /// Whether the key of the authority is here.
    pub authority: bool,
    /// `member` or `sponsor`; null when our certificate does not count.
    pub role: Option<String>,
    /// What our membership is worth.
    pub standing: String,
    /// Until when our certificate lasts.
    pub until: Option<String>,
    pub joined_at: String,
    /// Members whose membership counts, without this node.
    pub members: u64,
    /// Those of them with whom trust is mutual.
    pub trusted: u64,
    /// The roster has not been read to its end yet: the node goes on by itself.
    pub joining: bool,
    /// Whether its rule grants.
    pub rule: bool,
}

/// `GET /v1/network/members?network=N`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersReply {
    pub network: String,
    pub members: Vec<MemberRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    pub peer_id: String,
    pub short: String,
    /// `member`, `expelled`, `sponsor_expelled`, `ended`.
    pub standing: String,
    /// `member` or `sponsor`, where it counts.
    pub role: Option<String>,
    /// Who let it in; null: the authority.
    pub sponsor: Option<String>,
    pub until: Option<String>,
    /// Of the trust between it and this node; null for this node itself.
    pub state: Option<String>,
}

/// `POST /v1/invite`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    #[serde(default)]
    pub network: Option<String>,
    pub uses: u32,
    /// How long it lasts, in milliseconds.
    pub for_ms: u64,
    #[serde(default)]
    pub sponsor: bool,
    #[serde(default)]
    pub operation_id: Option<String>,
}

/// Reply to `invite`. It holds the secret: it is not logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteReply {
    pub ticket: String,
    pub invite: String,
    pub network: String,
    pub uses: u32,
    pub expires_at: String,
    pub addresses: Vec<String>,
    pub revision: u64,
    pub durable: bool,
}

impl std::fmt::Debug for InviteReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InviteReply({})", self.invite)
    }
}

/// `GET /v1/invites`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvitesReply {
    pub invites: Vec<InviteRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteRow {
    pub invite: String,
    pub network: String,
    pub uses: u32,
    pub used: u32,
    pub made_at: String,
    pub expires_at: String,
    /// `open`, `exhausted`, `expired` or `revoked`.
    pub state: String,
}

/// `POST /v1/invite/revoke`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRevokeRequest {
    pub invite: String,
    #[serde(default)]
    pub operation_id: Option<String>,
}

/// Reply to `invite revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteRevokeReply {
    pub invite: String,
    pub used: u32,
    pub revision: u64,
    pub durable: bool,
}

/// `POST /v1/join`. It holds the secret: it is not logged.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub ticket: String,
    #[serde(default)]
    pub operation_id: Option<String>,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinRequest(..)")
    }
}

/// Reply to `join`, and `GET /v1/join?network=N`: how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    pub network: String,
    pub name: String,
    /// Members, without this node.
    pub members: u64,
    /// Those with whom trust is mutual.
    pub trusted: u64,
    /// Those that are tried for the first time.
    pub under_way: u64,
    /// Those with whom it is not, and why not: the first of them.
    pub failed: Vec<JoinFailure>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinFailure {
    pub peer_id: String,
    pub short: String,
    pub why: String,
}

/// `POST /v1/undo`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    /// `network:NAME`, `allow` or `accept_all`.
    pub rule: String,
    /// Only what it granted within so many milliseconds.
    pub since_ms: u64,
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub operation_id: Option<String>,
}

/// Reply to `trust undo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoReply {
    pub rule: String,
    pub dry_run: bool,
    pub undone: Vec<UndoRow>,
    pub durable: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoRow {
    pub peer_id: String,
    pub short: String,
    /// The state after it; of a dry run the state now.
    pub state: String,
}
