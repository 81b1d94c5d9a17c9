//! The program `handfast`: reads the command line, has it carried out, and ends with its exit code.

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use handfast::cli::Cli;
use handfast::commands;
use handfast::control::api::{ApiError, ErrorCode};
use handfast::output::Output;

/// A handshake allocates about a thousand times, on whatever thread has it: the system's allocator costs 86 us of that.
/// This one gives back, from a thread of its own, what a storm leaves behind.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match commands::carry_out(&cli) {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(error) => {
            Output::new(cli.global.json).error(&error);
            ExitCode::from(error.code.exit_code())
        }
    }
}

/// Help and version are no errors; the rest is a usage error, in the form that was asked for as far as can be seen.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if is_asked_for || !json {
        // Nothing can be done where printing fails.
        let _ = error.print();
        return ExitCode::from(if is_asked_for { 0 } else { ErrorCode::Usage.exit_code() });
    }
    let text = error.render().to_string();
    let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let error = ApiError::new(ErrorCode::Usage, message.split_whitespace().collect::<Vec<_>>().join(" "));
    Output::new(true).error(&error.hint("handfast --help"));
    ExitCode::from(ErrorCode::Usage.exit_code())
}
