//! What an operator may do with networks: found, look, invite, join, leave, expel; and undo what a rule granted.
//!
//! Invariants: ACK as everywhere. A key of an authority is durable before the network that it founds is. The secret of
//! an invite is in the reply alone; what is stored is its name.

use handfast_protocol::join::JoinFault;
use handfast_protocol::{
    Address, InviteId, InviteSecret, JoinRefusal, NetworkId, NetworkName, PeerId, Role, Ticket, UnixMillis,
};
use handfast_trust::networks::{Invitation, InviteRecord};
use handfast_trust::trust_record::{Rule, TrustState};
use handfast_trust::{NetworkRefusal, Revision, Standing};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::{Live, Operator, Who, reached_in_time, unreached};
use crate::clock::{rfc3339, unix_now};
use crate::control::api::*;
use crate::engine::ContactFault;
use crate::join::JoinError;
use crate::names::Purpose;
use crate::{authority_file, entropy, identity_file, reachable};

/// Digits of an invite's name that are shown, and that are enough to name it.
const INVITE_DIGITS: usize = 16;
const INVITE_DIGITS_MIN: usize = 8;

impl Operator {
    async fn networks_durable(&self, revision: Revision) -> bool {
        reached_in_time(self.networks.durable(), revision).await
    }

    /// The network that is meant: by name or id, or the only one.
    fn network(&self, wanted: Option<&str>) -> Result<(NetworkId, String), ApiError> {
        let networks = self.networks.members().networks();
        let named = |network: &NetworkId, name: &NetworkName| (*network, name.as_str().to_owned());
        let Some(wanted) = wanted else {
            return match &networks[..] {
                [(network, record)] => Ok(named(network, &record.name)),
                [] => Err(refused(NetworkRefusal::NotHere)),
                several => {
                    let names: Vec<&str> = several.iter().map(|(_, record)| record.name.as_str()).collect();
                    let error = ApiError::new(ErrorCode::Usage, "This node is in several networks: say which.");
                    Err(error.hint(format!("they are {}", names.join(", "))))
                }
            };
        };
        let id = wanted.parse::<NetworkId>().ok();
        let found = networks.iter().find(|(network, record)| id == Some(*network) || record.name.as_str() == wanted);
        found.map(|(network, record)| named(network, &record.name)).ok_or_else(|| {
            let shown = handfast_protocol::text::escaped(&wanted.chars().take(80).collect::<String>());
            ApiError::new(ErrorCode::NotFound, format!("This node is in no network `{shown}`."))
                .hint("`handfast network list` shows the networks")
        })
    }

    /// Founds a network.
    ///
    /// # Errors
    /// `Usage` for a bad name, `Refused` for one that is taken, and whatever keeps the key from being written.
    pub async fn network_create(&self, request: &NetworkCreateRequest) -> Result<NetworkReply, ApiError> {
        let name = NetworkName::new(&request.name)
            .map_err(|fault| ApiError::new(ErrorCode::Usage, format!("The name of the network: {fault}.")))?;
        if self.networks.by_name(name.as_str()).is_some() {
            return Err(refused(NetworkRefusal::NameTaken));
        }
        let authority = identity_file::generate()?;
        let network = authority.network_id();
        let (directory, key) = (self.data_dir.clone(), authority.clone());
        let written = tokio::task::spawn_blocking(move || authority_file::create(&directory, &key)).await;
        written.map_err(|_| ApiError::new(ErrorCode::Failure, "Writing the key was cut off."))??;
        let changed = self.networks.create(authority, name.clone(), unix_now()).map_err(refused)?;
        self.follow(&changed.affected);
        let durable = self.networks_durable(changed.revision).await;
        let name = name.as_str().to_owned();
        Ok(NetworkReply { network: network.to_string(), name, revision: changed.revision.0, durable })
    }

    /// Leaves a network.
    ///
    /// # Errors
    /// `NotFound` for one that this node is not in.
    pub async fn network_leave(&self, request: &NetworkRequest) -> Result<NetworkReply, ApiError> {
        let (network, name) = self.network(request.network.as_deref())?;
        let changed = self.networks.leave(network).map_err(refused)?;
        self.follow(&changed.affected);
        let durable = self.networks_durable(changed.revision).await;
        Ok(NetworkReply { network: network.to_string(), name, revision: changed.revision.0, durable })
    }

    /// Expels a member: cuts at once, answers when durable, and passes it on to whoever has a session.
    ///
    /// # Errors
    /// `NotFound` for a network or a peer that is not known, `Refused` where the authority's key is not here.
    pub async fn network_expel(&self, request: &NetworkRequest) -> Result<MemberReply, ApiError> {
        self.give_notice(request, true).await
    }

    /// Takes an expulsion back.
    ///
    /// # Errors
    /// As [`Operator::network_expel`].
    pub async fn network_readmit(&self, request: &NetworkRequest) -> Result<MemberReply, ApiError> {
        self.give_notice(request, false).await
    }

    async fn give_notice(&self, request: &NetworkRequest, expel: bool) -> Result<MemberReply, ApiError> {
        let (network, _) = self.network(request.network.as_deref())?;
        let peer = request.peer.as_deref().ok_or_else(|| ApiError::new(ErrorCode::Usage, "Which peer?"))?;
        let peer = self.peer(peer, Purpose::Change).await?;
        if peer == self.networks.me() {
            let error = ApiError::new(ErrorCode::Refused, "This is this node's own id.");
            return Err(error.hint("`handfast network leave` leaves a network"));
        }
        let now = unix_now();
        let changed = match expel {
            true => self.networks.expel(network, peer, now),
            false => self.networks.readmit(network, peer, now),
        };
        let changed = changed.map_err(refused)?;
        let sessions_closed = self.follow(&changed.affected);
        let durable = self.networks_durable(changed.revision).await;
        if let Some(live) = self.live() {
            live.data.spawn(live.engine.clone().tell(network, None, None));
        }
        Ok(MemberReply {
            network: network.to_string(),
            peer_id: peer.to_string(),
            standing: self.networks.members().standing(&network, &peer, now).as_str().to_owned(),
            revision: changed.revision.0,
            durable,
            sessions_closed,
        })
    }

    /// What a change of memberships means for trust; with a node it cuts too.
    fn follow(&self, affected: &[PeerId]) -> u32 {
        match &self.who {
            Who::Live(live) => live.engine.membership_changed(affected),
            Who::Alone { book, .. } => {
                drop(book.reconcile(affected, unix_now()));
                0
            }
        }
    }

    /// Whether this node is in any network.
    pub fn is_in_a_network(&self) -> bool {
        !self.networks.members().networks().is_empty()
    }

    /// The networks of this node.
    pub fn network_list(&self) -> NetworksReply {
        let now = unix_now();
        let row = |(network, record): (NetworkId, std::sync::Arc<handfast_trust::networks::NetworkRecord>)| {
            let others = self.networks.roster(network, now).into_iter().filter(|peer| *peer != self.networks.me());
            let (mut members, mut trusted) = (0, 0);
            for peer in others {
                members += 1;
                trusted += u64::from(self.book().state(&peer, now) == TrustState::Trusted);
            }
            let standing = self.networks.members().standing(&network, &self.networks.me(), now);
            NetworkRow {
                network: network.to_string(),
                name: record.name.as_str().to_owned(),
                authority: record.authority,
                role: role_of(&standing),
                standing: standing.as_str().to_owned(),
                until: until_of(&standing),
                joined_at: rfc3339(record.joined_at),
                members,
                trusted,
                joining: record.joining.is_some(),
                rule: record.rule,
            }
        };
        NetworksReply { networks: self.networks.members().networks().into_iter().map(row).collect() }
    }

    /// The members of a network, with what each membership is worth.
    ///
    /// # Errors
    /// `NotFound` for a network that this node is not in.
    pub fn network_members(&self, network: Option<&str>) -> Result<MembersReply, ApiError> {
        let (network, _) = self.network(network)?;
        let now = unix_now();
        let row = |(peer, standing): (PeerId, Standing)| MemberRow {
            peer_id: peer.to_string(),
            short: peer.short(),
            standing: standing.as_str().to_owned(),
            role: role_of(&standing),
            sponsor: match standing {
                Standing::Member { sponsor, .. } => sponsor.map(|sponsor| sponsor.to_string()),
                _ => None,
            },
            until: until_of(&standing),
            state: (peer != self.networks.me()).then(|| self.book().state(&peer, now).to_string()),
        };
        let members = self.networks.all_members(network, now).into_iter().map(row).collect();
        Ok(MembersReply { network: network.to_string(), members })
    }

    /// Makes an invite, and its ticket.
    ///
    /// # Errors
    /// `NotFound`, `Refused` where this node may not let anybody in or nobody could reach it.
    pub async fn invite(&self, request: &InviteRequest) -> Result<InviteReply, ApiError> {
        let (network, name) = self.network(request.network.as_deref())?;
        let name = NetworkName::new(&name).map_err(|_| refused(NetworkRefusal::NotHere))?;
        let addresses = self.own_addresses();
        if addresses.is_empty() {
            let error = ApiError::new(ErrorCode::Refused, "Nobody could reach this node: it has no address to name.");
            return Err(error.hint("start the node, or set `advertise` in the configuration"));
        }
        let now = unix_now();
        let role = if request.sponsor { Role::Sponsor } else { Role::Member };
        let expires_at = now.plus(request.for_ms);
        let wanted = Invitation { network, role, uses: request.uses, valid_from: now, expires_at };
        let secret = InviteSecret::new(entropy::bytes()?);
        let (id, revision) = self.networks.invite(wanted, &secret, now).map_err(refused)?;
        let durable = self.networks_durable(revision).await;
        let inviter = self.networks.me();
        let uses = request.uses;
        let shown = addresses.iter().map(|at| std::net::SocketAddr::from(*at).to_string()).collect();
        let ticket = Ticket { network, name, inviter, addresses, secret, uses, valid_from: now, expires_at };
        Ok(InviteReply {
            ticket: ticket.to_text().to_string(),
            invite: invite_name(&id),
            network: network.to_string(),
            uses,
            expires_at: rfc3339(expires_at),
            addresses: shown,
            revision: revision.0,
            durable,
        })
    }

    /// Where others find this node.
    fn own_addresses(&self) -> Vec<Address> {
        match &self.who {
            Who::Live(live) => live.engine.address_record().map(|signed| signed.record.addresses).unwrap_or_default(),
            Who::Alone { config, .. } => reachable::addresses(&config.advertise, &config.listen),
        }
    }

    /// The invites of this node, newest first.
    pub fn invite_list(&self) -> InvitesReply {
        let now = unix_now();
        let row = |(id, record): (InviteId, InviteRecord)| InviteRow {
            invite: invite_name(&id),
            network: record.network().to_string(),
            uses: record.uses,
            used: record.used,
            made_at: rfc3339(record.made_at),
            expires_at: rfc3339(record.expires_at),
            state: invite_state(&record, now).to_owned(),
        };
        InvitesReply { invites: self.networks.invites().into_iter().map(row).collect() }
    }

    /// Takes an invite back.
    ///
    /// # Errors
    /// `NotFound`, and `Usage` for a name that is too short or that two have.
    pub async fn invite_revoke(&self, request: &InviteRevokeRequest) -> Result<InviteRevokeReply, ApiError> {
        let wanted = request.invite.to_ascii_lowercase();
        if wanted.len() < INVITE_DIGITS_MIN {
            let message = format!("The name of an invite is at least its first {INVITE_DIGITS_MIN} digits.");
            return Err(ApiError::new(ErrorCode::Usage, message).hint("`handfast invite list` shows them"));
        }
        let mut found = self.networks.invites();
        found.retain(|(id, _)| id.to_string().starts_with(&wanted));
        let [(id, record)] = &found[..] else {
            return Err(match found.is_empty() {
                true => refused(NetworkRefusal::NoSuchInvite),
                false => ApiError::new(ErrorCode::Usage, "Several invites begin so.").hint("give more digits"),
            });
        };
        let revision = self.networks.revoke_invite(*id).map_err(refused)?;
        let durable = self.networks_durable(revision).await;
        Ok(InviteRevokeReply { invite: invite_name(id), used: record.used, revision: revision.0, durable })
    }

    /// Joins a network. Returns when certificate and roster are here; [`Operator::join_progress`] tells the rest.
    ///
    /// # Errors
    /// `Usage` for what is no ticket, `NoNode`, what the inviter says, and whatever kept it from being reached.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinReply, ApiError> {
        let ticket: Ticket =
            request.ticket.trim().parse().map_err(|fault: handfast_protocol::ticket::TicketFault| {
                ApiError::new(ErrorCode::Usage, format!("{}.", capitalised(&fault.to_string())))
                    .hint("copy the whole line that `handfast invite` printed")
            })?;
        let Some(live) = self.live() else {
            return Err(no_node());
        };
        if ticket.inviter == self.networks.me() {
            let error = ApiError::new(ErrorCode::Refused, "This ticket is this node's own.");
            return Err(error.hint("it is for other machines; this node is in the network already"));
        }
        let (engine, rng) = (live.engine.clone(), StdRng::from_seed(entropy::bytes()?));
        let inviter = ticket.inviter;
        let task = live.data.spawn(async move { Box::pin(engine.join(&ticket, rng)).await });
        match task.await {
            Ok(Ok(network)) => progress_of(live, network),
            Ok(Err(error)) => Err(not_joined(&inviter, error)),
            Err(_) => Err(ApiError::new(ErrorCode::Failure, "The node is stopping.")
                .hint("the next node goes on with a join that has its certificate; else type it again")),
        }
    }

    /// How far a join has come.
    ///
    /// # Errors
    /// `NotFound`, `NoNode`.
    pub fn join_progress(&self, network: Option<&str>) -> Result<JoinReply, ApiError> {
        let (network, _) = self.network(network)?;
        progress_of(self.live().ok_or_else(no_node)?, network)
    }

    /// Takes back what a rule granted.
    ///
    /// # Errors
    /// `Usage` for what is no rule, `NotFound` for a network that this node is not in.
    pub async fn undo(&self, request: &UndoRequest) -> Result<UndoReply, ApiError> {
        let rule = match request.rule.as_str() {
            "allow" => Rule::Allow,
            "accept_all" => Rule::AcceptAll,
            named => match named.strip_prefix("network:") {
                Some(network) => Rule::Network(self.network_or_id(network)?),
                None => {
                    let error = ApiError::new(ErrorCode::Usage, "There is no such rule.");
                    return Err(error.hint("the rules are network:NAME, allow and accept_all"));
                }
            },
        };
        let now = unix_now();
        let since = UnixMillis(now.0.saturating_sub(request.since_ms));
        let mut newest = Revision::ZERO;
        let mut undone = Vec::new();
        for (peer, updated) in self.book().undo(&rule, since, request.dry_run, now) {
            if let Some(updated) = &updated {
                newest = newest.max(updated.revision);
                drop(self.cut(peer, updated));
            }
            let state = self.book().state(&peer, now).to_string();
            undone.push(UndoRow { peer_id: peer.to_string(), short: peer.short(), state });
        }
        let durable = self.durable(newest).await;
        Ok(UndoReply { rule: rule.to_string(), dry_run: request.dry_run, undone, durable })
    }

    /// Also a network that this node has left: what its rule granted can still be undone.
    fn network_or_id(&self, text: &str) -> Result<NetworkId, ApiError> {
        text.parse::<NetworkId>().or_else(|_| self.network(Some(text)).map(|(network, _)| network))
    }
}

fn progress_of(live: &Live, network: NetworkId) -> Result<JoinReply, ApiError> {
    live.engine.join_progress(network).ok_or_else(|| refused(NetworkRefusal::NotHere))
}

fn no_node() -> ApiError {
    ApiError::new(ErrorCode::NoNode, "No node is running here.").hint("start one with `handfast run`")
}

fn role_of(standing: &Standing) -> Option<String> {
    match standing {
        Standing::Member { role: Role::Sponsor, .. } => Some("sponsor".to_owned()),
        Standing::Member { .. } => Some("member".to_owned()),
        _ => None,
    }
}

fn until_of(standing: &Standing) -> Option<String> {
    match standing {
        Standing::Member { until, .. } => Some(rfc3339(*until)),
        _ => None,
    }
}

fn invite_name(id: &InviteId) -> String {
    let mut name = id.to_string();
    name.truncate(INVITE_DIGITS);
    name
}

fn invite_state(record: &InviteRecord, now: UnixMillis) -> &'static str {
    match () {
        () if record.revoked => "revoked",
        () if record.expires_at <= now => "expired",
        () if record.used >= record.uses => "exhausted",
        () => "open",
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

fn refused(refusal: NetworkRefusal) -> ApiError {
    let (code, hint) = match refusal {
        NetworkRefusal::NotHere => (ErrorCode::NotFound, "`handfast network list` shows the networks"),
        NetworkRefusal::NameTaken => (ErrorCode::Refused, "choose another name"),
        NetworkRefusal::AlreadyHere => (ErrorCode::Refused, "`handfast network list` shows it"),
        NetworkRefusal::NotTheAuthority => (ErrorCode::Refused, "do it on the node that made the network"),
        NetworkRefusal::CannotIssue => {
            (ErrorCode::Refused, "its authority does, and who was invited with `handfast invite --sponsor`")
        }
        NetworkRefusal::WrongCertificate => (ErrorCode::Refused, "ask for another ticket"),
        NetworkRefusal::NoSuchInvite => (ErrorCode::NotFound, "`handfast invite list` shows the invites"),
        NetworkRefusal::BadInvite => (ErrorCode::Usage, "see --uses and --for"),
        NetworkRefusal::SaidAlready => (ErrorCode::Refused, "`handfast network members` shows what holds"),
        NetworkRefusal::TooMany => (ErrorCode::Refused, "leave a network, or let invites end"),
    };
    ApiError::new(code, format!("{}.", capitalised(&refusal.to_string()))).hint(hint)
}

/// Each refusal of a ticket with its own words, code and remedy.
fn not_joined(inviter: &PeerId, error: JoinError) -> ApiError {
    let refusal = match error {
        JoinError::Unreached(fault) => {
            let error = unreached(inviter, fault);
            return match fault {
                ContactFault::NoAddress => error.hint("the ticket names no address: ask for another one"),
                _ => error,
            };
        }
        JoinError::Network(refusal) => return refused(refusal),
        JoinError::Conversation(JoinFault::Refused(refusal)) => refusal,
        JoinError::Conversation(fault) => {
            let code = match fault {
                JoinFault::TimedOut => ErrorCode::TimedOut,
                JoinFault::Busy(_) | JoinFault::NotDurable => ErrorCode::TryAgain,
                _ => ErrorCode::Failure,
            };
            let error = ApiError::new(code, format!("The join came to no end: {fault}."));
            return error.hint("the same ticket may be used again: it takes no second use for this node");
        }
    };
    let (code, hint) = match refusal {
        JoinRefusal::Unknown => (ErrorCode::NotFound, "the inviter knows no such invite: ask for another ticket"),
        JoinRefusal::Expelled => (ErrorCode::Refused, "only the network's authority readmits"),
        JoinRefusal::CannotIssue | JoinRefusal::NotHere => {
            (ErrorCode::Refused, "ask a node that is a sponsor of the network for a ticket")
        }
        JoinRefusal::NotYetValid => (ErrorCode::Refused, "wait, and look at the clocks of both machines"),
        _ => (ErrorCode::Refused, "ask the inviter for another ticket"),
    };
    ApiError::new(code, format!("{} refuses: {refusal}.", inviter.short())).hint(hint)
}
