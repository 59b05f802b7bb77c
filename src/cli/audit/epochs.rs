//! `dwarpal audit epochs`: the keys that people are hidden under, in the gateway that runs.

use clap::{Args, Subcommand};

use super::super::control::{Target, tell, tell_for};
use super::reader;
use crate::admin::Command;

#[derive(Subcommand)]
pub enum Epochs {
    /// Lists every epoch: number, id, when it began and was followed, what became of it
    List(List),
    /// Begins the next epoch; people are counted under both until the overlap is over
    Rotate(Rotate),
    /// Destroys the key of an epoch that is over, so that its tokens name nobody any more
    Destroy(Destroy),
}

#[derive(Args)]
pub struct List {
    /// A JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
pub struct Rotate {
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
pub struct Destroy {
    /// Number of the epoch
    number: u32,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub fn run(command: Epochs) -> u8 {
    match command {
        Epochs::List(List { json, target }) => tell(&target, &Command::Epochs { json }),
        Epochs::Rotate(Rotate { reason, json, target }) => {
            tell_for(&target, &Command::RotateEpochs { reason }, reader(json))
        }
        Epochs::Destroy(Destroy { number, reason, json, target }) => {
            tell_for(&target, &Command::DestroyEpoch { number, reason }, reader(json))
        }
    }
}
