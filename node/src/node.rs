//! A running node: its runtimes, the order in which it starts, and the same order backwards.
//!
//! Start: lock, stores (`stores`), data runtime, sockets, engine, accept loop and outbox, control runtime, control
//! socket, ready. Stop: control socket, intake, exchanges (2 s to finish), outbox, connections, data runtime, last
//! drain, drainer, lock.
//!
//! Threads: the *data* runtime has as many workers as cores and runs everything that touches quinn, but for what is done
//! for strangers that stand back, which a second one with a lower priority, the *crowd*, does (`transport::berths`); the *control*
//! runtime is one thread for the control API and timers, so that a storm on the wire cannot starve the operator. The
//! drainer is a third kind: the one thread that writes record files. These two have the priority that the process was
//! started with, and all that works for connections a lower one: what a whole storm waits for is not kept from a processor
//! by one of its handshakes.
//!
//! Dying at any point loses nothing acknowledged: a start after that finds what recovery finds, and closes the dead
//! run's sessions as orphaned.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use handfast_protocol::{CloseCode, PeerId};
use handfast_trust::{DirectoryLock, EndReason, Medium, RealDir};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::bare_node::BareNode;
use crate::commands::{NODE_ROLE, Patience, acquire};
use crate::config::Config;
use crate::control::api::{ApiError, ErrorCode, ReadyReply};
use crate::control::{server, socket};
use crate::data_dir::DataDir;
use crate::engine::Engine;
use crate::operations::{Live, Operator};
use crate::output::Output;
use crate::stores;
use crate::storm::slow_medium::{SlowDisk, SlowMedium};
use crate::transport::{Berths, CROWD_NICENESS, DATA_NICENESS, seed_generator, stand_back};

/// How long running exchanges may take to finish when the node stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How long the close frames may take to go out. Waiting until connections are forgotten would take three times their
/// probe timeout, a second for one whose handshake never ended.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long the data runtime may take to end.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(2);
/// How often expired grants are looked for. `authorise` needs no sweep: it compares with the clock itself.
const EXPIRY_EVERY: Duration = Duration::from_secs(1);

/// What a node is started with.
pub struct RunOptions {
    pub data_dir: DataDir,
    pub config: Config,
    pub json: bool,
    /// What its disk is to be like: for a storm's own node only.
    pub storm_disk: SlowDisk,
}

/// A node that runs. [`Node::stop`] ends it in order; dropping it ends it as a crash would.
pub struct Node {
    bare: BareNode,
    operator: Arc<Operator>,
    data: Runtime,
    crowd: Runtime,
    control: JoinHandle<()>,
    stop_control: watch::Sender<bool>,
    socket: PathBuf,
}

impl Node {
    /// Starts a node on an initialised directory, on runtimes of its own.
    ///
    /// # Errors
    /// `InUse` when somebody holds the directory, `Damaged`, and whatever keeps it from listening.
    pub fn start(data_dir: &DataDir, config: Config) -> Result<Node, ApiError> {
        Node::start_on(data_dir, config, |directory| directory)
    }

    /// As [`Node::start`], with the directory behind whatever `medium` puts before it.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_on<M: Medium>(
        data_dir: &DataDir,
        config: Config,
        medium: impl FnOnce(RealDir) -> M,
    ) -> Result<Node, ApiError> {
        let control = Builder::new_current_thread().enable_all().build().map_err(|error| no_runtime(&error))?;
        let lock = control.block_on(acquire(data_dir, NODE_ROLE, Patience::Node))?;
        Node::start_under(lock, control, data_dir, config, medium)
    }

    fn start_under<M: Medium>(
        lock: DirectoryLock,
        control: Runtime,
        data_dir: &DataDir,
        config: Config,
        medium: impl FnOnce(RealDir) -> M,
    ) -> Result<Node, ApiError> {
        let opened = stores::open_all_on(data_dir, lock, medium)?;
        let runtime = |name: &str, start: fn()| {
            let built = Builder::new_multi_thread().thread_name(name).on_thread_start(start).enable_all().build();
            built.map_err(|error| no_runtime(&error))
        };
        let begin_data = || begin_thread(DATA_NICENESS);
        let begin_crowd = || begin_thread(CROWD_NICENESS);
        let (data, crowd) = (runtime("data", begin_data)?, runtime("crowd", begin_crowd)?);
        let bare = {
            let _inside = data.enter();
            BareNode::start_on(opened, config, Berths::apart(data.handle().clone(), crowd.handle().clone()))?
        };
        let engine = bare.engine().clone();
        let live = Live { engine: engine.clone(), data: data.handle().clone() };
        let operator = Arc::new(Operator::of_node(live, data_dir));
        let socket = data_dir.control_socket(|name| std::env::var_os(name))?;
        let (stop_control, stopped) = watch::channel(false);
        let control = spawn_control(control, socket.clone(), operator.clone(), engine, data_dir, stopped)?;
        Ok(Node { bare, operator, data, crowd, control, stop_control, socket })
    }

    /// As [`Node::start`], for whoever holds the directory's lock already.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_locked(data_dir: &DataDir, config: Config, lock: DirectoryLock) -> Result<Node, ApiError> {
        let control = Builder::new_current_thread().enable_all().build().map_err(|error| no_runtime(&error))?;
        Node::start_under(lock, control, data_dir, config, |directory| directory)
    }

    /// Who this node is.
    pub fn peer_id(&self) -> PeerId {
        self.bare.engine().book.me()
    }

    /// Where it listens.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.bare.engine().transport.local_addrs()
    }

    /// What its operator may do.
    pub fn operator(&self) -> &Arc<Operator> {
        &self.operator
    }

    /// The engine, for programs that embed a node.
    pub fn engine(&self) -> &Arc<Engine> {
        self.bare.engine()
    }

    /// The runtime on which everything that touches the network runs.
    pub fn data(&self) -> &tokio::runtime::Handle {
        self.data.handle()
    }

    /// Ends the node in order: nothing acknowledged is lost, and what is not on the disk is an error.
    ///
    /// # Errors
    /// `NotDurable` when something could not be written.
    pub fn stop(self) -> Result<(), ApiError> {
        self.stop_control.send_replace(true);
        if self.control.join().is_err() {
            tracing::error!("the control thread had died");
        }
        // Intake and outbox end; exchanges that run may finish.
        self.bare.end_tasks();
        let engine = self.bare.engine().clone();
        self.data.block_on(async move {
            for peer in engine.registry.session_peers() {
                engine.registry.cut(&peer, EndReason::Stopped);
            }
            engine.registry.quiet(STOP_PATIENCE).await;
            engine.transport.close(CloseCode::Stopping);
            // Peers learn it from the close frame; those that do not, from silence.
            let _ = tokio::time::timeout(FAREWELL, engine.transport.wait_idle()).await;
        });
        // What has timers of the other one ends first.
        self.data.shutdown_timeout(RUNTIME_PATIENCE);
        self.crowd.shutdown_timeout(RUNTIME_PATIENCE);
        socket::remove(&self.socket);
        self.bare.close().map(|_| ())
    }
}

/// What a thread that works for connections does first.
fn begin_thread(niceness: i32) {
    seed_generator();
    stand_back(niceness);
}

fn no_runtime(error: &std::io::Error) -> ApiError {
    ApiError::new(ErrorCode::Failure, format!("The runtime cannot start: {error}."))
}

/// The control thread: the API, and what happens as time passes. Returns once the socket listens.
fn spawn_control(
    runtime: Runtime,
    socket: PathBuf,
    operator: Arc<Operator>,
    engine: Arc<Engine>,
    data_dir: &DataDir,
    stopped: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, ApiError> {
    let (listens, listening) = oneshot::channel();
    let data_dir = data_dir.clone();
    let events = engine.events.clone();
    let run = move || {
        runtime.block_on(async move {
            let listener = match socket::bind(&socket) {
                Ok(listener) => listener,
                Err(error) => return drop(listens.send(Err(error))),
            };
            // Nobody waits any more only if the start has failed elsewhere.
            let _ = listens.send(Ok(()));
            let expiry = tokio::spawn(expire_again_and_again(engine));
            server::serve(listener, operator, events, data_dir, stopped).await;
            expiry.abort();
        });
    };
    let thread =
        std::thread::Builder::new().name("control".to_owned()).spawn(run).map_err(|error| no_runtime(&error))?;
    match listening.blocking_recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ApiError::new(ErrorCode::Failure, "The control thread died.")),
    }
}

async fn expire_again_and_again(engine: Arc<Engine>) {
    let mut ticks = tokio::time::interval(EXPIRY_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Where a grant has ended, it looks at all records. A panic in it has been told; the next tick tries again.
        let engine = engine.clone();
        let _ = tokio::task::spawn_blocking(move || engine.expire()).await;
    }
}

/// Runs a node until SIGTERM or SIGINT. A second signal ends the process at once.
///
/// # Errors
/// As [`Node::start`] and [`Node::stop`].
pub fn run(options: RunOptions) -> Result<(), ApiError> {
    let RunOptions { data_dir, config, json, storm_disk } = options;
    let signals = Builder::new_current_thread().enable_all().build().map_err(|error| no_runtime(&error))?;
    let mut ends = {
        let _inside = signals.enter();
        Ends::listen().map_err(|error| no_runtime(&error))?
    };
    let node = match storm_disk.wait() {
        Some(wait) => Node::start_on(&data_dir, config, |directory| SlowMedium::behind(directory, wait))?,
        None => Node::start(&data_dir, config)?,
    };
    Output::new(json).ready(&ReadyReply {
        event: "ready".to_owned(),
        peer_id: node.peer_id().to_string(),
        listen: node.local_addrs().iter().map(ToString::to_string).collect(),
        control: node.socket.display().to_string(),
    })?;
    signals.block_on(ends.next());
    tracing::info!("stopping");
    let (done, stopped) = oneshot::channel();
    let stopper = std::thread::Builder::new()
        .name("stop".to_owned())
        .spawn(move || drop(done.send(node.stop())))
        .map_err(|error| no_runtime(&error))?;
    let result = signals.block_on(async {
        tokio::select! {
            result = stopped => Some(result),
            () = ends.next() => None,
        }
    });
    match result {
        Some(result) => {
            if stopper.join().is_err() {
                tracing::error!("the stopping thread died");
            }
            result.unwrap_or_else(|_| Err(ApiError::new(ErrorCode::Failure, "Stopping failed; see the log.")))
        }
        None => Err(ApiError::new(ErrorCode::Failure, "Ended at once by a second signal.")
            .hint("what was acknowledged is on the disk")),
    }
}

/// The signals that end a node.
struct Ends {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ends {
    fn listen() -> std::io::Result<Ends> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Ends { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
