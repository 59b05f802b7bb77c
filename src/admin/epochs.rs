//! What is answered to commands about epochs?

use super::{Answer, Outcome};
use crate::clock::Timestamp;
use crate::epochs::Destroyed;
use crate::gateway::Gateway;
use crate::subject::epochs::{Epoch, EpochError, EpochState};

pub fn list(gateway: &Gateway, json: bool) -> Answer {
    let (epochs, now) = (gateway.epochs(), gateway.clock.now());
    let lines = epochs.epochs().iter().map(|epoch| {
        let state = epochs.state(epoch.number, now).unwrap_or(EpochState::Missing);
        let retired = epochs.retired(epoch.number);
        if json { as_json(epoch, state, retired) } else { for_people(epoch, state, retired) }
    });
    Answer { outcome: Outcome::Done, lines: lines.collect() }
}

fn as_json(epoch: &Epoch, state: EpochState, retired: Option<Timestamp>) -> String {
    let destroyed = epoch.destroyed.as_ref().map(|destroyed| {
        serde_json::json!({ "at": destroyed.at.to_string(), "by": destroyed.by, "reason": destroyed.reason })
    });
    let line = serde_json::json!({
        "number": epoch.number,
        "id": epoch.id,
        "created": epoch.created.to_string(),
        "overlap_until": epoch.overlap_until.to_string(),
        "retired": retired.map(|retired| retired.to_string()),
        "state": state.as_str(),
        "destroyed": destroyed,
    });
    line.to_string()
}

fn for_people(epoch: &Epoch, state: EpochState, retired: Option<Timestamp>) -> String {
    let second = |time: Timestamp| Timestamp::from_unix_seconds(time.unix_seconds());
    let retired = retired.map_or(String::new(), |retired| format!(", retired {}", second(retired)));
    let Epoch { number, id, created, destroyed, .. } = epoch;
    let ended = destroyed.as_ref().map_or(String::new(), |destroyed| {
        format!(" at {} by {}: {}", second(destroyed.at), destroyed.by, destroyed.reason)
    });
    format!("epoch {number} ({id}), created {}{retired}: {}{ended}", second(*created), state.as_str())
}

pub fn rotate(gateway: &Gateway, by: &str, reason: &str) -> Answer {
    match gateway.rotate_epochs(by, reason) {
        Ok(number) => {
            let until = gateway.epochs().epochs().last().map_or_else(Timestamp::default, |epoch| epoch.overlap_until);
            let until = Timestamp::from_unix_seconds(until.unix_seconds());
            let line =
                format!("epoch {number} has begun; people are counted under the one before as well until {until}");
            Answer { outcome: Outcome::Done, lines: vec![line] }
        }
        Err(error) => refused(&error),
    }
}

pub fn destroy(gateway: &Gateway, number: u32, by: &str, reason: &str) -> Answer {
    match gateway.destroy_epoch(number, by, reason) {
        Ok(Destroyed::Wholly) => {
            let line = format!("the key of epoch {number} is destroyed: its tokens name nobody any more");
            Answer { outcome: Outcome::Done, lines: vec![line] }
        }
        Ok(Destroyed::Remains { path, source }) => {
            let line = format!(
                "epoch {number} is not used any more, but its key is still at {}: {source}; remove it there, then say this again",
                path.display()
            );
            Answer { outcome: Outcome::Failed, lines: vec![line] }
        }
        Err(error) => refused(&error),
    }
}

fn refused(error: &EpochError) -> Answer {
    let outcome = match error {
        EpochError::Unknown { .. } => Outcome::Unknown,
        EpochError::Overlaps { .. }
        | EpochError::IsCurrent { .. }
        | EpochError::IsCounted { .. }
        | EpochError::IsDestroyed { .. } => Outcome::Denied,
        _ => Outcome::Failed,
    };
    Answer { outcome, lines: vec![error.to_string()] }
}
