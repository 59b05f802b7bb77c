//! Is this body what the route declares? Reads a JSON object by its declared shape and writes it anew.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, Visitor};

use super::reason::Reason;

/// One declared value: a member of a body or a parameter of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub accepts: Accepts,
    pub required: bool,
}

/// What a declared value may be. Never null, never a fraction: both are read differently by different parsers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// Text without control characters, of at most so many characters.
    Text {
        length_max: u32,
    },
    /// A whole number in decimal, both bounds included.
    Integer {
        min: i64,
        max: i64,
    },
    Boolean,
}

/// A value that was accepted.
#[derive(Clone, PartialEq, Eq)]
pub enum Scalar {
    Text(String),
    Integer(i64),
    Boolean(bool),
}

/// The declared members of a JSON object, by JSON pointer. What is not here does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    members: Vec<(String, Member)>,
    leaves: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    Leaf { index: usize, accepts: Accepts, required: bool },
    Object(Shape),
}

/// The values of a body, by the index that [`Shape::declare`] gave each member.
#[derive(Clone, PartialEq, Eq)]
pub struct Values(Vec<Option<Scalar>>);

impl Accepts {
    /// Reads a query parameter's decoded text.
    pub fn read(self, text: &str) -> Option<Scalar> {
        match self {
            Accepts::Text { .. } => self.text(text).then(|| Scalar::Text(text.to_owned())),
            Accepts::Integer { .. } => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let plain =
                    digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
                let number = text.parse().ok().filter(|_| plain && text != "-0")?;
                self.integer(number).then_some(Scalar::Integer(number))
            }
            Accepts::Boolean => text.parse().ok().map(Scalar::Boolean),
        }
    }

    fn text(self, text: &str) -> bool {
        let Accepts::Text { length_max } = self else { return false };
        text.chars().count() <= length_max as usize && !text.chars().any(char::is_control)
    }

    fn integer(self, number: i64) -> bool {
        matches!(self, Accepts::Integer { min, max } if (min..=max).contains(&number))
    }
}

impl Scalar {
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Scalar::Text(text) => Some(text),
            Scalar::Integer(_) | Scalar::Boolean(_) => None,
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Text(text) => f.write_str(text),
            Scalar::Integer(number) => number.fmt(f),
            Scalar::Boolean(truth) => truth.fmt(f),
        }
    }
}

impl fmt::Debug for Scalar {
    /// Says only what it is: a member may hold an identifier.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scalar::Text(_) => "Text(…)",
            Scalar::Integer(_) => "Integer(…)",
            Scalar::Boolean(_) => "Boolean(…)",
        })
    }
}

impl Shape {
    /// Declares a member by the reference tokens of its JSON pointer and gives it its index. The error says why not.
    pub fn declare(&mut self, pointer: &[String], accepts: Accepts, required: bool) -> Result<usize, &'static str> {
        let index = self.leaves;
        self.place(pointer, Member::Leaf { index, accepts, required })?;
        self.leaves += 1;
        Ok(index)
    }

    /// Index of a declared member.
    pub fn index(&self, pointer: &[String]) -> Option<usize> {
        let (first, rest) = pointer.split_first()?;
        match self.member(first)? {
            Member::Leaf { index, .. } => rest.is_empty().then_some(*index),
            Member::Object(shape) => shape.index(rest),
        }
    }

    /// Reads one JSON object that has every required member and none that is not declared, each once.
    pub fn read(&self, body: &[u8]) -> Result<Values, Reason> {
        let mut reading = Reading { values: vec![None; self.leaves], refused: Cell::new(None), inside: false };
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = ObjectSeed { shape: self, reading: &mut reading }.deserialize(&mut json).and_then(|()| json.end());
        if let Err(error) = read {
            let wrong_type = error.is_data() && reading.inside;
            let otherwise = if wrong_type { Reason::MemberInvalid } else { Reason::BodyNotJson };
            return Err(reading.refused.get().unwrap_or(otherwise));
        }
        let complete = self.complete(&reading.values);
        complete.then_some(Values(reading.values)).ok_or(Reason::MemberMissing)
    }

    /// Writes the values as the backend gets them: declared members only, in declared order.
    pub fn write(&self, values: &Values) -> Vec<u8> {
        let mut json = Vec::with_capacity(128);
        self.write_into(values, &mut json);
        json
    }

    fn place(&mut self, pointer: &[String], leaf: Member) -> Result<(), &'static str> {
        let Some((first, rest)) = pointer.split_first() else { return Err("a member's pointer is not empty") };
        let at = self.members.iter().position(|(name, _)| name == first);
        match (rest.is_empty(), at) {
            (true, None) => self.members.push((first.clone(), leaf)),
            (false, None) => {
                let mut inner = Shape::default();
                inner.place(rest, leaf)?;
                self.members.push((first.clone(), Member::Object(inner)));
            }
            (false, Some(at)) => match &mut self.members[at].1 {
                Member::Object(inner) => inner.place(rest, leaf)?,
                Member::Leaf { .. } => return Err("a member cannot be a value and an object"),
            },
            (true, Some(_)) => return Err("the member is declared twice"),
        }
        Ok(())
    }

    fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find_map(|(declared, member)| (declared == name).then_some(member))
    }

    fn complete(&self, values: &[Option<Scalar>]) -> bool {
        self.members.iter().all(|(_, member)| match member {
            Member::Leaf { index, required, .. } => !required || values[*index].is_some(),
            Member::Object(shape) => shape.complete(values),
        })
    }

    fn any(&self, values: &Values) -> bool {
        self.members.iter().any(|(_, member)| match member {
            Member::Leaf { index, .. } => values.0[*index].is_some(),
            Member::Object(shape) => shape.any(values),
        })
    }

    fn write_into(&self, values: &Values, json: &mut Vec<u8>) {
        let mut separator = b'{';
        for (name, member) in &self.members {
            let present = match member {
                Member::Leaf { index, .. } => values.0[*index].is_some(),
                Member::Object(shape) => shape.any(values),
            };
            if !present {
                continue;
            }
            json.push(separator);
            separator = b',';
            write_text(name, json);
            json.push(b':');
            match member {
                Member::Object(shape) => shape.write_into(values, json),
                Member::Leaf { index, .. } => match &values.0[*index] {
                    Some(Scalar::Text(text)) => write_text(text, json),
                    Some(other) => json.extend_from_slice(other.to_string().as_bytes()),
                    None => {}
                },
            }
        }
        if separator == b'{' {
            json.push(b'{');
        }
        json.push(b'}');
    }
}

impl Values {
    pub fn text(&self, index: usize) -> Option<&str> {
        self.0.get(index)?.as_ref()?.as_text()
    }

    /// The values that are there, but for one.
    pub fn others(&self, but: Option<usize>) -> impl Iterator<Item = &Scalar> {
        let values = self.0.iter().enumerate().filter(move |(at, _)| Some(*at) != but);
        values.filter_map(|(_, value)| value.as_ref())
    }

    /// Puts the canonical form in the place of what was received.
    pub fn set_text(&mut self, index: usize, text: &str) {
        if let Some(value) = self.0.get_mut(index) {
            *value = Some(Scalar::Text(text.to_owned()));
        }
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Values({})", self.0.len())
    }
}

fn write_text(text: &str, json: &mut Vec<u8>) {
    // Writing a string to a vector cannot fail.
    let _ = serde_json::to_writer(json, text);
}

/// Where a body is being read to. A refusal is kept here, since serde's errors carry text only.
struct Reading {
    values: Vec<Option<Scalar>>,
    refused: Cell<Option<Reason>>,
    /// False until the outermost `{` was seen: what fails before is not an object.
    inside: bool,
}

struct ObjectSeed<'a> {
    shape: &'a Shape,
    reading: &'a mut Reading,
}

impl<'de> DeserializeSeed<'de> for ObjectSeed<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let ObjectSeed { shape, reading } = self;
        reading.inside = true;
        let mut seen = vec![false; shape.members.len()];
        while let Some(at) = map.next_key_seed(NameSeed { shape, refused: &reading.refused })? {
            if std::mem::replace(&mut seen[at], true) {
                return refuse(&reading.refused, Reason::MemberDuplicate);
            }
            match &shape.members[at].1 {
                Member::Object(inner) => map.next_value_seed(ObjectSeed { shape: inner, reading })?,
                Member::Leaf { index, accepts, .. } => {
                    let value = map.next_value_seed(ScalarSeed { accepts: *accepts, refused: &reading.refused })?;
                    reading.values[*index] = Some(value);
                }
            }
        }
        Ok(())
    }
}

struct NameSeed<'a> {
    shape: &'a Shape,
    refused: &'a Cell<Option<Reason>>,
}

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = usize;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a declared member")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<usize, E> {
        let at = self.shape.members.iter().position(|(declared, _)| declared == name);
        at.map_or_else(|| refuse(self.refused, Reason::MemberUndeclared), Ok)
    }
}

struct ScalarSeed<'a> {
    accepts: Accepts,
    refused: &'a Cell<Option<Reason>>,
}

impl ScalarSeed<'_> {
    fn accept<E: serde::de::Error>(&self, accepted: bool, scalar: impl FnOnce() -> Scalar) -> Result<Scalar, E> {
        if accepted { Ok(scalar()) } else { refuse(self.refused, Reason::MemberInvalid) }
    }
}

impl<'de> DeserializeSeed<'de> for ScalarSeed<'_> {
    type Value = Scalar;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for ScalarSeed<'_> {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value of the declared type")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Scalar, E> {
        self.accept(self.accepts.text(text), || Scalar::Text(text.to_owned()))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Scalar, E> {
        self.accept(self.accepts.integer(number), || Scalar::Integer(number))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Scalar, E> {
        let number = i64::try_from(number).ok().filter(|number| self.accepts.integer(*number));
        self.accept(number.is_some(), || Scalar::Integer(number.unwrap_or_default()))
    }

    fn visit_bool<E: serde::de::Error>(self, truth: bool) -> Result<Scalar, E> {
        self.accept(self.accepts == Accepts::Boolean, || Scalar::Boolean(truth))
    }
}

fn refuse<T, E: serde::de::Error>(refused: &Cell<Option<Reason>>, reason: Reason) -> Result<T, E> {
    refused.set(Some(reason));
    Err(E::custom(reason.code()))
}

/// Reads a JSON pointer (RFC 6901) into its reference tokens. `None` where it is none, or empty.
pub fn parse_pointer(text: &str) -> Option<Vec<String>> {
    let tokens = text.strip_prefix('/')?.split('/').map(|token| {
        let stray = token.match_indices('~').any(|(at, _)| !matches!(token.as_bytes().get(at + 1), Some(b'0' | b'1')));
        (!stray).then(|| token.replace("~1", "/").replace("~0", "~"))
    });
    tokens.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn shape() -> Shape {
        let mut shape = Shape::default();
        for (pointer, accepts, required) in [
            ("/mobile", Accepts::Text { length_max: 20 }, true),
            ("/who/purpose", Accepts::Text { length_max: 8 }, true),
            ("/who/age", Accepts::Integer { min: 0, max: 150 }, false),
            ("/deep", Accepts::Boolean, false),
        ] {
            shape.declare(&parse_pointer(pointer).expect(pointer), accepts, required).expect(pointer);
        }
        shape
    }

    #[test]
    fn only_the_declared_object_is_read() {
        for (body, outcome) in [
            (
                r#"{"mobile":"6412345678","who":{"purpose":"care"}}"#,
                Ok(r#"{"mobile":"6412345678","who":{"purpose":"care"}}"#),
            ),
            (
                " {\"who\":{\"age\":7,\"purpose\":\"a\"},\n\"mobile\":\"x\",\"deep\":true} ",
                Ok(r#"{"mobile":"x","who":{"purpose":"a","age":7},"deep":true}"#),
            ),
            (r#"{"mobile":"\u0036","who":{"purpose":"é\"<"}}"#, Ok(r#"{"mobile":"6","who":{"purpose":"é\"<"}}"#)),
            (r#"{"\u006dobile":"6","who":{"purpose":""}}"#, Ok(r#"{"mobile":"6","who":{"purpose":""}}"#)),
            ("", Err(Reason::BodyNotJson)),
            ("null", Err(Reason::BodyNotJson)),
            ("[]", Err(Reason::BodyNotJson)),
            ("\"mobile\"", Err(Reason::BodyNotJson)),
            (r#"{"mobile":"6","who":{"purpose":"a"}} x"#, Err(Reason::BodyNotJson)),
            (r#"{"mobile":"6","who":{"purpose":"a"}}{}"#, Err(Reason::BodyNotJson)),
            (r#"{"mobile":"6","who":{"purpose":"a"},}"#, Err(Reason::BodyNotJson)),
            (r#"{"mobile":"6","#, Err(Reason::BodyNotJson)),
            (r#"{mobile:"6"}"#, Err(Reason::BodyNotJson)),
            ("\u{feff}{}", Err(Reason::BodyNotJson)),
            (r#"{}"#, Err(Reason::MemberMissing)),
            (r#"{"mobile":"6"}"#, Err(Reason::MemberMissing)),
            (r#"{"mobile":"6","who":{}}"#, Err(Reason::MemberMissing)),
            (r#"{"mobile":"6","Mobile":"7","who":{"purpose":"a"}}"#, Err(Reason::MemberUndeclared)),
            (r#"{"mobile":"6","aadhaar":"7","who":{"purpose":"a"}}"#, Err(Reason::MemberUndeclared)),
            (r#"{"mobile":"6","who":{"purpose":"a","mobile":"7"}}"#, Err(Reason::MemberUndeclared)),
            (r#"{"mobile":"6","":"7","who":{"purpose":"a"}}"#, Err(Reason::MemberUndeclared)),
            (r#"{"mobile":"6","mobile":"7","who":{"purpose":"a"}}"#, Err(Reason::MemberDuplicate)),
            (r#"{"mobile":"6","mobil\u0065":"6","who":{"purpose":"a"}}"#, Err(Reason::MemberDuplicate)),
            (r#"{"mobile":"6","who":{"purpose":"a"},"who":{"purpose":"b"}}"#, Err(Reason::MemberDuplicate)),
            (r#"{"mobile":["6","7"],"who":{"purpose":"a"}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":{"a":"6"},"who":{"purpose":"a"}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":6412345678,"who":{"purpose":"a"}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":null,"who":{"purpose":"a"}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":"purpose"}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":[{"purpose":"a"}]}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":{"purpose":"123456789"}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6\u0000","who":{"purpose":"a"}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":{"purpose":"a","age":151}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":{"purpose":"a","age":-1}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":{"purpose":"a","age":1.0}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":{"purpose":"a","age":1e1}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":{"purpose":"a","age":99999999999999999999}}"#, Err(Reason::MemberInvalid)),
            (r#"{"mobile":"6","who":{"purpose":"a"},"deep":"true"}"#, Err(Reason::MemberInvalid)),
        ] {
            let shape = shape();
            let read = shape.read(body.as_bytes()).map(|values| shape.write(&values));
            assert_eq!(read, outcome.map(|json| json.as_bytes().to_vec()), "{body}");
        }
        assert_eq!(shape().read(b"{\"mobile\":\"\xff\"}"), Err(Reason::BodyNotJson));
        let deep = format!("{{\"mobile\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(shape().read(deep.as_bytes()), Err(Reason::MemberInvalid));
    }

    #[test]
    fn parameters_are_read_strictly() {
        let text = Accepts::Text { length_max: 3 };
        let number = Accepts::Integer { min: -5, max: 50 };
        for (accepts, given, accepted) in [
            (text, "abc", true),
            (text, "äöü", true),
            (text, "abcd", false),
            (text, "a\nb", false),
            (number, "7", true),
            (number, "-5", true),
            (number, "0", true),
            (number, "-0", false),
            (number, "+7", false),
            (number, "07", false),
            (number, "51", false),
            (number, "", false),
            (number, "７", false),
            (Accepts::Boolean, "true", true),
            (Accepts::Boolean, "True", false),
        ] {
            assert_eq!(accepts.read(given).is_some(), accepted, "{accepts:?} {given}");
        }
    }

    #[test]
    fn a_shape_cannot_contradict_itself() {
        let text = Accepts::Text { length_max: 1 };
        let mut shape = shape();
        for pointer in ["/mobile", "/mobile/inner", "/who", "/who/purpose"] {
            assert!(shape.declare(&parse_pointer(pointer).expect(pointer), text, true).is_err(), "{pointer}");
        }
        assert_eq!(parse_pointer("/a~1b/~0"), Some(vec!["a/b".to_owned(), "~".to_owned()]));
        for bad in ["", "a", "/a~2", "/a~"] {
            assert_eq!(parse_pointer(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_was_read(mobile in "\\PC{0,20}", purpose in "[a-z\"\\\\é]{0,8}", age in proptest::option::of(0..=150i64)) {
            let mut who = serde_json::json!({ "purpose": purpose });
            if let Some(age) = age {
                who["age"] = age.into();
            }
            let body = serde_json::json!({ "mobile": mobile, "who": who });
            let shape = shape();
            if let Ok(values) = shape.read(body.to_string().as_bytes()) {
                prop_assert_eq!(serde_json::from_slice::<Value>(&shape.write(&values)).ok(), Some(body));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = shape().read(&body);
        }
    }
}
