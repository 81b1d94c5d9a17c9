//! What is typed, before anything is looked at: commands, flags, their forms, and the help.
//!
//! Everything that the text alone can tell is refused here, with exit code 2: a note that could deceive, a duration
//! without a unit, an address without a port. Which peer is meant, and whether it may be done, is for the operator.
//!
//! Not here: what the commands do (`commands`), where values come from that are not typed (`config`, `data_dir`).

mod networks;

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use handfast_protocol::{Note, ServiceName};

pub use self::networks::*;
use crate::clock::{self, NotADuration};

/// The states that a peer can have, as they are shown.
pub const STATES: [&str; 7] = ["unknown", "requested", "pending", "trusted", "revoked", "refused", "blocked"];

const EXAMPLES: &str = "\
Examples:
  handfast run                            Start a node; the first start makes its identity
  handfast trust hf1...@192.0.2.7:4433    Ask a peer for trust, or grant what it asked for
  handfast pending                        See who asks for trust
  handfast revoke build-server            Take trust back, at once and for good

A PEER is a whole id (hf1...), an alias, 64 hex digits, did:key:z..., or an unambiguous prefix of an id: \
20 characters after hf1 to change something, 8 to look.

Exit codes: 0 done; 1 failure; 2 usage; 3 not found; 4 refused; 5 timed out; 6 no node is running; \
7 data directory in use; 8 store damaged; 9 in force but not durable; 75 try again.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "handfast", version, about = "Peer trust, agreed, kept and revoked", after_help = EXAMPLES)]
#[command(arg_required_else_help = false, subcommand_required = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Data directory [default: $HANDFAST_DATA_DIR, $STATE_DIRECTORY, $XDG_DATA_HOME/handfast]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Configuration file [default: $HANDFAST_CONFIG, else handfast.toml in the data directory if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object on stdout (streams: one per line), and errors as JSON on stderr
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say only errors on stderr
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an identity and empty stores, or adopt a key
    #[command(after_help = INIT_EXAMPLES)]
    Init(InitArgs),
    /// Show the identity of this node
    Id,
    /// Run the node until it is stopped
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Grant trust to a peer: a request, or the approval of its request
    #[command(after_help = TRUST_EXAMPLES)]
    Trust(TrustArgs),
    /// Refuse a peer's request; it is told so
    #[command(after_help = "Example:\n  handfast reject hf1... --note 'not one of ours'")]
    Reject(RevokeArgs),
    /// Take trust back: its connections end at once, and it is told as soon as it can be reached
    #[command(after_help = "Example:\n  handfast revoke build-server --note 'key was on a stolen laptop'")]
    Revoke(RevokeArgs),
    /// Have nothing to do with a peer: nothing of it is answered, whatever it sends
    #[command(after_help = "A block is local: the peer is not told. `handfast unblock PEER` lifts it.")]
    Block(PeerArgs),
    /// Lift a block; what was granted or revoked before counts again
    Unblock(PeerArgs),
    /// Show the requests to decide
    #[command(after_help = "`handfast trust PEER` approves one, `handfast reject PEER` refuses it.")]
    Pending,
    /// Show all known peers
    #[command(after_help = "Examples:\n  handfast peers --state trusted\n  handfast --json peers")]
    Peers(PeersArgs),
    /// Show live and closed sessions
    Sessions,
    /// Show why a peer has the state that it has
    Explain(PeerArgs),
    /// Show the health of the node and of its disk
    Status,
    /// Show what happens, line by line
    #[command(after_help = EVENTS_EXAMPLES)]
    Events(EventsArgs),
    /// Measure an authenticated round trip to a trusted peer
    Ping(PeerArgs),
    /// Found, look at and leave networks; expel members
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Make a ticket with which others join a network
    #[command(after_help = networks::INVITE_EXAMPLES)]
    Invite(InviteArgs),
    /// Join a network with a ticket, and meet all its members
    #[command(after_help = networks::JOIN_EXAMPLES)]
    Join(JoinArgs),
    /// Verify, show and mend the record files
    #[command(subcommand)]
    Store(StoreCommand),
    /// Simulate thousands of peers against a node, and check what it promised them
    #[command(after_help = STORM_EXAMPLES)]
    Storm(Box<StormArgs>),
    /// Show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look for what a node needs and does not have: permissions, stores, limits of the system, the clock
    #[command(after_help = "It changes nothing and needs no node. Exits 0 when all is well, 1 when something needs \
        attention, 8 when a store is damaged.")]
    Doctor,
    /// Print what a shell needs to complete the commands
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Write the manual pages, one for each command
    #[command(after_help = MAN_EXAMPLES)]
    Man(ManArgs),
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  handfast completions bash > ~/.local/share/bash-completion/completions/handfast
  handfast completions zsh > ~/.zfunc/_handfast
  handfast completions fish > ~/.config/fish/completions/handfast.fish";

const MAN_EXAMPLES: &str = "\
Example:
  mkdir -p ~/.local/share/man/man1
  handfast man ~/.local/share/man/man1
  man handfast-trust

Pages of the same names are replaced.";

const INIT_EXAMPLES: &str = "\
Examples:
  handfast init
  (umask 077; openssl genpkey -algorithm ed25519 -out key.pem)
  handfast init --identity key.pem

An identity that is there is never overwritten. An init that was interrupted is finished.";

const RUN_EXAMPLES: &str = "\
Examples:
  handfast run
  handfast --data-dir /tmp/a run --listen 127.0.0.1:4433

When the node is ready it prints one line on stdout. SIGTERM or SIGINT stops it; a second one stops it at once.";

const TRUST_EXAMPLES: &str = "\
Examples:
  handfast trust hf1...@192.0.2.7:4433 --alias build-server --note 'Ann, room 12'
  handfast trust build-server --for 30d --scope backup --scope logs
  handfast trust hf1... --wait 30s

Both sides must grant: the second `trust` is the approval. Without a node the grant is stored, and the \
next node sends it. Exits 0 when the grant is on the disk; with --wait when the peer has granted too.";

const EVENTS_EXAMPLES: &str = "\
Examples:
  handfast events --follow
  handfast --json events --since 120 --follow

Numbers begin at 1 with each run of the node, which keeps the last 4096.";

const STORM_EXAMPLES: &str = "\
Examples:
  handfast storm                                  2,000 new peers against a node of its own
  handfast storm --scenario reconnect --report out.html
  handfast storm --rate 500 --duration 30s --mix new=6,known=3,garbage=1 --churn 5s
  handfast storm --target hf1...@192.0.2.7:4433 --peers 100 --concurrency 8
  handfast storm --compare before.json after.json

Kinds of a mix: new, known (trusted, exchanging again), again (over its session), revoke, flap (grant, revoke, grant), \
pending, garbage, replay, slow, idle, vanish (silent from some stage on), spoofed (first packets only), cut (the \
operator revokes). Scenarios: fresh-network, reconnect, flood, slow-disk, hung-disk, revocation-wave, cut, vanish, \
slowloris. Without --target the node is the storm's own, in $TMPDIR or the working directory; it is killed at the end \
and its records are compared with what it had acknowledged. Ctrl-C ends the load and goes on to the report, a second one \
ends the storm at once. Exits 1 if anything was lost, wrong, leaked or stuck, or if nobody answers for what was promised. \
Storm only nodes that are yours.";

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where to: a directory that is there
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Adopt this Ed25519 key (PKCS#8 PEM, readable by its owner only) instead of making one
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// UDP address to listen on; may be given several times, or as a list with commas
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<String>,
    /// For the own node of `handfast storm`: every sync of the disk takes this much longer
    #[arg(long, hide = true, value_name = "TIME", value_parser = duration)]
    pub storm_fsync_delay: Option<u64>,
    /// And no sync ends while there is a file of this name
    #[arg(long, hide = true, value_name = "FILE")]
    pub storm_fsync_gate: Option<PathBuf>,
    /// And the node is killed when its stdin ends
    #[arg(long, hide = true)]
    pub storm_stdin: bool,
}

#[derive(Debug, Args)]
pub struct StormArgs {
    /// The node to send to [default: a node of its own]
    #[arg(long, value_name = "PEER@HOST:PORT")]
    pub target: Option<PeerAt>,
    /// A scenario by its name, or a file with one; flags go over it
    #[arg(long, value_name = "NAME|FILE")]
    pub scenario: Option<String>,
    /// Operations in all [default: 2000, with --duration as many as it takes up to 1000000]
    #[arg(long, value_name = "N")]
    pub peers: Option<u64>,
    /// Closed loop with this many conversations at once [default: 64]
    #[arg(long, value_name = "C", conflicts_with = "rate")]
    pub concurrency: Option<u32>,
    /// Open loop: Poisson arrivals a second; latency counts from the intended start
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// End after this time
    #[arg(long, value_name = "TIME")]
    pub duration: Option<String>,
    /// Grow to the full load within this time
    #[arg(long, value_name = "TIME")]
    pub ramp: Option<String>,
    /// Kinds by weight, KIND=WEIGHT,... [default: new=1]
    #[arg(long, value_name = "MIX")]
    pub mix: Option<String>,
    /// Names every key, arrival and choice of the run [default: random]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Come from this many loopback addresses, each in a network of its own
    #[arg(long, value_name = "N")]
    pub sources: Option<u32>,
    /// Kill the own node and start it again every so often
    #[arg(long, value_name = "TIME")]
    pub churn: Option<String>,
    /// Make every sync of the own node's disk take this much longer
    #[arg(long, value_name = "TIME")]
    pub fsync_delay: Option<String>,
    /// Let the own node's disk hang once for this long, from the third second of the load, if it lasts so long
    #[arg(long, value_name = "TIME")]
    pub fsync_hang: Option<String>,
    /// Watch the own node's memory for this long after the load
    #[arg(long, value_name = "TIME")]
    pub linger: Option<String>,
    /// Most operations of strangers that --rate may have under way [default: 512]
    #[arg(long, value_name = "N")]
    pub in_flight: Option<u32>,
    /// Leave the own node's limits on sources as they are by default
    #[arg(long)]
    pub default_limits: bool,
    /// Write a page with the figures and their course
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Compare two kept --json reports instead of running
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], exclusive = true)]
    pub compare: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct GrantArgs {
    /// Whom, and where to find it
    #[arg(value_name = "PEER[@HOST:PORT]")]
    pub peer: PeerAt,
    /// A name for the peer, on this machine only
    #[arg(long, value_name = "NAME", value_parser = alias)]
    pub alias: Option<String>,
    /// A remark that the peer gets to read, up to 256 bytes
    #[arg(long, value_name = "TEXT", value_parser = note)]
    pub note: Option<String>,
    /// How long the grant lasts [default: until it is revoked]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub lasts_ms: Option<u64>,
    /// Trust it with this service only; may be given up to eight times [default: all]
    #[arg(long, value_name = "SERVICE", value_parser = service)]
    pub scope: Vec<String>,
    /// Wait until the peer has granted too, this long at most (needs a running node)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub wait: Option<u64>,
}

#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Whom
    #[arg(value_parser = peer)]
    pub peer: String,
    /// A remark that the peer gets to read, up to 256 bytes
    #[arg(long, value_name = "TEXT", value_parser = note)]
    pub note: Option<String>,
}

#[derive(Debug, Args)]
pub struct PeerArgs {
    /// Whom
    #[arg(value_parser = peer)]
    pub peer: String,
}

#[derive(Debug, Args)]
pub struct PeersArgs {
    /// Only peers in this state
    #[arg(long, value_parser = PossibleValuesParser::new(STATES))]
    pub state: Option<String>,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// Begin after this number [default: with the oldest that the node keeps]
    #[arg(long, value_name = "NUMBER")]
    pub since: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Verify every record file; changes nothing and needs no node
    Check,
    /// Show every record
    #[command(after_help = "Example:\n  handfast --json store dump | jq 'select(.file == \"trust.hf\")'")]
    Dump,
    /// Write every record file anew, with the last state of each record; no node may be running
    Compact,
    /// Bring a directory back whose files are damaged: keeps every readable revoke and block
    #[command(after_help = RECOVER_HELP)]
    Recover(RecoverArgs),
}

const RECOVER_HELP: &str = "\
The damaged files stay in the directory as *.damaged-N. Grants of ours are dropped, because a revoke of \
one of them may have been lost: grant again whom you still trust, or give --keep-grants if you know that \
nothing was revoked lately.";

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Keep our readable grants too, at the risk that a lost revoke is undone
    #[arg(long)]
    pub keep_grants: bool,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every setting with its value and where it comes from
    Show,
}

/// `PEER` or `PEER@HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAt {
    pub peer: String,
    pub address: Option<String>,
}

/// Why a typed value is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentFault {
    #[error("a peer is missing; expected an id, an alias or a prefix of an id")]
    NoPeer,
    #[error("an address is taken by `handfast trust` only; give the peer without @HOST:PORT")]
    AddressHere,
    #[error("the address after @ must be HOST:PORT, e.g. 192.0.2.7:4433, [2001:db8::7]:4433 or host.example:4433")]
    NotAnAddress,
    #[error("an alias must not be empty or `undo`, begin with hf1 or did:, or hold @ or blanks at its ends")]
    NotAnAlias,
}

impl FromStr for PeerAt {
    type Err = ArgumentFault;

    fn from_str(text: &str) -> Result<PeerAt, ArgumentFault> {
        let (peer, address) = match text.split_once('@') {
            Some((peer, address)) => (peer, Some(address)),
            None => (text, None),
        };
        if peer.is_empty() {
            return Err(ArgumentFault::NoPeer);
        }
        if address.is_some_and(|address| !is_host_and_port(address)) {
            return Err(ArgumentFault::NotAnAddress);
        }
        Ok(PeerAt { peer: peer.to_owned(), address: address.map(str::to_owned) })
    }
}

/// Only the form: whether the host exists is for the resolver. An IPv6 address needs its brackets.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bracketed {
        Some(ipv6) => ipv6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn peer(text: &str) -> Result<String, ArgumentFault> {
    match text.parse::<PeerAt>()? {
        PeerAt { peer, address: None } => Ok(peer),
        PeerAt { .. } => Err(ArgumentFault::AddressHere),
    }
}

fn note(text: &str) -> Result<String, handfast_protocol::text::TextFault> {
    Note::new(text).map(String::from)
}

fn alias(text: &str) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let name = note(text)?;
    // What looks like an id would make the id ambiguous.
    let looks_like_id = name.starts_with("hf1") || name.starts_with("did:");
    // `trust undo` is a command.
    if name.is_empty() || name == "undo" || looks_like_id || name.contains('@') || name.trim() != name {
        return Err(Box::new(ArgumentFault::NotAnAlias));
    }
    Ok(name)
}

fn service(text: &str) -> Result<String, handfast_protocol::text::TextFault> {
    ServiceName::new(text).map(String::from)
}

fn duration(text: &str) -> Result<u64, NotADuration> {
    clock::parse_duration_ms(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::storm::kind::Kind;
    use crate::storm::plan;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("handfast").chain(words.iter().copied()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_storm_names_every_kind_and_every_scenario() {
        let (kinds, scenarios) = STORM_EXAMPLES.split_once("Scenarios: ").unwrap();
        let (scenarios, _) = scenarios.split_once(". Without").unwrap();
        let (_, kinds) = kinds.split_once("Kinds of a mix: ").unwrap();
        let kinds: Vec<&str> = kinds.split([' ', ',', '.']).collect();
        for kind in Kind::ALL {
            assert!(kinds.contains(&kind.as_str()), "{kind}");
        }
        assert_eq!(scenarios, plan::scenarios().collect::<Vec<_>>().join(", "));
    }

    #[test]
    fn every_command_of_the_design_is_taken() {
        let all: [&[&str]; 43] = [
            &["init"],
            &["init", "--identity", "key.pem"],
            &["id"],
            &["run", "--listen", "127.0.0.1:1"],
            &["trust", "hf1abc@[::1]:4433", "--alias", "b", "--note", "n", "--for", "30d", "--wait", "30s"],
            &["trust", "b", "--scope", "backup", "--scope", "logs"],
            &["trust", "undo", "--rule", "network:lab", "--since", "1h", "--dry-run"],
            &["trust", "b", "--json"],
            &["network", "create", "lab"],
            &["network", "list"],
            &["network", "members", "lab"],
            &["network", "leave"],
            &["network", "expel", "b", "--network", "lab"],
            &["network", "readmit", "b"],
            &["invite"],
            &["invite", "--network", "lab", "--uses", "10", "--for", "24h", "--qr"],
            &["invite", "list"],
            &["invite", "revoke", "0123456789abcdef"],
            &["join", "hfinv1abc"],
            &["join", "-", "--wait", "30s"],
            &["reject", "b", "--note", "no"],
            &["revoke", "b"],
            &["block", "b"],
            &["unblock", "b"],
            &["pending"],
            &["peers", "--state", "trusted"],
            &["sessions"],
            &["explain", "b"],
            &["status"],
            &["events", "--follow", "--since", "3"],
            &["ping", "b"],
            &["store", "check"],
            &["store", "dump", "--json"],
            &["store", "recover", "--keep-grants"],
            &["storm"],
            &["storm", "--rate", "100", "--duration", "5s", "--mix", "new=1", "--report", "a.html"],
            &["config", "show"],
            &["doctor"],
            &["completions", "bash"],
            &["man", "/usr/share/man/man1"],
            &["--data-dir", "d", "--config", "c", "--json", "-vv", "id"],
            &["id", "--data-dir", "d", "-q"],
            &["status", "--json"],
        ];
        for words in all {
            assert!(parse(words).is_ok(), "{words:?}");
        }
    }

    #[test]
    fn what_the_text_alone_shows_to_be_wrong_is_a_usage_error() {
        let check = |words: &[&str], says: &str| {
            let refused = parse(words).unwrap_err();
            assert_eq!(refused.exit_code(), 2, "{words:?}");
            assert!(refused.to_string().contains(says), "{words:?}: {refused}");
        };
        check(&[], "requires a subcommand");
        check(&["trust"], "PEER[@HOST:PORT]");
        check(&["trust", "undo", "--rule", "allow"], "--since");
        check(&["trust", "b", "--alias", "undo"], "alias must not");
        check(&["network", "create", "Lab"], "network");
        check(&["invite", "--uses", "0"], "--uses");
        check(&["join"], "TICKET");
        check(&["trust", "@1.2.3.4:5"], "a peer is missing");
        check(&["trust", "b@1.2.3.4"], "must be HOST:PORT");
        check(&["trust", "b@::1:4433"], "must be HOST:PORT");
        check(&["trust", "b@host:0"], "must be HOST:PORT");
        check(&["trust", "b", "--note", "a\nb"], "U+000A");
        check(&["trust", "b", "--note", &"x".repeat(257)], "at most 256");
        check(&["trust", "b", "--alias", "hf1b"], "alias must not");
        check(&["trust", "b", "--alias", "a@b"], "alias must not");
        check(&["trust", "b", "--alias", "a\u{202e}b"], "U+202E");
        check(&["trust", "b", "--scope", "Web"], "service name");
        check(&["trust", "b", "--for", "30"], "not a duration");
        check(&["revoke", "b@1.2.3.4:5"], "taken by `handfast trust` only");
        check(&["peers", "--state", "friend"], "possible values");
        check(&["events", "--since", "noon"], "--since");
        check(&["completions", "dos"], "possible values");
        check(&["man"], "DIR");
        check(&["id", "-v", "-q"], "cannot be used with");
    }

    #[test]
    fn a_peer_comes_with_its_address() {
        let check = |text: &str, peer: &str, address: Option<&str>| {
            let expected = PeerAt { peer: peer.to_owned(), address: address.map(str::to_owned) };
            assert_eq!(text.parse(), Ok(expected));
        };
        check("b", "b", None);
        check("hf1x@192.0.2.7:4433", "hf1x", Some("192.0.2.7:4433"));
        check("hf1x@[2001:db8::7]:1", "hf1x", Some("[2001:db8::7]:1"));
        check("did:key:zx@host.example:65535", "did:key:zx", Some("host.example:65535"));
    }
}
