//! A member: a node without a runtime and a control socket of its own, so that a thousand of them fit into one process.
//!
//! Its stores lie in memory (tmpfs) unless asked otherwise: members are other machines with disks of their own, and this
//! one has a single disk.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use handfast::bare_node::BareNode;
use handfast::config::Config;
use handfast::data_dir::DataDir;
use handfast::engine::Engine;
use handfast::initialise::initialise;
use handfast::stores;
use handfast::{clock, entropy};
use handfast_protocol::{
    Certificate, InviteSecret, Membership, NetworkName, PeerId, Role, SecretKey, SignedAddressRecord, Ticket,
    VerifiedMembership,
};
use handfast_trust::networks::{Invitation, Joined};
use handfast_trust::{DirectoryLock, LockOwner};

pub(crate) const DAY_MS: u64 = 24 * 3_600_000;

/// What nodes of a benchmark are started with: all come from one address, and no rule's budget ends.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    config.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    config.handshakes_per_address = 1_000_000;
    config.handshakes_per_prefix = 1_000_000;
    // A thousand sockets do not ask for 4 MiB each.
    config.socket_buffer_bytes = 256 * 1024;
    config.policy_grants_per_hour = 1_000_000;
    config.policy_grants_total = 10_000_000;
    config.policy_grants_per_sponsor = 10_000_000;
    config
}

/// A data directory with an identity below `place`.
pub(crate) fn directory(place: &Path, name: &str) -> Result<(DataDir, DirectoryLock)> {
    let directory = DataDir::create(&place.join(name))?;
    let owner = LockOwner { pid: std::process::id(), role: "benchmark".to_owned(), socket: None };
    let lock = DirectoryLock::try_acquire(directory.path(), &owner)?;
    initialise(&directory, None, &lock).map_err(failed)?;
    Ok((directory, lock))
}

/// What an operator would be told.
pub(crate) fn failed(error: handfast::control::api::ApiError) -> anyhow::Error {
    anyhow::anyhow!("{} {}", error.message, error.hint.unwrap_or_default())
}

/// What the authority signs for a member.
pub(crate) fn certificate(authority: &SecretKey, member: PeerId) -> Result<VerifiedMembership> {
    let now = clock::unix_now();
    let certificate = Certificate {
        network: authority.network_id(),
        member,
        epoch: now.0,
        issued_at: now,
        expires_at: now.plus(90 * DAY_MS),
        role: Role::Member,
    };
    Ok(certificate.by_authority(authority)?)
}

/// See the module.
pub(crate) struct Member {
    pub(crate) engine: Arc<Engine>,
    bare: BareNode,
}

impl Member {
    /// Starts one on the runtime that this is called in.
    pub(crate) fn start(place: &Path, number: usize) -> Result<Member> {
        let (directory, lock) = directory(place, &number.to_string())?;
        let opened = stores::open_all(&directory, lock).map_err(failed)?;
        let bare = BareNode::start(opened, config()).map_err(failed)?;
        Ok(Member { engine: bare.engine().clone(), bare })
    }

    fn address(&self) -> Result<SignedAddressRecord> {
        self.engine.address_record().ok_or_else(|| anyhow::anyhow!("a member has no address"))
    }

    /// Founds a network.
    pub(crate) fn found(&self, authority: SecretKey) -> Result<()> {
        let name = NetworkName::new("lab")?;
        let changed = self.engine.networks.create(authority, name, clock::unix_now())?;
        self.engine.membership_changed(&changed.affected);
        Ok(())
    }

    /// Is made a member by the authority, as if it had joined through `founder` and met nobody else yet; the founder
    /// knows it and where it is.
    pub(crate) fn is_member(&self, founder: &Member, authority: &SecretKey) -> Result<()> {
        let now = clock::unix_now();
        let made = certificate(authority, self.engine.book.me())?;
        let addresses = founder.address()?.record.addresses;
        let joined = Joined { name: NetworkName::new("lab")?, inviter: founder.engine.book.me(), addresses };
        let changed = self.engine.networks.joined(&joined, &made, now)?;
        self.engine.networks.roster_is_read(authority.network_id())?;
        self.engine.membership_changed(&changed.affected);
        founder.knows(made.membership(), &self.address()?)
    }

    /// Learns of a member, and of where it is.
    pub(crate) fn knows(&self, membership: &Membership, address: &SignedAddressRecord) -> Result<()> {
        self.engine.networks.learn([membership], clock::unix_now())?;
        self.engine.take_relayed(address, true);
        Ok(())
    }

    /// Leaves the network again: nobody whom it met in it is trusted any more.
    pub(crate) fn leave(&self, authority: &SecretKey) -> Result<()> {
        let changed = self.engine.networks.leave(authority.network_id())?;
        self.engine.membership_changed(&changed.affected);
        Ok(())
    }

    /// A ticket for `uses` keys.
    pub(crate) fn invite(&self, authority: &SecretKey, uses: u32) -> Result<Ticket> {
        let (network, now) = (authority.network_id(), clock::unix_now());
        let expires_at = now.plus(DAY_MS);
        let wanted = Invitation { network, role: Role::Member, uses, valid_from: now, expires_at };
        let secret = InviteSecret::new(entropy::bytes().map_err(failed)?);
        self.engine.networks.invite(wanted, &secret, now)?;
        Ok(Ticket {
            network,
            name: NetworkName::new("lab")?,
            inviter: self.engine.book.me(),
            addresses: self.address()?.record.addresses,
            secret,
            uses,
            valid_from: now,
            expires_at,
        })
    }

    /// Ends it; nothing is told to anybody.
    pub(crate) fn stop(self) -> Result<()> {
        self.engine.transport.close(handfast_protocol::CloseCode::Stopping);
        self.bare.close().map_err(failed)?;
        Ok(())
    }
}

/// Waits until the node trusts, and is trusted by, so many.
pub(crate) async fn trusts(engine: &Engine, others: u64) {
    loop {
        let seen = engine.events.newest();
        if engine.book.census().of(handfast_trust::TrustState::Trusted) >= others {
            return;
        }
        engine.events.wait_past(seen).await;
    }
}
