//! Does the backend get exactly the declared lookup, for the person that was charged?
//!
//! The input reads like a request: path and query, then header lines `name:value`, an empty line, and the body. The routes
//! are those of lookup.gateway.toml.
#![no_main]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use dwarpal::config::settings::Overrides;
use dwarpal::policy::head::Target;
use dwarpal::policy::lookup::{Asked, HeaderValue, Lookup, lookup_route, read};
use dwarpal::policy::reason::Reason;
use dwarpal::policy::route::{Location, LookupRoute, Route, Router};
use dwarpal::policy::shape::Field;
use dwarpal::subject::{EpochKey, Subject, resembles_subject};
use dwarpal_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use serde_json::Value;

struct World {
    routes: Vec<Route>,
    router: Router,
    key: EpochKey,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let scratch = Scratch::new();
    scratch.write("gateway.toml", include_bytes!("lookup.gateway.toml"));
    std::fs::create_dir(scratch.path().join("partners")).expect("a folder");
    let config = dwarpal::config::load(scratch.path(), &Overrides::default());
    let config = config.unwrap_or_else(|problems| panic!("{}", problems[0]));
    let routes = config.policy.routes;
    let router = Router::build(&routes, &|one, other| one == other).expect("no rivals");
    World { routes, router, key: EpochKey::ephemeral() }
});

fuzz_target!(|data: &[u8]| {
    let Some((head, body)) = split(data, b"\n\n") else { return };
    let Ok(head) = std::str::from_utf8(head) else { return };
    let mut lines = head.split('\n');
    let target = lines.next().unwrap_or_default();
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let Ok(Some((route, lookup))) = ask(target, &headers, body) else { return };
    let declared = lookup_route(route).expect("every route is a lookup");

    let subject = lookup.subject;
    assert_eq!(subject.kind(), declared.kind);
    assert_eq!(WORLD.key.token(&subject), lookup.token);
    assert_eq!(Subject::parse(declared.kind, subject.expose()), Ok(subject));
    let written = lookup.body.as_deref();
    assert_eq!(written.is_some(), declared.body.is_some());
    if let (Some(shape), Some(written)) = (&declared.body, written) {
        let mut given: Value = serde_json::from_slice(body).expect("what was accepted is JSON");
        let got: Value = serde_json::from_slice(written).expect("what was written is JSON");
        each_leaf(&got, &mut Vec::new(), &mut |pointer, value| {
            assert!(shape.index(pointer).is_some(), "a member that is not declared");
            if declared.subject == Location::Body(pointer.to_vec()) {
                assert_eq!(value, &Value::from(subject.expose()), "the backend is asked for somebody else");
            } else {
                assert!(!resembles_subject(&text(value)), "a second person rides along");
            }
        });
        if let Location::Body(pointer) = &declared.subject {
            *pointed(&mut given, pointer).expect("the identifier is there") = subject.expose().into();
        }
        prune(&mut given);
        assert_eq!(got, given, "what was asked is what is written");
    }
    check_target(declared, &lookup, target);

    // What the backend gets reads as the same lookup, and is written as the same bytes.
    let mut headers = headers.clone();
    if let Location::Header(name) = &declared.subject {
        headers.retain(|(other, _)| other != name);
        headers.push((name, subject.expose()));
    }
    let again = ask(&lookup.target, &headers, written.unwrap_or_default());
    let Ok(Some((same, again))) = again else { panic!("what was written is refused") };
    assert!(std::ptr::eq(route, same));
    assert_eq!((again.subject, again.token), (subject, lookup.token));
    assert_eq!((&again.body, &again.target), (&lookup.body, &lookup.target));
    assert_eq!((&again.purpose, &again.actor), (&lookup.purpose, &lookup.actor));
});

/// The lookup that a request is read as; `None` where there is no such route.
fn ask(target: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Option<(&'static Route, Lookup)>, Reason> {
    let target = Target::parse(target, 4096)?;
    let Some((id, captures)) = WORLD.router.find(&WORLD.routes, "gateway", "POST", &target.path) else {
        return Ok(None);
    };
    let route = &WORLD.routes[usize::from(id.0)];
    let header = |name: &str| {
        let mut values = headers.iter().filter(|(other, _)| *other == name).map(|(_, value)| *value);
        match (values.next(), values.next()) {
            (None, _) => HeaderValue::Absent,
            (Some(text), None) if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => HeaderValue::Text(text),
            _ => HeaderValue::Unreadable,
        }
    };
    let asked = Asked { path: &target.path, captures: &captures, query: target.query, header: &header, body };
    let declared = lookup_route(route).expect("every route is a lookup");
    read(declared, route, &asked, &WORLD.key, None)
        .map(|lookup| Some((route, lookup)))
        .map_err(|misread| misread.reason)
}

/// The path and query that the backend gets, taken apart by other means.
fn check_target(declared: &LookupRoute, lookup: &Lookup, given: &str) {
    assert!(lookup.target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
    let (path, query) = lookup.target.split_once('?').unwrap_or((&lookup.target, ""));
    let given_path = given.split_once('?').map_or(given, |(path, _)| path);
    let (segments, given): (Vec<_>, Vec<_>) = (path.split('/').collect(), given_path.split('/').collect());
    assert_eq!(segments.len(), given.len(), "a segment was made or lost");
    let decode = |text: &str| percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).ok();
    let replaced = segments.iter().zip(&given).filter(|(got, given)| decode(got) != decode(given));
    match &declared.subject {
        Location::Path(_) => {
            assert!(segments.contains(&lookup.subject.expose()));
            assert!(replaced.count() <= 1);
        }
        _ => assert_eq!(replaced.count(), 0),
    }
    let mut names = BTreeSet::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').expect("a parameter has a value");
        let (name, value) = (decode(name).expect("UTF-8"), decode(value).expect("UTF-8"));
        let field: Option<&Field> = declared.parameters.iter().find(|field| field.name == name);
        assert!(field.is_some_and(|field| field.accepts.read(&value).is_some()), "a parameter that is not declared");
        if declared.subject == Location::Query(name.clone()) {
            assert_eq!(value, lookup.subject.expose());
        } else {
            assert!(!resembles_subject(&value), "a second person rides along");
        }
        assert!(names.insert(name), "a parameter is written twice");
    }
}

fn split<'a>(data: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let place = data.windows(at.len()).position(|window| window == at)?;
    Some((&data[..place], &data[place + at.len()..]))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn each_leaf(value: &Value, pointer: &mut Vec<String>, found: &mut dyn FnMut(&[String], &Value)) {
    let Value::Object(members) = value else { return found(pointer, value) };
    for (name, member) in members {
        pointer.push(name.clone());
        each_leaf(member, pointer, found);
        pointer.pop();
    }
}

fn pointed<'v>(value: &'v mut Value, pointer: &[String]) -> Option<&'v mut Value> {
    pointer.iter().try_fold(value, |value, name| value.get_mut(name))
}

/// An object without members is not written.
fn prune(value: &mut Value) {
    let Value::Object(members) = value else { return };
    members.values_mut().for_each(prune);
    members.retain(|_, member| member.as_object().is_none_or(|inner| !inner.is_empty()));
}
