//! The command line: one file a command. Exit codes: 0 yes, 1 no, 2 the command makes no sense, 3 the configuration is
//! refused, 4 it could not be done.

mod alerts;
mod audit;
mod check;
mod control;
mod demo;
mod explain;
mod lists;
mod pki;
mod reasons;
mod replay;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::problem::Problem;
use crate::config::settings::Overrides;

/// Whitelisted partner-API gateway: mutual TLS, IP allowlists and per-person limits in front of a sensitive registry.
#[derive(Parser)]
#[command(name = "dwarpal", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the gateway at work: development PKI, embedded backends, a guided tour over real mutual TLS
    Demo(demo::Arguments),
    /// Runs the gateway
    Serve(serve::Arguments),
    /// Checks a configuration, runs its cases and warns of what should be looked at
    Check(check::Arguments),
    /// Says what the gateway would decide on one request, and why
    Explain(explain::Arguments),
    /// Makes the running gateway read its configuration again
    Reload(control::Target),
    /// Stops answering a partner, now and after a restart
    Freeze(control::Freeze),
    /// Ends a freeze
    Thaw(control::Thaw),
    /// Holds back what a partner, or one of its actors, may look up, for a time
    Contain(control::Contain),
    /// Ends that before its time
    Release(control::Release),
    /// Says who is frozen or contained, since when, until when, by whom and why
    Standing(control::Standing),
    /// Says how the running gateway is
    Status(control::Target),
    /// The evidence: who was looked up by whom, and what proves it
    #[command(subcommand)]
    Audit(audit::Audit),
    /// People whose lookups are told of: watched ones, and canaries
    #[command(subcommand)]
    Lists(lists::Command),
    /// How operators hear of misuse
    #[command(subcommand)]
    Alerts(alerts::Alerts),
    /// Makes certificates for development
    #[command(subcommand)]
    Pki(pki::Command),
    /// Says what the gateway would have done with a trace of lookups
    Replay(replay::Arguments),
    /// Lists every reason for a refusal as a Markdown table
    Reasons,
}

/// What replaces the values of the configuration's files.
#[derive(Args, Clone, Default)]
struct OverrideArguments {
    /// Address to listen on for partners
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Address to listen on for metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Directory for what outlives the process
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    /// Worker threads
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Address of a backend's only server; may be repeated
    #[arg(long, value_name = "NAME=ADDRESS:PORT", value_parser = named_address)]
    backend: Vec<(String, SocketAddr)>,
}

impl OverrideArguments {
    fn overrides(&self) -> Overrides {
        Overrides {
            listen: self.listen,
            metrics: self.metrics,
            directory: self.data.clone(),
            workers: self.workers.map(usize::from),
            backends: self.backend.clone(),
        }
    }
}

const YES: u8 = 0;
const NO: u8 = 1;
const SENSELESS: u8 = 2;
const REFUSED: u8 = 3;
const FAILED: u8 = 4;

/// Runs the command of this process's arguments.
pub fn run() -> ExitCode {
    let code = match Cli::parse().command {
        Command::Demo(arguments) => demo::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Explain(arguments) => explain::run(arguments),
        Command::Reload(target) => control::reload(target),
        Command::Freeze(arguments) => control::freeze(arguments),
        Command::Thaw(arguments) => control::thaw(arguments),
        Command::Contain(arguments) => control::contain(arguments),
        Command::Release(arguments) => control::release(arguments),
        Command::Standing(arguments) => control::standing(arguments),
        Command::Status(target) => control::status(target),
        Command::Audit(command) => audit::run(command),
        Command::Lists(command) => lists::run(command),
        Command::Alerts(command) => alerts::run(command),
        Command::Pki(command) => pki::run(command),
        Command::Replay(arguments) => replay::run(arguments),
        Command::Reasons => reasons::run(),
    };
    ExitCode::from(code)
}

fn named_address(text: &str) -> Result<(String, SocketAddr), String> {
    let (name, address) = text.split_once('=').ok_or("it is NAME=ADDRESS:PORT")?;
    Ok((name.to_owned(), address.parse().map_err(|_| "it is NAME=ADDRESS:PORT")?))
}

/// Prints problems to standard error and says how many there are.
fn complain(problems: &[Problem]) -> u8 {
    for problem in problems {
        eprintln!("error: {problem}");
    }
    eprintln!("{} in the configuration; nothing was changed", counted(problems.len(), "error"));
    REFUSED
}

fn counted(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}
