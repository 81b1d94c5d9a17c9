//! The commands: each turns what was typed into one request, has it carried out, and says what came of it.
//!
//! Here is what they share: where the data directory and the configuration are, and how talkative to be.
//!
//! Not here: the rules (`operations`), the form of what is printed (`output`).

mod backend;
mod change;
mod config;
mod doctor;
mod dump;
mod events;
mod id;
mod init;
mod join;
mod lock;
mod manuals;
mod network;
mod recover;
mod run;
#[cfg(test)]
mod schemas;
mod show;
mod store;
mod storm;

use std::io::IsTerminal;
use std::path::PathBuf;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::cli::{Cli, Command, ConfigCommand, Global, StoreCommand};
use crate::clock::MonotonicClock;
use crate::config::{Config, ConfigFile, Flag, environment};
use crate::control::api::{ApiError, ErrorCode};
use crate::data_dir::{self, Access, DataDir};
use crate::log_limit::LineLimit;
use crate::output::Output;

pub use self::lock::{NODE_ROLE, Patience, acquire};

/// How a command that printed its reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should.
    Done,
    /// The reply says that it is not all well: its exit code.
    But(ErrorCode),
}

impl Verdict {
    /// The exit code of the program.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Done => 0,
            Verdict::But(code) => code.exit_code(),
        }
    }

    fn durable(durable: bool) -> Verdict {
        if durable { Verdict::Done } else { Verdict::But(ErrorCode::NotDurable) }
    }
}

/// Carries out what was typed.
///
/// # Errors
/// What the operator is to be told; nothing was printed for it yet.
pub fn carry_out(cli: &Cli) -> Result<Verdict, ApiError> {
    let context = Context { global: &cli.global, output: Output::new(cli.global.json) };
    if !matches!(cli.command, Command::Run(_)) {
        context.start_logging("warn");
    }
    match &cli.command {
        Command::Init(arguments) => init::init(&context, arguments),
        Command::Id => id::id(&context),
        Command::Run(arguments) => run::run(&context, arguments),
        Command::Join(arguments) => join::join(&context, arguments),
        Command::Storm(arguments) => storm::storm(&context, arguments),
        Command::Config(ConfigCommand::Show) => config::show(&context),
        Command::Doctor => doctor::doctor(&context),
        Command::Completions(arguments) => manuals::completions(&context, arguments),
        Command::Man(arguments) => manuals::man(&context, arguments),
        Command::Store(StoreCommand::Check) => store::check(&context),
        Command::Store(StoreCommand::Dump) => dump::dump(&context),
        command => block_on(ask(&context, command)),
    }
}

/// The commands that a node carries out if there is one.
async fn ask(context: &Context<'_>, command: &Command) -> Result<Verdict, ApiError> {
    match command {
        Command::Trust(arguments) => change::trust(context, arguments).await,
        Command::Network(command) => network::network(context, command).await,
        Command::Invite(arguments) => network::invite(context, arguments).await,
        Command::Reject(arguments) => change::reject(context, arguments).await,
        Command::Revoke(arguments) => change::revoke(context, arguments).await,
        Command::Block(arguments) => change::block(context, arguments).await,
        Command::Unblock(arguments) => change::unblock(context, arguments).await,
        Command::Pending => show::pending(context).await,
        Command::Peers(arguments) => show::peers(context, arguments).await,
        Command::Sessions => show::sessions(context).await,
        Command::Explain(arguments) => show::explain(context, arguments).await,
        Command::Status => show::status(context).await,
        Command::Ping(arguments) => show::ping(context, arguments).await,
        Command::Events(arguments) => events::events(context, arguments).await,
        Command::Store(StoreCommand::Compact) => store::compact(context).await,
        Command::Store(StoreCommand::Recover(arguments)) => recover::recover(context, arguments).await,
        // Carried out before.
        Command::Init(_)
        | Command::Id
        | Command::Run(_)
        | Command::Config(_)
        | Command::Doctor
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Join(_)
        | Command::Store(_)
        | Command::Storm(_) => Ok(Verdict::Done),
    }
}

/// Runs a command's conversation on this thread.
fn block_on<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        let message = format!("The system gives no resources for the command: {error}.");
        ApiError::new(ErrorCode::Failure, message).hint("see the limits on open files and processes")
    })?;
    runtime.block_on(work)
}

/// What every command has at hand.
struct Context<'a> {
    global: &'a Global,
    output: Output,
}

impl Context<'_> {
    /// Where the data directory is, or should be.
    fn path(&self) -> Result<PathBuf, ApiError> {
        Ok(data_dir::resolve(self.global.data_dir.as_deref(), |name| std::env::var_os(name))?)
    }

    /// The data directory, which must be there.
    fn directory(&self, access: Access) -> Result<DataDir, ApiError> {
        Ok(DataDir::open(&self.path()?, access)?)
    }

    fn configuration(&self, directory: Option<&DataDir>, flags: &[Flag]) -> Result<Config, ApiError> {
        let file = ConfigFile::choose(self.global.config.as_deref(), |name| std::env::var_os(name), directory);
        Ok(Config::load(&file, &environment(), flags)?)
    }

    /// Logs to stderr what `-v` and `-q` ask for, otherwise what `usual` says; a bounded number of lines.
    fn start_logging(&self, usual: &str) {
        let filter = match (self.global.quiet, self.global.verbose) {
            (true, _) => "error",
            (false, 0) => usual,
            (false, 1) => "info,handfast=debug,handfast_trust=debug",
            (false, _) => "trace",
        };
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        let limit = LineLimit::new(MonotonicClock::start());
        let lines = fmt::layer().with_ansi(colour).with_writer(limit.writer(std::io::stderr));
        let lines = lines.with_filter(limit).with_filter(EnvFilter::new(filter));
        // An error means that the process has a subscriber already: then that one is used.
        let _ = tracing_subscriber::registry().with(lines).try_init();
    }
}
