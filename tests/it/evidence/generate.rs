//! How does a test or a bench get a large log? Lookups as a gateway logs them, through the journal and the publisher.

use std::path::Path;
use std::time::Duration;

use dwarpal::audit::event::{
    Answer, Backend, Closed, Credential, EndedBy, Event, Latency, Receipt, Request, Step, Subject, VERSION, Verdict,
};
use dwarpal::audit::index;
use dwarpal::audit::journal::Journal;
use dwarpal::audit::layout::SEGMENT;
use dwarpal::audit::note::Signer;
use dwarpal::audit::publish::{Publisher, Settings};
use dwarpal::clock::Timestamp;
use dwarpal::policy::admit::Standing;
use dwarpal::policy::reason::Reason;
use dwarpal::subject::epochs::Keyring;
use dwarpal::subject::{EpochKey, Kind, Mark};
use uuid::Uuid;

pub const ORIGIN: &str = "gateway.example/evidence";

/// When the first lookup was.
pub const BEGUN: u64 = 1_772_355_600;

/// Lookups a second, of what is generated.
const RATE: u64 = 100;

/// A data directory with a log in `audit`.
pub struct Log {
    pub journal: Journal,
    pub publisher: Publisher,
    /// Entries that were made.
    pub made: u64,
}

pub fn signer() -> Signer {
    Signer::from_seed(ORIGIN, &[5; 32]).expect("a key")
}

impl Log {
    /// Opens or begins the log of this data directory.
    pub fn open(data: &Path) -> Log {
        let directory = data.join("audit");
        let remembered = data.join("audit.checkpoint");
        let (journal, _) = Journal::open(&directory, 0).expect("a journal");
        let settings = Settings { directory, remembered, signer: signer(), index: index::build };
        let publisher = Publisher::open(settings, journal.size()).expect("a publisher");
        let made = journal.size();
        Log { journal, publisher, made }
    }

    /// Adds entries as they are, without publishing them.
    pub fn append(&mut self, entries: &[Vec<u8>]) {
        self.journal.append(entries).expect("durable");
        self.made += entries.len() as u64;
    }

    /// Publishes everything under a checkpoint, and seals what is complete.
    pub fn publish(&mut self) {
        self.publisher.catch_up(self.journal.size()).expect("published");
        self.publisher.checkpoint().expect("signed");
        while self.publisher.seal().expect("sealed").is_some() {}
    }

    /// Adds generated entries until there are so many, and publishes them.
    pub fn fill(&mut self, until: u64, crowd: &Crowd) {
        let mut batch = Vec::new();
        while self.made < until {
            batch.clear();
            let end = until.min(self.made + 4_096);
            batch.extend((self.made..end).map(|index| crowd.entry(index).to_json()));
            self.append(&batch);
            self.publisher.catch_up(self.journal.size()).expect("published");
            if self.made % SEGMENT < 4_096 {
                self.publish();
            }
        }
        self.publish();
    }
}

/// Who is asked for, under the epoch key of a data directory.
pub struct Crowd {
    people: Vec<Person>,
    epoch: String,
}

struct Person {
    token: Mark,
    block: Mark,
    after: Mark,
    series: Mark,
    offset: u16,
}

const PARTNERS: [&str; 5] = ["icmr", "state-health", "airports", "insurer-a", "research"];

impl Crowd {
    /// So many people, of whom each has a number of [`mobile`].
    pub fn of(data: &Path, count: u64) -> Crowd {
        let ring = Keyring::new(data, None);
        let (keys, _) = ring.open(Timestamp::from_unix_seconds(BEGUN), Duration::from_secs(86_400)).expect("a key");
        let key: &EpochKey = keys.current();
        let person = |number| {
            let subject = dwarpal::subject::Subject::parse(Kind::Mobile, &mobile(number)).expect("a number");
            let features = key.features(&subject);
            Person {
                token: Mark::from_bytes(key.token(&subject).key()),
                block: features.block,
                after: features.after,
                series: features.series,
                offset: features.offset,
            }
        };
        Crowd { people: (0..count).map(person).collect(), epoch: key.id().to_owned() }
    }

    /// The entry with this index: every other one says how the one before it ended, of the rest one in ten is a refusal.
    /// Nobody ever asks for person 0.
    pub fn entry(&self, index: u64) -> Event<'static> {
        let time = time_of(index);
        if index % SEGMENT < PARTNERS.len() as u64 {
            return self.credential(index % SEGMENT, time);
        }
        // A number that looks drawn, and is always the same.
        let drawn = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        match index % 2 {
            1 => self.closed(index, time),
            _ if drawn.is_multiple_of(10) => Event::Denied(Box::new(self.request(index, time, drawn, true))),
            _ => Event::Disclosure(Box::new(self.request(index, time, drawn, false))),
        }
    }

    fn request(&self, index: u64, time: Timestamp, drawn: u64, denied: bool) -> Request<'static> {
        let person = &self.people[1 + (drawn >> 8) as usize % (self.people.len() - 1)];
        let partner = (drawn >> 40) as usize % PARTNERS.len();
        Request {
            v: VERSION,
            time,
            id: decision(index),
            trace: Some(format!("{:032x}", u128::from(drawn) << 64 | u128::from(index)).into()),
            generation: 3,
            credential: fingerprint(partner as u64).into(),
            source: [10, 20, partner as u8, (drawn >> 50) as u8].into(),
            partner: Some(PARTNERS[partner].into()),
            standing: Standing::Open,
            route: Some("lookup-by-mobile".into()),
            grant: Some(0),
            purpose: Some("vaccination-status".into()),
            actor: Some(Mark::from_bytes((u128::from(drawn % 4_000) << 64).to_be_bytes())),
            consent: None,
            subject: Some(Subject {
                kind: "mobile".into(),
                epoch: self.epoch.clone().into(),
                token: person.token,
                previous: None,
                block: person.block,
                before: None,
                after: Some(person.after),
                offset: person.offset,
                series: person.series,
                allocated: Some(false),
                check_digit: None,
            }),
            found: None,
            footing: None,
            receipts: vec![Receipt::Paid, if denied { Receipt::Refused(Reason::RateSubject) } else { Receipt::Paid }],
            verdict: if denied { Verdict::Deny } else { Verdict::Allow },
            reason: denied.then_some(Reason::RateSubject),
            shadow: Vec::new(),
            backend: (!denied).then_some(Backend { status: 200, people: Some(1) }),
            fields: (!denied).then(|| vec!["/beneficiaries".into()]),
            answer: (!denied).then(|| Answer {
                bytes: 200 + drawn % 900,
                digest: Mark::from_bytes((u128::from(drawn) << 40).to_be_bytes()),
            }),
            latency: Latency {
                total_us: 700 + drawn % 3_000,
                upload_us: drawn % 90,
                backend_us: Some(500 + drawn % 2_000),
            },
        }
    }

    fn closed(&self, index: u64, time: Timestamp) -> Event<'static> {
        Event::Closed(Closed {
            v: VERSION,
            time,
            id: decision(index - 1),
            partner: None,
            by: if index.is_multiple_of(101) { EndedBy::Partner } else { EndedBy::Complete },
            step: Step::Answer,
            bytes: 200,
            digest: None,
            total_us: 900,
        })
    }

    fn credential(&self, partner: u64, time: Timestamp) -> Event<'static> {
        Event::Credential(Credential {
            v: VERSION,
            time,
            fingerprint: fingerprint(partner).into(),
            spki: "cd".repeat(32).into(),
            issuer: "partners".into(),
            subject: format!("CN={}", PARTNERS[partner as usize]).into(),
            uris: Vec::new(),
            dns_names: Vec::new(),
            not_after: time.plus(Duration::from_secs(90 * 86_400)),
        })
    }
}

pub fn mobile(number: u64) -> String {
    format!("64{number:08}")
}

/// The decision of the entry with this index.
pub fn decision(index: u64) -> Uuid {
    let millis = u128::from(time_of(index).as_nanos() / 1_000_000);
    let drawn = index.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Uuid::from_u128(millis << 80 | 0x7 << 76 | u128::from(drawn >> 2) | 0x2 << 62)
}

pub fn time_of(index: u64) -> Timestamp {
    Timestamp::from_unix_seconds(BEGUN).plus(Duration::from_nanos(index * (1_000_000_000 / RATE / 2)))
}

fn fingerprint(partner: u64) -> String {
    format!("{partner:02x}").repeat(32)
}
