//! What is typed about networks: `network`, `invite`, `join`, and `trust undo`.

use clap::{Args, Subcommand};
use handfast_protocol::NetworkName;
use handfast_protocol::limits::INVITE_USES_MAX;

use super::{GrantArgs, duration, peer};

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Found a network: its authority's key is made here, and this node is its first member
    #[command(after_help = "Example:\n  handfast network create lab\n\nThe key is network-<id>.pem in the data \
        directory. Keep a copy: only it expels members, and nobody can make another.")]
    Create(NetworkCreateArgs),
    /// Show the networks that this node is in
    List,
    /// Leave a network: nothing that its rule granted counts any more
    Leave(NetworkArgs),
    /// Show the members of a network
    Members(NetworkArgs),
    /// Expel a member, for all members at once and for good: only where the authority's key is
    Expel(NetworkPeerArgs),
    /// Take an expulsion back: only where the authority's key is
    Readmit(NetworkPeerArgs),
}

#[derive(Debug, Args)]
pub struct NetworkCreateArgs {
    /// What to call it: small letters, digits, `.`, `_` and `-`
    #[arg(value_name = "NAME", value_parser = name)]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// Its name here, or its id [default: the only one]
    #[arg(value_name = "NETWORK")]
    pub network: Option<String>,
}

#[derive(Debug, Args)]
pub struct NetworkPeerArgs {
    /// Whom
    #[arg(value_parser = peer)]
    pub peer: String,
    /// The network, by its name here or its id [default: the only one]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct InviteArgs {
    #[command(subcommand)]
    pub command: Option<InviteCommand>,
    #[command(flatten)]
    pub invite: NewInviteArgs,
}

#[derive(Debug, Args)]
pub struct NewInviteArgs {
    /// The network, by its name here or its id [default: the only one]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// How many keys it lets in
    #[arg(long, value_name = "K", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(INVITE_USES_MAX)))]
    pub uses: u32,
    /// How long it is good for
    #[arg(long = "for", value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub lasts_ms: u64,
    /// Who joins with it may invite others: only where the authority's key is
    #[arg(long)]
    pub sponsor: bool,
    /// Draw the ticket as a QR code too
    #[arg(long)]
    pub qr: bool,
}

#[derive(Debug, Subcommand)]
pub enum InviteCommand {
    /// Show the invites of this node, and how many keys each has let in
    List,
    /// Take an invite back: nobody else joins with it; who has joined stays
    Revoke(InviteRevokeArgs),
}

#[derive(Debug, Args)]
pub struct InviteRevokeArgs {
    /// The invite's id as `handfast invite list` shows it, or its first 8 digits at least
    #[arg(value_name = "INVITE")]
    pub invite: String,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The ticket (hfinv1...), a file that holds it, or `-` for standard input
    #[arg(value_name = "TICKET|FILE|-")]
    pub ticket: String,
    /// How long to wait for members that cannot be reached; the node goes on after that
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub wait: u64,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct TrustArgs {
    #[command(subcommand)]
    pub command: Option<TrustCommand>,
    #[command(flatten)]
    pub grant: Option<GrantArgs>,
}

#[derive(Debug, Subcommand)]
pub enum TrustCommand {
    /// Take back what a rule granted lately
    #[command(after_help = "Example:\n  handfast trust undo --rule network:lab --since 1h --dry-run")]
    Undo(UndoArgs),
}

#[derive(Debug, Args)]
pub struct UndoArgs {
    /// `network:NAME`, `allow` or `accept_all`
    #[arg(long, value_name = "RULE")]
    pub rule: String,
    /// Only what it granted within this time
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub since: u64,
    /// Show whom it concerns, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

pub(super) const INVITE_EXAMPLES: &str = "\
Examples:
  handfast invite --network lab --uses 10 --for 24h
  handfast invite > ticket                        Then, on the other machine: handfast join ticket
  handfast invite list

Whoever has the ticket can join: give it only to those who shall. The secret in it is not kept here.";

pub(super) const JOIN_EXAMPLES: &str = "\
Examples:
  handfast join hfinv1...
  handfast join ticket                            A file, so that the ticket is in no shell history
  ssh server handfast invite | handfast join -

Makes an identity if there is none. Without a running node one runs for the time of the join. Exits 0 when this node is \
a member; who could not be reached is tried again by the node, without another command.";

fn name(text: &str) -> Result<String, handfast_protocol::text::TextFault> {
    NetworkName::new(text).map(|name| name.as_str().to_owned())
}
