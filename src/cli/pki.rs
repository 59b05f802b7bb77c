//! `dwarpal pki dev`: certificates for development.

use std::path::PathBuf;

use clap::Subcommand;

use super::{FAILED, YES};
use crate::clock::Clock;
use crate::demo::pki::{self, Made};

#[derive(Subcommand)]
pub enum Command {
    /// Makes the development CA, the gateway's certificate and those of the demo's partners, unless they are there
    Dev {
        #[arg(long, default_value = "certs/dev", value_name = "DIRECTORY")]
        dir: PathBuf,
        /// Make everything anew
        #[arg(long)]
        force: bool,
    },
}

pub fn run(command: Command) -> u8 {
    let Command::Dev { dir, force } = command;
    let now = Clock::system().now();
    let made = if force { pki::make(&dir, now).map(|()| Made::Fresh) } else { pki::ensure(&dir, now) };
    match made {
        Ok(Made::Fresh) => println!("made a development PKI in {}", dir.display()),
        Ok(Made::Reused) => println!("{} is complete and valid for at least a week", dir.display()),
        Err(error) => {
            eprintln!("error: {error}");
            return FAILED;
        }
    }
    YES
}
