//! Bare quinn with the system's allocator, for the bench `handshake`: an allocator belongs to a program.
#![allow(clippy::print_stdout, reason = "its figures go to whoever started it")]
#![allow(clippy::cast_precision_loss)]

#[path = "../../benches/handshake/bare.rs"]
mod bare;
#[path = "../../benches/handshake/keys.rs"]
mod keys;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    bare::process(&arguments).unwrap_or_else(|| anyhow::bail!("started by the bench `handshake`"))
}
