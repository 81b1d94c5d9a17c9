//! `completions`: what a shell needs to complete the commands. `man`: a manual page for each of them. Both are made from
//! the command line itself (`cli`), so that they say what it takes.
//!
//! Disk steps: pages are written in place, into a directory that is there. They are copies: nothing is synced.

use std::io;
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use serde::Serialize;

use super::{Context, Verdict};
use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::control::api::{ApiError, ErrorCode};

/// `completions`
#[derive(Debug, Serialize)]
pub(super) struct CompletionsReply {
    pub(super) shell: String,
    pub(super) script: String,
}

/// `man`
#[derive(Debug, Serialize)]
pub(super) struct ManReply {
    pub(super) dir: String,
    pub(super) files: Vec<String>,
}

pub(super) fn completions(context: &Context<'_>, arguments: &CompletionsArgs) -> Result<Verdict, ApiError> {
    let reply = CompletionsReply { shell: arguments.shell.to_string(), script: script(arguments.shell) };
    context.output.reply(&reply, |reply| reply.script.clone())?;
    Ok(Verdict::Done)
}

pub(super) fn man(context: &Context<'_>, arguments: &ManArgs) -> Result<Verdict, ApiError> {
    let files = write_pages(&arguments.dir)?;
    let reply = ManReply { dir: arguments.dir.display().to_string(), files };
    context.output.reply(&reply, man_text)?;
    Ok(Verdict::Done)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "handfast", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The page of each command that is shown, by the name of its file.
fn pages() -> Vec<Man> {
    let mut whole = Cli::command();
    whole.build();
    let (mut pages, mut next) = (Vec::new(), vec![whole]);
    while let Some(command) = next.pop() {
        next.extend(command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help").cloned());
        pages.push(Man::new(command));
    }
    pages.sort_by_cached_key(Man::get_filename);
    pages
}

/// Writes them into `dir`, and says which.
fn write_pages(dir: &Path) -> Result<Vec<String>, ApiError> {
    if !dir.is_dir() {
        let message = format!("There is no directory {}.", dir.display());
        return Err(ApiError::new(ErrorCode::NotFound, message).hint(format!("mkdir -p {}", dir.display())));
    }
    let write = |page: Man| {
        let file = page.get_filename();
        let written = page.generate_to(dir);
        written.map(|_| file.clone()).map_err(|error| unwritten(&dir.join(file), &error))
    };
    pages().into_iter().map(write).collect()
}

fn unwritten(file: &Path, error: &io::Error) -> ApiError {
    ApiError::new(ErrorCode::Failure, format!("{} cannot be written: {error}.", file.display()))
        .hint("give a directory that is yours, or run as its owner")
}

fn man_text(reply: &ManReply) -> String {
    format!("Wrote {} pages to {}: {}", reply.files.len(), reply.dir, reply.files.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command that is shown, as a page is called.
    fn commands(command: &clap::Command, name: &str) -> Vec<String> {
        let below = command.get_subcommands().flat_map(|one| commands(one, &format!("{name}-{}", one.get_name())));
        [name.to_owned()].into_iter().chain(below).collect()
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = script(shell);
            let words: Vec<&str> = script.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_')).collect();
            for command in commands(&Cli::command(), "handfast").iter().flat_map(|name| name.split('-')) {
                assert!(words.contains(&command), "{shell}: {command}");
            }
        }
    }

    #[test]
    fn each_command_has_a_page_and_nothing_is_made_around_them() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("man1");
        let refused = write_pages(&dir).unwrap_err();
        assert_eq!((refused.code, dir.exists()), (ErrorCode::NotFound, false));
        std::fs::create_dir(&dir).unwrap();
        let mut expected: Vec<String> =
            commands(&Cli::command(), "handfast").iter().map(|name| format!("{name}.1")).collect();
        expected.sort();
        assert_eq!(write_pages(&dir).unwrap(), expected);
        assert_eq!(write_pages(&dir).unwrap(), expected, "they are replaced");
        let mut found: Vec<_> =
            std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        assert_eq!(found, expected);
        let page = std::fs::read_to_string(dir.join("handfast-trust.1")).unwrap();
        assert!(page.contains("\\-\\-wait") && page.contains("Examples:"), "{page}");
        // One that is in the way is named.
        std::fs::remove_file(dir.join("handfast-id.1")).unwrap();
        std::fs::create_dir(dir.join("handfast-id.1")).unwrap();
        let refused = write_pages(&dir).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Failure);
        assert!(refused.message.contains("handfast-id.1"), "{refused:?}");
    }
}
