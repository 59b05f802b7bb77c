//! Who is looked up? Kinds of identifier, their one canonical form, and what of them may rest.
//!
//! A subject is parsed once, where the request enters; limits, detectors, audit and the backend all use that one value,
//! so no two of them can disagree about who was asked for. Only tokens and features (keyed, see [`EpochKey`]) are kept.

use std::fmt;

mod aadhaar;
mod allocated;
pub mod epochs;
mod features;
mod keys;
mod mobile;
mod other;

pub use features::{Features, Mark};
pub use keys::{Digester, EpochKey, KeyError, Token, hex};

/// What sort of identifier a route accepts. Always declared by the route, never guessed: `91` and a mobile number is
/// twelve digits, and one in ten of those is a possible Aadhaar number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Indian mobile number; canonical: ten digits.
    Mobile,
    /// Aadhaar number; canonical: twelve digits.
    Aadhaar,
    /// Virtual ID of an Aadhaar number, which the law treats as the number itself; canonical: sixteen digits.
    Vid,
    /// Health-account (ABHA) number; canonical: fourteen digits.
    Abha,
    /// Vaccination beneficiary reference; canonical: thirteen or fourteen digits.
    Beneficiary,
    /// Voter card; canonical: three capitals, seven digits.
    Epic,
    /// Passport; canonical: a capital, seven digits.
    Passport,
    /// Tax number; canonical: five capitals, four digits, a capital.
    Pan,
}

impl Kind {
    pub const ALL: [Kind; 8] =
        [Kind::Mobile, Kind::Aadhaar, Kind::Vid, Kind::Abha, Kind::Beneficiary, Kind::Epic, Kind::Passport, Kind::Pan];

    /// The name in configuration, audit and traces. It is part of every token, so it never changes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Mobile => "mobile",
            Kind::Aadhaar => "aadhaar",
            Kind::Vid => "vid",
            Kind::Abha => "abha",
            Kind::Beneficiary => "beneficiary",
            Kind::Epic => "epic",
            Kind::Passport => "passport",
            Kind::Pan => "pan",
        }
    }

    /// The kind of exactly this name.
    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A person as asked for: a kind and the canonical id, sixteen ASCII bytes at most.
///
/// It has no `Display`, `Hash` or serialisation on purpose: what is printed, kept or used as a key is its [`Token`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    kind: Kind,
    length: u8,
    /// Zero after `length`, so that the derived equality is that of the ids.
    bytes: [u8; ID_BYTES_MAX],
}

const ID_BYTES_MAX: usize = 16;

/// Longer input is refused unread: no notation of any kind needs half of this.
const RAW_BYTES_MAX: usize = 64;

impl Subject {
    /// Reads any accepted notation of an id of this kind.
    ///
    /// Surrounding ASCII white space, spaces and hyphens are dropped (for mobiles also dots and parentheses), letters
    /// become capitals. Digits of other scripts are refused rather than folded: the backend might not fold them alike.
    pub fn parse(kind: Kind, raw: &str) -> Result<Subject, Invalid> {
        if raw.len() > RAW_BYTES_MAX {
            return Err(Invalid::TooLong);
        }
        if !raw.is_ascii() {
            return Err(Invalid::NotAscii);
        }
        let separators: &[u8] = if kind == Kind::Mobile { b" -.()" } else { b" -" };
        let mut compact = [0; RAW_BYTES_MAX];
        let mut length = 0;
        for byte in raw.trim_ascii().bytes().filter(|byte| !separators.contains(byte)) {
            compact[length] = byte.to_ascii_uppercase();
            length += 1;
        }
        let text = &compact[..length];
        if text.is_empty() {
            return Err(Invalid::Empty);
        }
        let id = match kind {
            Kind::Mobile => mobile::national(text)?,
            Kind::Aadhaar => aadhaar::issued(text, aadhaar::NUMBER)?,
            Kind::Vid => aadhaar::issued(text, aadhaar::VIRTUAL_ID)?,
            Kind::Abha => other::abha(text)?,
            Kind::Beneficiary => other::beneficiary(text)?,
            Kind::Epic => other::epic(text)?,
            Kind::Passport => other::passport(text)?,
            Kind::Pan => other::pan(text)?,
        };
        // Every shape is at most ID_BYTES_MAX long, and the functions above answer only with their shape.
        let mut bytes = [0; ID_BYTES_MAX];
        bytes[..id.len()].copy_from_slice(id);
        Ok(Subject { kind, length: id.len() as u8, bytes })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The canonical id in clear. For the body that goes to the backend, and for nothing else.
    pub fn expose(&self) -> &str {
        // Always ASCII; were it not, the backend would be asked for nobody.
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }

    /// Whether the number series is given to an operator; `None` for kinds other than mobile. An unallocated number is
    /// well-formed: people mistype, but a scan hits such series far more often.
    pub fn allocated(&self) -> Option<bool> {
        match self.kind {
            Kind::Mobile => Some(allocated::contains(self.expose().get(..5)?.parse().ok()?)),
            _ => None,
        }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({}, …)", self.kind.as_str())
    }
}

/// Why a text is no id of its kind: the first rule that fails, in the order size, alphabet, shape, prefix, check
/// digit, palindrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invalid {
    /// Nothing but separators.
    Empty,
    /// More than 64 bytes.
    TooLong,
    /// A character outside ASCII, such as a digit of another script.
    NotAscii,
    /// Not the length or the sequence of letters and digits of the kind.
    Format,
    /// A first digit that is not issued.
    Prefix,
    /// The check digit does not belong to the other digits.
    CheckDigit,
    /// Reads the same backwards, which is never issued.
    Palindrome,
    /// The right shape with digits hidden behind `X` or `*`: a display form, not a key to look up.
    Masked,
}

impl Invalid {
    /// The code in audit and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Invalid::Empty => "empty",
            Invalid::TooLong => "too-long",
            Invalid::NotAscii => "not-ascii",
            Invalid::Format => "format",
            Invalid::Prefix => "prefix",
            Invalid::CheckDigit => "check-digit",
            Invalid::Palindrome => "palindrome",
            Invalid::Masked => "masked",
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Invalid::Empty => "identifier is empty",
            Invalid::TooLong => "identifier is longer than 64 bytes",
            Invalid::NotAscii => "identifier has a character outside ASCII",
            Invalid::Format => "identifier does not have the format of its kind",
            Invalid::Prefix => "identifier begins with a digit that is not issued",
            Invalid::CheckDigit => "identifier has a wrong check digit",
            Invalid::Palindrome => "identifier reads the same backwards, which is never issued",
            Invalid::Masked => "identifier is masked and cannot be looked up",
        })
    }
}

impl std::error::Error for Invalid {}

/// Whether `text` is an id of any kind, or holds a mobile or an Aadhaar number that stands alone between other characters, or
/// enough digits of another script for one. An actor's id that does would put a person's number into logs and alerts; a
/// second member that does would have a person looked up uncounted.
pub fn resembles_subject(text: &str) -> bool {
    let whole = Kind::ALL.into_iter().any(|kind| Subject::parse(kind, text).is_ok());
    // A random one would be taken for a number now and then.
    let uuid = text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    whole || (!uuid && (holds_number(text) || holds_foreign_digits(text)))
}

/// Whether a text by people, such as a reason, names somebody: a word that resembles a subject, or a mobile or an Aadhaar number
/// in groups of three digits or more, as people write them.
pub fn mentions_subject(text: &str) -> bool {
    let mut words = text.split(|end: char| end.is_whitespace() || matches!(end, ',' | ';'));
    // Dates and times have groups of two.
    let grouped = text.split(|c: char| !c.is_ascii_digit() && !matches!(c, ' ' | '-' | '.' | '(' | ')')).any(|run| {
        let groups: Vec<&str> = run.split(|c: char| !c.is_ascii_digit()).filter(|group| !group.is_empty()).collect();
        let numbers = (2..=4).flat_map(|count| groups.windows(count));
        let numbers = numbers.filter(|groups| groups.iter().all(|group| group.len() >= 3));
        numbers.into_iter().any(|groups| holds_number(&groups.concat()))
    });
    grouped || words.any(resembles_subject)
}

/// Whether a mobile or an Aadhaar number begins anywhere in `text`, also within a longer run of digits. Random text does so
/// now and then: for what can be left out.
pub fn may_hold_number(text: &str) -> bool {
    let runs = text.as_bytes().split(|byte| !byte.is_ascii_digit());
    let is = |kind, window| std::str::from_utf8(window).is_ok_and(|window| Subject::parse(kind, window).is_ok());
    runs.into_iter().any(|run| {
        run.windows(10).any(|window| is(Kind::Mobile, window))
            || run.windows(12).any(|window| is(Kind::Aadhaar, window))
    })
}

fn holds_number(text: &str) -> bool {
    let words =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
    words.into_iter().any(|word| match word.len() {
        10 => Subject::parse(Kind::Mobile, word).is_ok(),
        12 => Subject::parse(Kind::Aadhaar, word).is_ok(),
        _ => false,
    })
}

/// Ten or more digits in a row of which some are not ASCII: nobody here would count them as what they are.
fn holds_foreign_digits(text: &str) -> bool {
    let runs = text.split(|c: char| !c.is_numeric());
    runs.into_iter().any(|run| !run.is_ascii() && run.chars().count() >= 10)
}

/// Checks `text` against a shape in which `A` stands for a capital and `0` for a digit.
fn shaped(text: &[u8], shape: &[u8]) -> Result<(), Invalid> {
    if text.len() != shape.len() {
        return Err(Invalid::Format);
    }
    let mut verdict = Ok(());
    for (byte, class) in text.iter().zip(shape) {
        let fits = if *class == b'A' { byte.is_ascii_uppercase() } else { byte.is_ascii_digit() };
        match byte {
            _ if fits => {}
            b'X' | b'*' => verdict = Err(Invalid::Masked),
            _ => return Err(Invalid::Format),
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Invalid::*;
    use super::Kind::*;
    use super::*;

    const VALID: &[(Kind, &str, &str)] = &[
        (Mobile, "6412345678", "6412345678"),
        (Mobile, "+91 64123 45678", "6412345678"),
        (Mobile, "06412345678", "6412345678"),
        (Mobile, "0091-6412345678", "6412345678"),
        (Mobile, "91 6412345678", "6412345678"),
        (Mobile, "0916412345678", "6412345678"),
        (Mobile, "+91 0 6412345678", "6412345678"),
        (Mobile, "\t(+91) 641.234.5678\n", "6412345678"),
        (Mobile, "9123456789", "9123456789"),
        (Mobile, "6876543210", "6876543210"),
        (Mobile, "+91-68765 43210", "6876543210"),
        (Mobile, "068765 43210", "6876543210"),
        // The same digits are possible Aadhaar numbers: only the declared kind tells.
        (Mobile, "919876543216", "9876543216"),
        (Mobile, "919876543228", "9876543228"),
        (Aadhaar, "919876543216", "919876543216"),
        (Aadhaar, "919876543228", "919876543228"),
        (Aadhaar, "999941057058", "999941057058"),
        (Aadhaar, "9999 4105 7058", "999941057058"),
        (Aadhaar, "9999-4105-7058", "999941057058"),
        (Aadhaar, "999971658847", "999971658847"),
        (Aadhaar, "999933119405", "999933119405"),
        (Aadhaar, "999955183433", "999955183433"),
        (Aadhaar, "999990501894", "999990501894"),
        (Aadhaar, "234123412346", "234123412346"),
        (Vid, "2341234123412341", "2341234123412341"),
        (Vid, "2341 2341 2341 2341", "2341234123412341"),
        (Vid, "2345678901234565", "2345678901234565"),
        (Vid, "9876543210123457", "9876543210123457"),
        (Abha, "91-2345-6789-0123", "91234567890123"),
        (Abha, "91234567890123", "91234567890123"),
        (Beneficiary, "1234567890123", "1234567890123"),
        (Beneficiary, "12345678901234", "12345678901234"),
        (Epic, "TST1234566", "TST1234566"),
        (Epic, "tst 1234566", "TST1234566"),
        (Epic, "ABC0000018", "ABC0000018"),
        (Passport, "A1234567", "A1234567"),
        (Passport, "a-123 4567", "A1234567"),
        (Passport, "A1234560", "A1234560"),
        (Pan, "AAAPZ1234C", "AAAPZ1234C"),
        (Pan, "aaapz 1234 c", "AAAPZ1234C"),
        // X is a letter where a letter belongs.
        (Pan, "XXXPX1234X", "XXXPX1234X"),
    ];

    const INVALID: &[(Kind, &str, Invalid)] = &[
        (Mobile, "", Empty),
        (Mobile, " \t", Empty),
        (Mobile, "(-)", Empty),
        (Mobile, "5123456789", Prefix),
        (Mobile, "1234567890", Prefix),
        (Mobile, "641234567", Format),
        (Mobile, "64123456789", Format),
        (Mobile, "+9164123456789", Format),
        (Mobile, "+1 6412345678", Format),
        (Mobile, "+6412345678", Format),
        (Mobile, "9106412345678", Format),
        (Mobile, "009106412345678", Format),
        (Mobile, "641+2345678", Format),
        (Mobile, "64123\t45678", Format),
        (Mobile, "6412345678\0", Format),
        (Mobile, "६४१२३४५६७८", NotAscii),
        (Mobile, "６４１２３４５６７８", NotAscii),
        (Mobile, "641234567O", Format),
        (Mobile, "XXXXXX3210", Masked),
        (Mobile, "98XXXXXX10", Masked),
        (Mobile, "+91 xxxxx x3210", Masked),
        (Aadhaar, "", Empty),
        (Aadhaar, "999971658846", CheckDigit),
        (Aadhaar, "999933119400", CheckDigit),
        (Aadhaar, "999955183437", CheckDigit),
        (Aadhaar, "234123412347", CheckDigit),
        (Aadhaar, "999914057058", CheckDigit),
        (Aadhaar, "999941057059", CheckDigit),
        (Aadhaar, "123412341234", Prefix),
        (Aadhaar, "999999999999", Palindrome),
        (Aadhaar, "299999999992", Palindrome),
        (Aadhaar, "222222222222", CheckDigit),
        (Aadhaar, "XXXXXXXX7058", Masked),
        (Aadhaar, "XXXX XXXX 2346", Masked),
        (Aadhaar, "****-****-2346", Masked),
        (Aadhaar, "XXXX2346", Format),
        (Aadhaar, "9999.4105.7058", Format),
        (Aadhaar, "99994105705", Format),
        (Aadhaar, "९९९९४१०५७०५८", NotAscii),
        (Vid, "2341234123412342", CheckDigit),
        (Vid, "1341234123412341", Prefix),
        (Vid, "2222222222222222", CheckDigit),
        (Vid, "3333333333333333", Palindrome),
        (Vid, "999941057058", Format),
        (Abha, "9123456789012", Format),
        (Abha, "912345678901234", Format),
        (Abha, "9123456789012A", Format),
        (Abha, "XX-XXXX-XXXX-0123", Masked),
        (Abha, "asha.test1@sbx", Format),
        (Beneficiary, "123456789012", Format),
        (Beneficiary, "123456789012345", Format),
        (Beneficiary, "XXXXXXXXX0123", Masked),
        (Epic, "ABC1234567", CheckDigit),
        (Epic, "TST7654324", CheckDigit),
        (Epic, "XX/00/000/000000", Format),
        (Epic, "XXXXXX4566", Masked),
        (Passport, "A0234567", Prefix),
        (Passport, "1A234567", Format),
        (Passport, "AB123456", Format),
        (Passport, "A123456", Format),
        (Passport, "XXXXX567", Masked),
        (Pan, "ABCDE1234F", Format),
        (Pan, "AAAPZ0000C", Format),
        (Pan, "AAAPZ12345", Format),
        (Pan, "AAAPZXXXXC", Masked),
    ];

    fn subject(kind: Kind, raw: &str) -> Subject {
        Subject::parse(kind, raw).unwrap_or_else(|invalid| panic!("{kind:?} {raw}: {invalid}"))
    }

    #[test]
    fn each_valid_example_has_its_canonical_form() {
        for (kind, raw, canonical) in VALID {
            assert_eq!(subject(*kind, raw).expose(), *canonical, "{kind:?} {raw}");
            assert_eq!(subject(*kind, canonical), subject(*kind, raw), "{kind:?} {raw}");
            assert_eq!(subject(*kind, raw).kind(), *kind);
        }
    }

    #[test]
    fn each_invalid_example_fails_for_its_own_reason() {
        for (kind, raw, reason) in INVALID {
            assert_eq!(Subject::parse(*kind, raw), Err(*reason), "{kind:?} {raw}");
        }
    }

    #[test]
    fn more_than_64_bytes_are_not_read() {
        let padded = |bytes: usize| format!("{:>bytes$}", "6412345678");
        assert_eq!(subject(Mobile, &padded(64)).expose(), "6412345678");
        assert_eq!(Subject::parse(Mobile, &padded(65)), Err(TooLong));
        assert_eq!(Subject::parse(Mobile, &"६".repeat(1_000_000)), Err(TooLong));
    }

    #[test]
    fn only_mobiles_are_allocated_or_not() {
        assert_eq!(subject(Mobile, "6412345678").allocated(), Some(false));
        assert_eq!(subject(Mobile, "9123456789").allocated(), Some(true));
        assert_eq!(subject(Aadhaar, "999941057058").allocated(), None);
    }

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        }
        for name in ["", "Mobile", "mobile ", "driving-licence"] {
            assert_eq!(Kind::parse(name), None, "{name}");
        }
    }

    #[test]
    fn an_actor_named_like_a_person_is_noticed() {
        for (_, raw, _) in VALID {
            assert!(resembles_subject(raw), "{raw}");
        }
        for text in [
            "hw-6412345678",
            "also 6412345678",
            "6412345678,6412345679",
            "id=999941057058;",
            "६४१२३४५६७८",
            "call ６４１２３４５６７８",
            "641234567८",
            "01890f3e-6412345678-1234",
        ] {
            assert!(resembles_subject(text), "{text}");
        }
        for text in [
            "",
            "hw-1042",
            "asha.test1@sbx",
            "MH1420110012345",
            "XXXXXXXX7058",
            "clinic 7",
            "case 2026-11-24/0001",
            "x6412345678y",
            "hw-999941057059",
            "4bf92f35-77b3-4da6-a3ce-999941057058",
            "वार्ड ७",
        ] {
            assert!(!resembles_subject(text), "{text}");
        }
    }

    #[test]
    fn a_text_that_mentions_a_person_is_noticed() {
        for text in [
            "asked for 6412345678",
            "asked 3 times for 64123 45678 on 2026-11-24",
            "+91 (641) 234-5678, twice",
            "9999 4105 7058; see INC-7",
            "beneficiary 12345678901234, again",
        ] {
            assert!(mentions_subject(text), "{text}");
        }
        for text in ["", "INC-2026-11-24 10:15, see 4711-0815", "2026-11-24 1015 1016", "9999 4105 7059", "64123 4567"]
        {
            assert!(!mentions_subject(text), "{text}");
        }
    }

    #[test]
    fn nothing_printed_holds_the_id() {
        assert_eq!(format!("{:?}", subject(Mobile, "6412345678")), "Subject(mobile, …)");
        for (kind, raw, reason) in INVALID.iter().filter(|(_, raw, _)| raw.len() > 2) {
            let printed = format!("{reason:?} {reason} {}", reason.as_str());
            assert!(!printed.contains(raw), "{kind:?} {raw}");
        }
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        prop::sample::select(Kind::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn every_notation_of_a_mobile_is_one_subject(
            tail in "[0-9]{8}",
            prefix in prop::sample::select(vec!["", "0", "91", "091", "0091", "+91", "+910", "(+91)", "+91-0"]),
            gaps in prop::collection::vec(prop::sample::select(vec!["", " ", "-", ".", "(", ")"]), 10),
        ) {
            let number = format!("64{tail}");
            let spread: String = number.chars().zip(&gaps).map(|(digit, gap)| format!("{gap}{digit}")).collect();
            let key = EpochKey::ephemeral();
            let (plain, written) = (subject(Mobile, &number), subject(Mobile, &format!("{prefix}{spread}")));
            prop_assert_eq!(plain, written);
            prop_assert_eq!(key.token(&plain), key.token(&written));
        }

        #[test]
        fn any_text_is_parsed_or_refused_and_its_canonical_form_stands(
            kind in any_kind(),
            raw in ".{0,70}|\\PC*|[0-9A-Z+x* \\-\0]{8,20}",
        ) {
            if let Ok(subject) = Subject::parse(kind, &raw) {
                prop_assert_eq!(Subject::parse(kind, subject.expose()), Ok(subject));
                let printed = format!("{subject:?}");
                prop_assert!(!printed.contains(subject.expose()));
            }
            resembles_subject(&raw);
        }

        #[test]
        fn whatever_is_parsed_has_a_token_and_features(kind in any_kind(), raw in "[A-Z]{0,5}[0-9]{4,16}[A-Z]?") {
            if let Ok(subject) = Subject::parse(kind, &raw) {
                let key = EpochKey::ephemeral();
                prop_assert_eq!(key.token(&subject), key.token(&subject));
                prop_assert!(key.features(&subject).offset < 1_000);
            }
        }
    }
}
