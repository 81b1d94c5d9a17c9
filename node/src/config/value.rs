//! The types of settings: how each is read from TOML and from words, what it may be, and how it is shown.

use std::fmt;
use std::net::SocketAddr;

use handfast_protocol::{Address, PeerId};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

use crate::transport::KeyExchange;

/// Longest shown part of a value that was not taken.
const FOUND_CHARACTERS_MAX: usize = 80;

/// What a source gives for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given {
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<String>),
    /// From the environment or the command line, where everything is text.
    Words(Vec<String>),
    /// TOML that no key takes: its type.
    Other(&'static str),
}

impl Given {
    fn word(&self) -> Option<&str> {
        match self {
            Given::Words(words) => match words.as_slice() {
                [word] => Some(word.trim()),
                _ => None,
            },
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        if let Given::Text(text) = self { Some(text) } else { self.word() }
    }

    fn list<T: std::str::FromStr>(&self) -> Option<Vec<T>> {
        let parse = |item: &str| item.parse().ok();
        match self {
            Given::List(items) => items.iter().map(|item| parse(item)).collect(),
            Given::Words(words) => {
                let items = words.iter().flat_map(|word| word.split(',')).map(str::trim);
                items.filter(|item| !item.is_empty()).map(parse).collect()
            }
            _ => None,
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Given::Bool(value) => value.to_string(),
            Given::Integer(value) => value.to_string(),
            Given::Text(text) => format!("{text:?}"),
            Given::List(items) => format!("{items:?}"),
            Given::Words(words) => format!("{:?}", words.join(",")),
            Given::Other(kind) => format!("a TOML {kind}"),
        };
        let mut characters = text.chars();
        let shown: String = characters.by_ref().take(FOUND_CHARACTERS_MAX).collect();
        f.write_str(&shown)?;
        if characters.next().is_some() { f.write_str("...") } else { Ok(()) }
    }
}

/// What a value may be beyond its type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// Of a number, or of how many items.
    min: u64,
    max: u64,
    /// Whether addresses must be such that somebody can dial them.
    dialable: bool,
}

impl Rule {
    pub(super) const ANY: Rule = Rule { min: 0, max: u64::MAX, dialable: false };

    /// A number, or how many items, from `min` to `max`.
    pub(super) const fn range(min: u64, max: u64) -> Rule {
        Rule { min, max, dialable: false }
    }

    /// Up to `max` addresses that can be dialled.
    pub(super) const fn dialable(max: u64) -> Rule {
        Rule { min: 0, max, dialable: true }
    }

    /// For an operator: `form` with the range.
    pub(super) fn allowed(&self, form: &str) -> String {
        let range = if self.max == u64::MAX { String::new() } else { format!("{} to {} ", self.min, self.max) };
        let dialable = if self.dialable { ", none of them unspecified, multicast or without a port" } else { "" };
        format!("{}{dialable}", form.replace("{range}", &range))
    }

    fn holds(&self, number: u64) -> bool {
        (self.min..=self.max).contains(&number)
    }

    fn holds_items<T>(&self, items: &[T]) -> bool {
        self.holds(items.len() as u64)
    }
}

/// A type that a setting can have.
pub(super) trait SettingValue: Sized {
    /// What it looks like; `{range}` is replaced by the rule's.
    const FORM: &'static str;
    fn read(given: &Given) -> Option<Self>;
    fn is_permitted(&self, rule: &Rule) -> bool;
    fn show(&self) -> Value;
}

impl SettingValue for bool {
    const FORM: &'static str = "true or false";

    fn read(given: &Given) -> Option<bool> {
        match given {
            Given::Bool(value) => Some(*value),
            given => given.word()?.parse().ok(),
        }
    }

    fn is_permitted(&self, _: &Rule) -> bool {
        true
    }

    fn show(&self) -> Value {
        json!(self)
    }
}

impl SettingValue for u64 {
    const FORM: &'static str = "a whole number, {range}inclusive";

    fn read(given: &Given) -> Option<u64> {
        match given {
            Given::Integer(value) => u64::try_from(*value).ok(),
            given => given.word()?.parse().ok(),
        }
    }

    fn is_permitted(&self, rule: &Rule) -> bool {
        rule.holds(*self)
    }

    fn show(&self) -> Value {
        json!(self)
    }
}

impl SettingValue for Vec<SocketAddr> {
    const FORM: &'static str = "a list of {range}addresses such as \"192.0.2.1:4433\" or \"[::]:4433\"";

    fn read(given: &Given) -> Option<Vec<SocketAddr>> {
        given.list()
    }

    fn is_permitted(&self, rule: &Rule) -> bool {
        rule.holds_items(self) && (!rule.dialable || self.iter().all(|address| Address::from(*address).is_dialable()))
    }

    fn show(&self) -> Value {
        self.iter().map(ToString::to_string).collect()
    }
}

impl SettingValue for Vec<PeerId> {
    const FORM: &'static str = "a list of {range}whole ids (hf1..., 64 hex digits or did:key:z...)";

    fn read(given: &Given) -> Option<Vec<PeerId>> {
        given.list()
    }

    fn is_permitted(&self, rule: &Rule) -> bool {
        rule.holds_items(self)
    }

    fn show(&self) -> Value {
        self.iter().map(ToString::to_string).collect()
    }
}

impl SettingValue for KeyExchange {
    const FORM: &'static str = "\"x25519\" or \"x25519mlkem768\"";

    fn read(given: &Given) -> Option<KeyExchange> {
        match given.text()? {
            "x25519" => Some(KeyExchange::X25519),
            "x25519mlkem768" => Some(KeyExchange::X25519MlKem768),
            _ => None,
        }
    }

    fn is_permitted(&self, _: &Rule) -> bool {
        true
    }

    fn show(&self) -> Value {
        json!(match self {
            KeyExchange::X25519 => "x25519",
            KeyExchange::X25519MlKem768 => "x25519mlkem768",
        })
    }
}

/// Directives of tracing-subscriber's `EnvFilter`, known to parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter itself.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    /// Trust changes and what an operator should look at; of the libraries only the latter.
    fn default() -> LogFilter {
        LogFilter("warn,handfast=info,handfast_trust=info".into())
    }
}

impl SettingValue for LogFilter {
    const FORM: &'static str = "a filter such as \"info\" or \"warn,handfast=debug\"";

    fn read(given: &Given) -> Option<LogFilter> {
        let text = given.text()?;
        EnvFilter::builder().parse(text).ok().map(|_| LogFilter(text.to_owned()))
    }

    fn is_permitted(&self, _: &Rule) -> bool {
        true
    }

    fn show(&self) -> Value {
        json!(self.0)
    }
}
