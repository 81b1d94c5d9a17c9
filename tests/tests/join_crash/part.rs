//! One side of a join, in a process of its own: this test program again, told by lines on its standard input what to do.
//! What it answers begins with `@`.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use handfast::config::Config;
use handfast::control::api::{InviteRequest, JoinRequest, NetworkCreateRequest};
use handfast::data_dir::DataDir;
use handfast::initialise::initialise;
use handfast::node::Node;
use handfast_protocol::{PeerId, UnixMillis, codec};
use handfast_trust::{DirectoryLock, LockOwner};

use crate::held::{Disk, Steps};

/// Nothing takes so long: whoever waits so long would wait for ever.
const PATIENCE: Duration = Duration::from_secs(60);
const DIRECTORY: &str = "HANDFAST_TEST_DIRECTORY";
const LISTEN: &str = "HANDFAST_TEST_LISTEN";

/// What the child does; nothing in the parent.
#[test]
fn part() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let steps = Steps::default();
    tracing::subscriber::set_global_default(steps.clone()).unwrap();
    let node = start(Path::new(&directory), std::env::var(LISTEN).unwrap().parse().unwrap(), &steps);
    say(&format!("ready {} {}", node.peer_id(), node.local_addrs()[0]));
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["arm", pass, ..] => {
                let step = line.splitn(3, ' ').nth(2).unwrap();
                steps.arm(step, pass.parse().unwrap());
                say("armed");
            }
            ["held"] => {
                steps.wait();
                say("held");
            }
            ["go"] => steps.let_go(),
            ["join", ticket] => join(&node, ticket),
            ["until", state, peer] => until(&node, state, &peer.parse().unwrap()),
            ["found"] => found(&node),
            ["invite"] => {
                let invite = InviteRequest { uses: 1, for_ms: 3_600_000, ..InviteRequest::default() };
                say(&node.data().block_on(node.operator().invite(&invite)).unwrap().ticket);
            }
            ["certificate"] => say(&certificate(&node)),
            ["redemption"] => say(&redemption(&node)),
            _ => panic!("{line}"),
        }
    }
}

#[expect(clippy::print_stdout, reason = "a child tells its parent by printing")]
fn say(text: &str) {
    println!("@{text}");
    std::io::stdout().flush().unwrap();
}

fn start(directory: &Path, listen: SocketAddr, steps: &Steps) -> Node {
    let dir = DataDir::create(directory).unwrap();
    let owner = LockOwner { pid: std::process::id(), role: "test".to_owned(), socket: None };
    let lock = DirectoryLock::try_acquire(dir.path(), &owner).unwrap();
    initialise(&dir, None, &lock).unwrap();
    drop(lock);
    let mut config = Config::default();
    config.listen = vec![listen];
    config.handshakes_per_address = 100_000;
    config.handshakes_per_prefix = 100_000;
    Node::start_on(&dir, config, |inner| Disk { inner, steps: steps.clone() }).unwrap()
}

/// Says how it went when it has ended, while other lines are answered.
fn join(node: &Node, ticket: &str) {
    let (operator, data) = (node.operator().clone(), node.data().clone());
    let request = JoinRequest { ticket: ticket.to_owned(), operation_id: None };
    std::thread::spawn(move || match data.block_on(operator.join(&request)) {
        Ok(_) => say("joined"),
        Err(error) => say(&format!("refused {}", error.message)),
    });
}

fn until(node: &Node, state: &str, peer: &PeerId) {
    let engine = node.engine();
    node.data().block_on(async {
        loop {
            let seen = engine.events.newest();
            if engine.book.state(peer, UnixMillis(0)).as_str() == state {
                return;
            }
            engine.events.wait_past(seen).await;
        }
    });
    say(state);
}

fn found(node: &Node) {
    let create = NetworkCreateRequest { name: "lab".to_owned(), operation_id: None };
    assert!(node.data().block_on(node.operator().network_create(&create)).unwrap().durable);
    say("found");
}

/// This node's own, in its network.
fn certificate(node: &Node) -> String {
    let networks = &node.engine().networks;
    let own = networks.members().networks().first().and_then(|(network, _)| networks.own_chain(*network));
    own.map_or("none".to_owned(), |own| hex(&codec::encode(&own)))
}

/// Of the newest invite: uses that were taken, who redeemed it, and the certificates of that key which are kept here.
fn redemption(node: &Node) -> String {
    let networks = &node.engine().networks;
    let (id, invite) = networks.invites().swap_remove(0);
    let by = networks.redemptions(id).into_iter().map(|(peer, _)| peer).collect::<Vec<PeerId>>();
    let kept = by.iter().filter_map(|peer| networks.member(invite.network(), *peer)).flat_map(|member| member.kept);
    let given: Vec<String> = kept.map(|kept| hex(&codec::encode(kept.membership.membership()))).collect();
    format!("{} of {} by {}: {}", invite.used, invite.uses, by.len(), given.join(" "))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The other end of such a process. Dropping it kills it.
pub(crate) struct Part {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<String>,
    pub(crate) id: PeerId,
    pub(crate) at: SocketAddr,
}

impl Part {
    pub(crate) fn start(directory: &Path, listen: SocketAddr) -> Part {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "part::part", "--nocapture", "--test-threads=1"]);
        command.env(DIRECTORY, directory).env(LISTEN, listen.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let said = follow(BufReader::new(child.stdout.take().unwrap()).lines());
        let stdin = child.stdin.take().unwrap();
        let ready = said.recv_timeout(PATIENCE).expect("it gets ready");
        let (id, at) = ready.strip_prefix("ready ").and_then(|ready| ready.split_once(' ')).expect("it says who it is");
        Part { child, stdin, id: id.parse().unwrap(), at: at.parse().unwrap(), said }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// The next thing that it says.
    pub(crate) fn hear(&self) -> String {
        self.said.recv_timeout(PATIENCE).expect("it answers in time")
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> SocketAddr {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.at
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

/// Its lines that begin with `@`; the others are the test harness's.
fn follow(lines: Lines<BufReader<ChildStdout>>) -> Receiver<String> {
    let (send, receive) = sync_channel(64);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if let Some((_, said)) = line.split_once('@')
                && send.send(said.to_owned()).is_err()
            {
                return;
            }
        }
    });
    receive
}
