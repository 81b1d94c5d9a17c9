//! The file: TOML, as a list of dotted keys with what they are given and the line that says so.

use std::io::{self, Read};
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::value::Given;

/// A list of 10,000 ids fits.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One key of the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) given: Given,
}

pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_path_buf(), source };
    text_of(path, FILE_BYTES_MAX).map_err(unreadable)
}

/// The text of a file that somebody has named.
///
/// # Errors
/// Of the system; `FileTooLarge` beyond `bytes_max`.
pub(crate) fn text_of(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

/// The keys in the order of the file. `is_section` says whether keys that begin so are known: other tables are not
/// entered, so that the error names the table and not what is in it.
pub(super) fn parse(path: &Path, text: &str, is_section: impl Fn(&str) -> bool) -> Result<Vec<Entry>, ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        origin: Origin::File { path: path.to_path_buf(), line: line_of(text, error.span().map_or(0, |s| s.start)) },
        source: Box::new(error),
    })?;
    let mut entries = Vec::new();
    collect(text, "", table.get_ref(), &is_section, &mut entries);
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

/// Recursion is bounded: it enters only tables that the key table knows.
fn collect(
    text: &str,
    prefix: &str,
    table: &DeTable<'_>,
    is_section: &impl Fn(&str) -> bool,
    entries: &mut Vec<Entry>,
) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        let section = format!("{key}.");
        match value.get_ref() {
            DeValue::Table(inner) if is_section(&section) => collect(text, &section, inner, is_section, entries),
            _ => entries.push(Entry { key, line: line_of(text, name.span().start), given: given_of(value) }),
        }
    }
}

fn given_of(value: &Spanned<DeValue<'_>>) -> Given {
    let value = value.get_ref();
    let given = match value {
        DeValue::Boolean(value) => Some(Given::Bool(*value)),
        DeValue::Integer(value) => i64::from_str_radix(value.as_str(), value.radix()).ok().map(Given::Integer),
        DeValue::String(text) => Some(Given::Text(text.to_string())),
        DeValue::Array(items) => {
            let texts = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().map(Given::List)
        }
        _ => None,
    };
    given.unwrap_or(Given::Other(value.type_str()))
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}
