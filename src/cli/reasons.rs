//! `dwarpal reasons`: every reason for a refusal, as the README has it.

use super::YES;
use crate::policy::reason::{Reason, Retry};

pub fn run() -> u8 {
    print!("{}", table());
    YES
}

/// A Markdown table.
pub fn table() -> String {
    let mut table =
        "| reason (log, metrics, `explain`) | partner sees | status | retry | text |\n|---|---|---|---|---|\n"
            .to_owned();
    for reason in Reason::ALL {
        let row = reason.row();
        let retry = match row.retry {
            Retry::No => "no",
            Retry::Later => "later",
        };
        let (code, public, status, text) = (row.code, row.public, row.status, row.text);
        table.push_str(&format!("| `{code}` | `{public}` | {status} | {retry} | {text} |\n"));
    }
    table
}
