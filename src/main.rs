//! The `dwarpal` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    dwarpal::cli::run()
}
