//! `dwarpal alerts test`: does every receiver of alerts hear this gateway?

use clap::Subcommand;

use super::control::{Target, tell};
use crate::admin::Command;

#[derive(Subcommand)]
pub enum Alerts {
    /// Has the running gateway send a test to every receiver, and says what each answered
    Test(Target),
}

pub fn run(command: Alerts) -> u8 {
    match command {
        Alerts::Test(target) => tell(&target, &Command::TestAlerts),
    }
}
