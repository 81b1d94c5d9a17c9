//! What a connection takes of a node's memory while it is there: hanging at each stage of a handshake, and as a session.
//!
//! Each row has a node of its own, in a process of its own. Some connections are held first, so that what comes once with the
//! first of them is not counted; then more, and what the node's process has grown by is divided among those.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use handfast::config::Config;
use handfast::storm::mute::{MuteSocket, Muteness};
use handfast::storm::peer::{Group, Peer, Target};
use handfast::storm::watch::Socket;
use handfast::transport::Callers;
use handfast_benches::Table;
use handfast_benches::place::Place;
use handfast_protocol::codec;
use handfast_protocol::exchange::{Disposition, Offer};
use handfast_protocol::stream::{Extensions, Head, StreamKind};
use handfast_protocol::{Incarnation, Kind};
use serde_json::Value;
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, timeout};

use crate::Options;

/// Connections before it is counted, and then: together fewer than a node lets be under way.
const BEFORE: u64 = 60;
const COUNTED: u64 = 240;
/// A node ends what hangs in TLS after five seconds: all has to be seen before.
const PATIENCE: Duration = Duration::from_secs(4);
/// One key for each connection of a row.
const SEED: u64 = 1;

const CONFIGURATION: &str = "log.filter = \"error\"\npolicy.accept_all = true\npolicy.grants_per_hour = 1000000\n\
                             limits.handshakes_per_address = 1000000\nlimits.handshakes_per_prefix = 1000000\n";

/// How far a connection goes.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Tls,
    /// With so much of an offer.
    Offer(Part),
    Session,
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    None,
    Half,
    Whole,
}

const ROWS: [(&str, Stage); 5] = [
    ("within TLS", Stage::Tls),
    ("before the first frame", Stage::Offer(Part::None)),
    ("within a frame", Stage::Offer(Part::Half)),
    ("before the receipt", Stage::Offer(Part::Whole)),
    ("a session", Stage::Session),
];

/// Shows what one takes, in KiB.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Table::new(&["held", "KiB each"]);
    for _ in 0..options.rounds {
        for (label, stage) in ROWS {
            let node = Node::start(options)?;
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            let bytes = runtime.block_on(row(&node, stage)).with_context(|| label.to_owned())?;
            table.add(label, &[bytes / f64::from(1_u32 << 10) / COUNTED as f64]);
        }
    }
    println!("{}", table.show());
    Ok(())
}

async fn row(node: &Node, stage: Stage) -> Result<f64> {
    let settings = Config::default().transport();
    let from = ["127.0.0.1:0".parse()?];
    let callers = match stage {
        Stage::Tls => {
            Callers::bind_through(&from, &settings, |socket| MuteSocket::wrap(socket, Muteness::AfterInitial))?
        }
        _ => Callers::bind(&from, &settings)?,
    };
    let mut held = Vec::new();
    let mut sizes = Vec::new();
    for numbers in [0..BEFORE, BEFORE..BEFORE + COUNTED] {
        // One after another: what many at once take of the sockets' buffers is nobody's own.
        for number in numbers {
            held.push(hold(&callers, node.target, number, stage).await?);
        }
        node.until(stage, sizes.len()).await?;
        sizes.push(node.socket.resident_bytes().context("the node has gone")? as f64);
    }
    Ok(sizes[1] - sizes[0])
}

/// What keeps a connection where it is.
type Held = (quinn::Connection, Option<(quinn::SendStream, quinn::RecvStream)>);

async fn hold(callers: &Callers, target: Target, number: u64, stage: Stage) -> Result<Held> {
    let mut peer = Peer::new(SEED, Group::Friends, number);
    if stage == Stage::Session {
        let conversed = peer.converse(callers, &target, Some(Kind::Grant), Disposition::Granted).await;
        let conversed = conversed.map_err(|fault| anyhow::anyhow!("no session: {fault}"))?;
        return Ok((conversed.connection, None));
    }
    let connection = callers.dial(0, &peer.key, &target.peer, target.at, 2 * PATIENCE).await?;
    let offer = Offer {
        statement: None,
        yours: None,
        incarnation: Incarnation([1; 16]),
        address: None,
        extensions: Extensions::default(),
    };
    let whole = [codec::frame(&Head::new(StreamKind::Exchange)), codec::frame(&offer)].concat();
    let part = match stage {
        Stage::Offer(Part::Whole) => &whole[..],
        Stage::Offer(Part::Half) => &whole[..whole.len() / 2],
        // Of a handshake that hangs in TLS this end does not know that it does.
        _ => return Ok((connection, None)),
    };
    let (mut send, recv) = connection.open_bi().await?;
    send.write_all(part).await?;
    Ok((connection, Some((send, recv))))
}

/// A node in a process of its own, which ends with this.
struct Node {
    child: Child,
    socket: Socket,
    target: Target,
    _place: Place,
}

impl Node {
    fn start(options: &Options) -> Result<Node> {
        let place = Place::on_disk("held")?;
        let path = place.path().join("handfast.toml");
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?
            .write_all(CONFIGURATION.as_bytes())?;
        let mut command = Command::new(&options.program);
        command.args(["--json", "--data-dir"]).arg(place.path()).args(["run", "--listen", "127.0.0.1:0"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).context("the node did not get ready")?;
        let text = |place: &str| ready.pointer(place).and_then(Value::as_str).context("the node says something else");
        let target = Target { peer: text("/peer_id")?.parse()?, at: text("/listen/0")?.parse()? };
        let process = Arc::new(AtomicU32::new(child.id()));
        let socket = Socket { control: text("/control")?.into(), data_dir: place.path().to_path_buf(), process };
        Ok(Node { child, socket, target, _place: place })
    }

    /// Waits until all that are to be held are, by the node's own count.
    async fn until(&self, stage: Stage, turn: usize) -> Result<()> {
        let wanted = if turn == 0 { BEFORE } else { BEFORE + COUNTED };
        let began = Instant::now();
        loop {
            let status = timeout(PATIENCE, self.socket.status()).await?.context("the node does not answer")?;
            let counts = status.counts;
            let found = match stage {
                Stage::Tls => counts.half_open,
                Stage::Offer(_) => counts.under_way - counts.half_open,
                Stage::Session => counts.sessions,
            };
            if found == wanted {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!("the node holds {found} of {wanted}");
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It has ended already where this is refused.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
