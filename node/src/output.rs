//! What a person or a script gets to read: tables and sentences, or one JSON object; errors on stderr.
//!
//! Invariants: with `--json` stdout holds nothing but JSON objects with `"v":1`, one per line. Whatever a stranger may
//! have written is escaped in every cell and line that is shown to a person. Colour only on a terminal and without
//! `NO_COLOR`. A reader that has gone away is no error: what was done is done.
//!
//! Not here: what is said (each command has its own words).

use std::io::{self, Write};
use std::net::SocketAddr;

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, presets};
use handfast_protocol::text::escaped;
use owo_colors::OwoColorize;
use serde::Serialize;

use crate::control::api::{ApiError, ErrorCode, ErrorReply, ReadyReply, Versioned};

/// How a command speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    json: bool,
}

/// Whether somebody still reads what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Listening,
    Gone,
}

impl Output {
    /// For people, or for scripts.
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether a script is listening.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a reply: as one JSON object, or as what `text` makes of it.
    ///
    /// # Errors
    /// If it cannot be written; a reader that has gone is none.
    pub fn reply<T: Serialize>(&self, reply: &T, text: impl FnOnce(&T) -> String) -> Result<(), ApiError> {
        self.row(reply, text).map(|_| ())
    }

    /// Prints one line of a stream, likewise.
    ///
    /// # Errors
    /// As [`Output::reply`].
    pub fn row<T: Serialize>(&self, row: &T, text: impl FnOnce(&T) -> String) -> Result<Reader, ApiError> {
        if self.json {
            let line = serde_json::to_string(&Versioned::new(row)).map_err(|error| {
                ApiError::new(ErrorCode::Failure, format!("The reply cannot be written as JSON: {error}."))
            })?;
            written(write_line(&mut io::stdout().lock(), &line))
        } else {
            // Takes colours out unless stdout is a terminal that wants them.
            written(write_line(&mut anstream::stdout().lock(), text(row).trim_end_matches('\n')))
        }
    }

    /// Prints an error on stderr. Nothing can be done if that fails too.
    pub fn error(&self, error: &ApiError) {
        let _ = if self.json {
            let reply = Versioned::new(ErrorReply { error: error.clone() });
            write_line(&mut io::stderr().lock(), &serde_json::to_string(&reply).unwrap_or_default())
        } else {
            write_line(&mut anstream::stderr().lock(), &error_text(error))
        };
    }

    /// Says something beside the reply, to a person.
    pub fn aside(&self, text: &str) {
        if !self.json {
            let _ = write_line(&mut anstream::stderr().lock(), text);
        }
    }

    /// The one line that `run` prints when the node is ready.
    ///
    /// # Errors
    /// As [`Output::reply`].
    pub fn ready(&self, reply: &ReadyReply) -> Result<(), ApiError> {
        self.reply(reply, ready_text)
    }
}

fn ready_text(reply: &ReadyReply) -> String {
    let (peer, at) = (&reply.peer_id, reply.listen.join(", "));
    // Where a node that listens everywhere is reached, it cannot know.
    let address = match reply.listen.first().and_then(|address| address.parse::<SocketAddr>().ok()) {
        Some(address) if address.ip().is_unspecified() => format!("HOST:{}", address.port()),
        Some(address) => address.to_string(),
        None => "HOST:PORT".to_owned(),
    };
    format!("Ready: {peer} on {at}. To ask it for trust, run elsewhere: handfast trust {peer}@{address}")
}

fn error_text(error: &ApiError) -> String {
    let mut text = format!("{} {}", "error:".red().bold(), escaped(&error.message));
    if let Some(hint) = &error.hint {
        text.push_str(&format!("\n {} {}", "hint:".bold(), escaped(hint)));
    }
    text
}

fn write_line(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

fn written(outcome: io::Result<()>) -> Result<Reader, ApiError> {
    match outcome {
        Ok(()) => Ok(Reader::Listening),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(ApiError::new(ErrorCode::Failure, format!("Cannot write to stdout: {error}."))
            .hint("the command itself was carried out")),
    }
}

/// A table of text. Columns whose heading is in `whole` are not wrapped: ids are there to be copied.
pub fn table(headings: &[&str], whole: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.iter().map(|heading| Cell::new(heading).add_attribute(Attribute::Bold)));
    for row in rows {
        table.add_row(row.iter().map(|cell| cell_of(&escaped(cell))));
    }
    for (column, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(column) {
            column.set_padding((0, 2));
            if whole.contains(heading) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// States are coloured wherever they stand alone in a cell.
fn cell_of(text: &str) -> Cell {
    let colour = match text {
        "trusted" | "active" | "ok" | "yes" => Some(Color::Green),
        "pending" | "requested" | "degraded" => Some(Color::Yellow),
        "revoked" | "refused" | "blocked" | "damaged" | "closed" => Some(Color::Red),
        _ => None,
    };
    let cell = Cell::new(text);
    colour.map_or_else(|| Cell::new(text), |colour| cell.fg(colour))
}

/// A dash for what is not there.
pub fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

/// `1 session`, `2 sessions`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_escaped() {
        let rows = vec![vec!["hf1abc".into(), "say\u{202e} \u{1b}[31mhi\n".into()], vec!["b".into(), "x".into()]];
        let text = table(&["PEER", "NOTE"], &["PEER"], rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "PEER    NOTE");
        assert_eq!(lines[1], "hf1abc  say\\u{202e} \\u{1b}[31mhi\\u{a}");
        assert_eq!(lines[2], "b       x");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn errors_say_what_to_do_and_hide_nothing() {
        let error = ApiError::new(ErrorCode::NotFound, "no peer \u{200b}x").hint("look");
        let text = anstream::adapter::strip_str(&error_text(&error)).to_string();
        assert_eq!(text, "error: no peer \\u{200b}x\n hint: look");
    }

    #[test]
    fn a_ready_node_says_what_others_type() {
        let check = |listen: &[&str], says: &str| {
            let listen = listen.iter().map(|at| (*at).to_owned()).collect();
            let reply = ReadyReply {
                event: "ready".into(),
                peer_id: "hf1me".into(),
                listen,
                control: "/d/control.sock".into(),
            };
            let text = ready_text(&reply);
            assert!(text.ends_with(&format!("handfast trust hf1me@{says}")), "{text}");
            assert_eq!(text.lines().count(), 1);
        };
        check(&["127.0.0.1:5001"], "127.0.0.1:5001");
        check(&["[::]:4433", "127.0.0.1:1"], "HOST:4433");
        check(&[], "HOST:PORT");
    }

    #[test]
    fn a_reader_that_is_gone_is_no_error() {
        assert_eq!(written(Err(io::ErrorKind::BrokenPipe.into())), Ok(Reader::Gone));
        assert_eq!(written(Ok(())), Ok(Reader::Listening));
        assert_eq!(written(Err(io::ErrorKind::StorageFull.into())).unwrap_err().code, ErrorCode::Failure);
    }

    #[test]
    fn words_fit_their_numbers() {
        assert_eq!(counted(1, "session", "sessions"), "1 session");
        assert_eq!(counted(0, "session", "sessions"), "0 sessions");
        assert_eq!(or_dash(Some("")), "-");
        assert_eq!(or_dash(None), "-");
    }
}
