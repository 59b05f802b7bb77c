//! May this partner come in now, from there? Contract period, hours, and its own networks.

use std::fmt;
use std::net::IpAddr;

use super::Partner;
use super::networks::{Match, NetworkId};
use super::reason::Reason;
use super::shadow::Shadow;
use crate::clock::Timestamp;

/// Where a partner stands, whatever its contract says. Decided by people, kept in `state/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    Open,
    /// Nothing is answered until an operator thaws it.
    Frozen,
}

/// Agreed hours of a week, in the partner's own offset from UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    /// Monday first.
    pub days: [bool; 7],
    /// Minutes of the day; `from` is inside, `to` is outside, `from < to <= 1440`.
    pub from: u16,
    pub to: u16,
    pub utc_offset_minutes: i16,
}

impl Hours {
    pub fn contain(&self, now: Timestamp) -> bool {
        let local = now.unix_seconds() as i64 + i64::from(self.utc_offset_minutes) * 60;
        let day = local.div_euclid(86_400);
        let minute = (local.rem_euclid(86_400) / 60) as u16;
        let weekday = (day + 3).rem_euclid(7) as usize; // 1 January 1970 was a Thursday
        self.days[weekday] && (self.from..self.to).contains(&minute)
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let days: Vec<_> = NAMES.iter().zip(self.days).filter_map(|(name, open)| open.then_some(*name)).collect();
        let (from, to, offset) = (self.from, self.to, self.utc_offset_minutes);
        let sign = if offset < 0 { '-' } else { '+' };
        let offset = offset.unsigned_abs();
        let days = days.join(" ");
        write!(f, "{days} {:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)?;
        write!(f, " (UTC{sign}{:02}:{:02})", offset / 60, offset % 60)
    }
}

/// The network by which the partner comes in, with what would be refused without those in shadow; or the reason why it
/// does not.
pub fn admit(
    partner: &Partner,
    standing: Standing,
    source: IpAddr,
    now: Timestamp,
) -> Result<(NetworkId, Shadow), Reason> {
    match standing {
        Standing::Open => {}
        Standing::Frozen => return Err(Reason::PartnerFrozen),
    }
    if !partner.is_valid(now) {
        return Err(Reason::PartnerNotValid);
    }
    let (network, shadow) = match partner.networks.find(source, now) {
        Match::Found(network) => (network, Shadow::default()),
        Match::Shadow(network) => (network, Shadow::from_iter([Reason::NetworkNotAllowed])),
        Match::Expired(_) => return Err(Reason::NetworkExpired),
        Match::Absent => return Err(Reason::NetworkNotAllowed),
    };
    if partner.hours.as_ref().is_some_and(|hours| !hours.contain(now)) {
        return Err(Reason::OutsideHours);
    }
    Ok((network, shadow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_those_of_the_partner() {
        let days = [true, true, true, true, true, false, false];
        let hours = Hours { days, from: 8 * 60, to: 20 * 60, utc_offset_minutes: 330 };
        for (now, open) in [
            ("2026-03-02T02:29:59Z", false), // Monday 07:59:59 in India
            ("2026-03-02T02:30:00Z", true),
            ("2026-03-02T14:29:59Z", true),
            ("2026-03-02T14:30:00Z", false),
            ("2026-03-06T12:00:00Z", true),
            ("2026-03-07T12:00:00Z", false), // Saturday
            ("2026-03-08T20:00:00Z", false), // Monday 01:30 in India
            ("2026-03-09T03:00:00Z", true),
        ] {
            assert_eq!(hours.contain(Timestamp::parse(now).expect(now)), open, "{now}");
        }
        assert_eq!(hours.to_string(), "mon tue wed thu fri 08:00-20:00 (UTC+05:30)");
    }
}
