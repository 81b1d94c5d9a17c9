//! The configuration: what an operator can choose, where each value came from, and nothing that is only a default.
//!
//! A value is taken from the first of: flag, environment (`HANDFAST_` and the key, dots as underscores), file, default.
//! Unknown keys in the file are refused, and so is a value out of its range, with the place and what is allowed there.
//!
//! Invariant: a [`Config`] holds only permitted values, and knows the origin of each ([`Config::shown`]). The table in
//! this file is the one place of keys, defaults and ranges; `config/handfast.toml` is checked against it.
//!
//! Not here: what was typed (`cli`), where the data directory is (`data_dir`), and the meaning of the values.

mod error;
mod file;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use handfast_protocol::PeerId;
use handfast_protocol::limits::ADDRESSES_MAX;
use serde::Serialize;

pub use self::error::{ConfigError, Origin};
pub(crate) use self::file::text_of;
pub use self::value::LogFilter;
use self::value::{Given, Rule, SettingValue};
use crate::data_dir::DataDir;
use crate::transport::{KeyExchange, TransportSettings};

/// The UDP port of a node that says nothing else.
pub const DEFAULT_PORT: u16 = 4433;
const VARIABLE_PREFIX: &str = "HANDFAST_";
/// Variables with our prefix that are no settings.
const OTHER_VARIABLES: [&str; 2] = ["HANDFAST_CONFIG", "HANDFAST_DATA_DIR"];

/// Declares [`Config`], its defaults and the table of its keys.
macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr, $key:literal, $rule:expr;)*) => {
        /// The values in force.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Config {
            $($(#[$doc])* pub $field: $type,)*
            origins: BTreeMap<&'static str, Origin>,
        }

        impl Default for Config {
            fn default() -> Config {
                Config { $($field: $default,)* origins: BTreeMap::new() }
            }
        }

        const KEYS: &[Key] = &[$(Key {
            name: $key,
            rule: $rule,
            form: <$type as SettingValue>::FORM,
            set: |config, given, rule| {
                config.$field = <$type as SettingValue>::read(given).filter(|value| value.is_permitted(rule))?;
                Some(())
            },
            show: |config| config.$field.show(),
        },)*];
    };
}

/// One row of the table.
struct Key {
    name: &'static str,
    rule: Rule,
    form: &'static str,
    set: fn(&mut Config, &Given, &Rule) -> Option<()>,
    show: fn(&Config) -> serde_json::Value,
}

settings! {
    /// UDP addresses to listen on. `[::]` takes IPv4 too.
    listen: Vec<SocketAddr> = vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, DEFAULT_PORT))], "listen", Rule::range(1, 8);
    /// Addresses to tell peers instead of those that are derived from `listen`.
    advertise: Vec<SocketAddr> = Vec::new(), "advertise", Rule::dialable(ADDRESSES_MAX as u64);
    /// Whether loopback and link-local addresses that remote peers bring may be dialled.
    dial_local_addresses: bool = false, "dial_local_addresses", Rule::ANY;
    /// How the two ends of a connection agree on keys.
    key_exchange: KeyExchange = KeyExchange::X25519, "key_exchange", Rule::ANY;
    /// Keys whose requests are granted without asking.
    policy_allow: Vec<PeerId> = Vec::new(), "policy.allow", Rule::range(0, 100_000);
    /// Keys that are treated as blocked.
    policy_deny: Vec<PeerId> = Vec::new(), "policy.deny", Rule::range(0, 100_000);
    /// Whether every request is granted: for tests and storms.
    policy_accept_all: bool = false, "policy.accept_all", Rule::ANY;
    /// Grants that one rule may make in an hour: a fleet of a thousand at once.
    policy_grants_per_hour: u64 = 1_000, "policy.grants_per_hour", Rule::range(0, 1_000_000);
    /// Grants of one rule that may stand in total: ten such fleets.
    policy_grants_total: u64 = 10_000, "policy.grants_total", Rule::range(0, 10_000_000);
    /// Grants of a network's rule that may stand of the members that one sponsor let in: a fifth of all.
    policy_grants_per_sponsor: u64 = 2_000, "policy.grants_per_sponsor", Rule::range(0, 10_000_000);
    /// What is logged, as a filter of tracing-subscriber.
    log_filter: LogFilter = LogFilter::default(), "log.filter", Rule::ANY;
    /// Records without an edge of ours, in all.
    pending_total: u64 = 4_096, "limits.pending_total", Rule::range(1, 1_000_000);
    /// The same, from one source prefix.
    pending_per_source: u64 = 64, "limits.pending_per_source", Rule::range(1, 1_000_000);
    /// New ones in a second, in all: each costs an fsync.
    pending_new_per_second: u64 = 10, "limits.pending_new_per_second", Rule::range(1, 100_000);
    /// Handshakes that one IPv4 address, or one IPv6 /64, may begin in a second; twice as many at once.
    handshakes_per_address: u64 = 50, "limits.handshakes_per_address", Rule::range(1, 1_000_000);
    /// The same for one IPv4 /24, or one IPv6 /48.
    handshakes_per_prefix: u64 = 200, "limits.handshakes_per_prefix", Rule::range(1, 1_000_000);
    /// Seconds without a packet after which a connection is lost.
    idle_timeout_s: u64 = 30, "limits.idle_timeout_s", Rule::range(3, 600);
    /// Seconds without a packet after which one is sent; less than half of the idle time, so that one may get lost.
    keep_alive_s: u64 = 10, "limits.keep_alive_s", Rule::range(1, 299);
    /// Send and receive buffer to ask the system for, per socket: 4 MiB hold a burst of 3,000 first packets.
    socket_buffer_bytes: u64 = 4 * 1024 * 1024, "limits.socket_buffer_bytes", Rule::range(64 * 1024, 256 * 1024 * 1024);
}

/// Which file is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigFile {
    /// The operator named it: it must be there.
    Named(PathBuf),
    /// The one of the data directory, if it is there.
    Usual(PathBuf),
    /// None.
    None,
}

impl ConfigFile {
    /// `flag`, else `$HANDFAST_CONFIG`, else `handfast.toml` of the data directory: what one directory says concerns
    /// the node of that directory alone.
    pub fn choose(
        flag: Option<&Path>,
        environment: impl Fn(&str) -> Option<OsString>,
        directory: Option<&DataDir>,
    ) -> ConfigFile {
        let variable = || environment("HANDFAST_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        match flag.map(Path::to_path_buf).or_else(variable) {
            Some(path) => ConfigFile::Named(path),
            None => directory.map_or(ConfigFile::None, |directory| ConfigFile::Usual(directory.config())),
        }
    }
}

/// A setting from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The key that it sets, e.g. `listen`.
    pub key: &'static str,
    /// How it is typed, e.g. `--listen`.
    pub typed: &'static str,
    /// Its values; each may be a list with commas.
    pub values: Vec<String>,
}

/// One line of `config show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub key: &'static str,
    pub value: serde_json::Value,
    pub origin: String,
}

/// Every `HANDFAST_*` variable of this process.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
        .collect()
}

/// Variables that look like settings and are none: a typing error, as a rule. Whoever starts a node says so.
pub fn unknown_variables(environment: &[(String, String)]) -> Vec<&str> {
    let is_known = |name: &str| OTHER_VARIABLES.contains(&name) || KEYS.iter().any(|key| variable_of(key.name) == name);
    let names = environment.iter().map(|(name, _)| name.as_str());
    names.filter(|name| name.starts_with(VARIABLE_PREFIX) && !is_known(name)).collect()
}

impl Config {
    /// Reads the file, and lays environment and flags over it.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML, an unknown key, or a value that is not permitted.
    pub fn load(file: &ConfigFile, environment: &[(String, String)], flags: &[Flag]) -> Result<Config, ConfigError> {
        let text = match file {
            ConfigFile::Named(path) => Some((path, file::read(path)?)),
            ConfigFile::Usual(path) => match file::read(path) {
                Err(error) if error.is_absent() => None,
                text => Some((path, text?)),
            },
            ConfigFile::None => None,
        };
        let mut config = Config::default();
        if let Some((path, text)) = &text {
            config.take_file(path, text)?;
        }
        config.take_environment(environment)?;
        config.take_flags(flags)?;
        config.check_together()?;
        Ok(config)
    }

    /// Every key with its value and its origin, in the order of the table.
    pub fn shown(&self) -> Vec<Shown> {
        let show =
            |key: &Key| Shown { key: key.name, value: (key.show)(self), origin: self.origin(key.name).to_string() };
        KEYS.iter().map(show).collect()
    }

    /// Where the value of a key came from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// What the transport needs of it.
    pub fn transport(&self) -> TransportSettings {
        TransportSettings {
            key_exchange: self.key_exchange,
            idle_timeout: Duration::from_secs(self.idle_timeout_s),
            keep_alive: Duration::from_secs(self.keep_alive_s),
            socket_buffer_bytes: usize::try_from(self.socket_buffer_bytes).unwrap_or(usize::MAX),
        }
    }

    fn take_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        for entry in file::parse(path, text, |prefix| KEYS.iter().any(|key| key.name.starts_with(prefix)))? {
            let origin = Origin::File { path: path.to_path_buf(), line: entry.line };
            self.take(&entry.key, &entry.given, origin)?;
        }
        Ok(())
    }

    fn take_environment(&mut self, environment: &[(String, String)]) -> Result<(), ConfigError> {
        for key in KEYS {
            let variable = variable_of(key.name);
            if let Some((_, value)) = environment.iter().find(|(name, _)| *name == variable) {
                self.take(key.name, &Given::Words(vec![value.clone()]), Origin::Environment { variable })?;
            }
        }
        Ok(())
    }

    fn take_flags(&mut self, flags: &[Flag]) -> Result<(), ConfigError> {
        for flag in flags {
            self.take(flag.key, &Given::Words(flag.values.clone()), Origin::Flag { typed: flag.typed })?;
        }
        Ok(())
    }

    fn take(&mut self, name: &str, given: &Given, origin: Origin) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return Err(ConfigError::UnknownKey { origin, key: name.to_owned() });
        };
        if (key.set)(self, given, &key.rule).is_none() {
            let allowed = key.rule.allowed(key.form);
            return Err(ConfigError::BadValue { origin, key: key.name, found: given.to_string(), allowed });
        }
        self.origins.insert(key.name, origin);
        Ok(())
    }

    /// What no range of a single value can say. The origin is that of the value that was chosen, if only one was.
    fn check_together(&self) -> Result<(), ConfigError> {
        if self.keep_alive_s * 2 >= self.idle_timeout_s {
            let origins = ["limits.keep_alive_s", "limits.idle_timeout_s"].map(|key| self.origin(key));
            let chosen = origins.into_iter().find(|origin| **origin != Origin::Default).unwrap_or(origins[0]);
            return Err(ConfigError::KeepAliveTooLong {
                origin: chosen.clone(),
                keep_alive_s: self.keep_alive_s,
                idle_timeout_s: self.idle_timeout_s,
            });
        }
        Ok(())
    }
}

/// `limits.pending_total` is `HANDFAST_LIMITS_PENDING_TOTAL`.
fn variable_of(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
}
