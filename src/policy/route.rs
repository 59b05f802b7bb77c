//! Which part of the backend is exposed? Routes, their patterns, and what a lookup route declares.

use super::path::CanonicalPath;
use super::shape::{Field, Shape};
use crate::subject::Kind;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

/// Index of a route in its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub u16);

/// A method and path of a backend that the gateway exposes. What is not declared does not exist.
#[derive(Debug)]
pub struct Route {
    pub name: Arc<str>,
    /// Index into the backends of the same snapshot.
    pub backend: usize,
    pub methods: Vec<String>,
    /// Hosts of the gateway that it answers on; empty: all of the listener's.
    pub hosts: Vec<String>,
    pub pattern: Pattern,
    pub kind: RouteKind,
    /// Where it is declared: file and line.
    pub place: Place,
}

/// A file and line of the configuration, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<str>,
    pub line: u32,
}

impl Place {
    /// For comparing what stands at two places.
    pub fn nowhere(&self) -> Place {
        Place { file: "".into(), line: 0 }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

#[derive(Debug)]
pub enum RouteKind {
    /// Asks for a person. Everything that it accepts is declared; the body is read, checked and written anew.
    Lookup(Box<LookupRoute>),
    /// Everything else: the body is passed through, streamed and capped.
    Pass(PassRoute),
}

#[derive(Debug)]
pub struct PassRoute {
    pub body_bytes_max: u64,
    pub answer_bytes_max: u64,
    /// Declared query parameters.
    pub parameters: Vec<Field>,
    /// Headers that it lets through besides content negotiation; lower case.
    pub headers: Vec<String>,
}

#[derive(Debug)]
pub struct LookupRoute {
    pub kind: Kind,
    pub subject: Location,
    pub purpose: Option<Location>,
    pub actor: Option<Location>,
    /// Every member that the body may have. `None`: the route takes no body.
    pub body: Option<Shape>,
    /// Every query parameter that it may have.
    pub parameters: Vec<Field>,
    pub body_bytes_max: u64,
    pub answer_bytes_max: u64,
    /// JSON pointer to the array of people in the answer; `None`: an answer is one person.
    pub records: Option<Vec<String>>,
    /// The most people that one answer holds.
    pub max_people: u16,
    /// Statuses by which the backend says that nobody was found.
    pub miss: Vec<u16>,
    /// `None`: as the gateway does in general.
    pub durability: Option<Durability>,
}

/// When an answer may leave that the audit has to tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once its record is on the disk.
    BeforeAnswer,
    /// Once its record waits for the disk: a failing machine may forget some of the last ones.
    Interval,
}

impl Durability {
    pub fn parse(text: &str) -> Result<Durability, String> {
        match text {
            "before-answer" => Ok(Durability::BeforeAnswer),
            "interval" => Ok(Durability::Interval),
            _ => Err("it is \"before-answer\" or \"interval\"".to_owned()),
        }
    }
}

/// Where in a request a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Reference tokens of a JSON pointer (RFC 6901) into the body.
    Body(Vec<String>),
    /// A `{name}` of the path pattern.
    Path(String),
    /// Header name, lower case.
    Header(String),
    /// Query parameter. Logs along the way hold it: the configuration has to say `query_ok = true`.
    Query(String),
}

/// A path pattern: exact segments, `{name}` for one segment, a final `**` for one or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Segment {
    // The order is the precedence: exact before a capture before the rest.
    Exact(String),
    Capture(String),
    Rest,
}

/// What the `{name}`s of a pattern stand for: byte ranges of the canonical path.
pub type Captures = Vec<Range<usize>>;

impl Pattern {
    /// Reads a pattern such as `/v1/people/{reference}`; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Pattern, &'static str> {
        let Some(rest) = text.strip_prefix('/') else { return Err("a path starts with '/'") };
        let mut segments = Vec::new();
        let parts: Vec<&str> = rest.split('/').collect();
        for (at, part) in parts.iter().enumerate() {
            let last = at + 1 == parts.len();
            let segment = if *part == "**" {
                if !last {
                    return Err("'**' may only be the last segment");
                }
                Segment::Rest
            } else if let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                let named = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                if !named {
                    return Err("the name in '{…}' has letters, digits and '_' only");
                }
                if segments.contains(&Segment::Capture(name.to_owned())) {
                    return Err("two '{…}' have the same name");
                }
                Segment::Capture(name.to_owned())
            } else {
                let path = format!("/{part}");
                let canonical = CanonicalPath::parse(&path).is_some_and(|canonical| canonical.as_str() == path);
                if part.contains(['{', '}', '*']) || !canonical {
                    return Err("a segment is plain text in canonical form, '{name}', or a final '**'");
                }
                if part.is_empty() && !last {
                    return Err("a path has no empty segments");
                }
                Segment::Exact((*part).to_owned())
            };
            segments.push(segment);
        }
        Ok(Pattern { segments })
    }

    /// The names of the captures, in order.
    pub fn captures(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Capture(name) => Some(name.as_str()),
            Segment::Exact(_) | Segment::Rest => None,
        })
    }

    /// Whether it ends in `**`.
    pub fn is_open(&self) -> bool {
        self.segments.last() == Some(&Segment::Rest)
    }

    /// Position of a capture by name.
    pub fn capture(&self, name: &str) -> Option<usize> {
        self.captures().position(|capture| capture == name)
    }

    fn matches(&self, path: &CanonicalPath) -> Option<Captures> {
        let mut captures = Captures::new();
        let mut wanted = self.segments.iter();
        let mut start = 1;
        for segment in path.segments() {
            match wanted.next()? {
                Segment::Rest => return (!segment.is_empty()).then_some(captures),
                Segment::Exact(exact) if exact == segment => {}
                Segment::Exact(_) => return None,
                Segment::Capture(_) if segment.is_empty() => return None,
                Segment::Capture(_) => captures.push(start..start + segment.len()),
            }
            start += segment.len() + 1;
        }
        wanted.next().is_none().then_some(captures)
    }

    /// Whether a lenient backend could take segments that it reads so for a path of this pattern, or, where `deeper`, for
    /// one below it.
    fn is_taken_for(&self, asked: &[String], deeper: bool) -> bool {
        let segments = self.without_slash();
        for (at, wanted) in segments.iter().enumerate() {
            let Some(asked) = asked.get(at) else { return false };
            match wanted {
                Segment::Rest => return true,
                Segment::Exact(exact) if !may_equal(asked, exact, at + 1 == segments.len()) => return false,
                Segment::Exact(_) | Segment::Capture(_) => {}
            }
        }
        deeper || asked.len() == segments.len()
    }

    /// Whether some path may match this, and match the other or be taken for one of the other's.
    fn may_cover(&self, other: &Pattern) -> bool {
        let (mine, theirs) = (self.without_slash(), other.without_slash());
        let pairs = mine.iter().zip(theirs).enumerate();
        let mut closed = pairs.take_while(|(_, (mine, theirs))| **mine != Segment::Rest && **theirs != Segment::Rest);
        let agree = closed.all(|(at, pair)| match pair {
            (Segment::Exact(mine), Segment::Exact(exact)) => {
                may_equal(&read_leniently(mine), exact, at + 1 == theirs.len())
            }
            _ => true,
        });
        agree && (self.is_open() || other.is_open() || mine.len() == theirs.len())
    }

    /// Many backends answer the same with and without a slash at the end.
    fn without_slash(&self) -> &[Segment] {
        match self.segments.as_slice() {
            [segments @ .., Segment::Exact(last)] if last.is_empty() && !segments.is_empty() => segments,
            segments => segments,
        }
    }

    fn literal(&self) -> Option<String> {
        let mut path = String::new();
        for segment in &self.segments {
            let Segment::Exact(exact) = segment else { return None };
            path.push('/');
            path.push_str(exact);
        }
        Some(path)
    }

    /// Equal for patterns that match the same paths, whatever their captures are called.
    fn shape(&self) -> Vec<Segment> {
        let unnamed = |segment: &Segment| match segment {
            Segment::Capture(_) => Segment::Capture(String::new()),
            other => other.clone(),
        };
        self.segments.iter().map(unnamed).collect()
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Exact(exact) => write!(f, "/{exact}")?,
                Segment::Capture(name) => write!(f, "/{{{name}}}")?,
                Segment::Rest => f.write_str("/**")?,
            }
        }
        Ok(())
    }
}

/// Finds the route of a request: the most specific pattern among those whose host, method and path match.
#[derive(Debug, Default)]
pub struct Router {
    exact: HashMap<String, Vec<RouteId>>,
    /// Most specific first.
    patterns: Vec<RouteId>,
    /// For each pass route, the lookup routes of the same servers.
    lookups: Vec<Vec<RouteId>>,
    /// Those of them whose paths it may cover.
    beside: Vec<Vec<RouteId>>,
}

impl Router {
    /// Builds the router; the error names every two routes that would match the same requests. `share_server` says of two
    /// backends, which may be the same one, whether some server gets the requests of both.
    pub fn build(
        routes: &[Route],
        share_server: &dyn Fn(usize, usize) -> bool,
    ) -> Result<Router, Vec<(RouteId, RouteId)>> {
        let mut router = Router::default();
        let mut rivals = Vec::new();
        for (at, route) in routes.iter().enumerate() {
            let id = RouteId(at as u16);
            let rival = |other: &Route| {
                other.pattern.shape() == route.pattern.shape()
                    && other.methods.iter().any(|method| route.methods.contains(method))
                    && (other.hosts.is_empty()
                        || route.hosts.is_empty()
                        || other.hosts.iter().any(|host| route.hosts.contains(host)))
            };
            let earlier = routes[..at].iter().enumerate().filter(|(_, other)| rival(other));
            rivals.extend(earlier.map(|(first, _)| (RouteId(first as u16), id)));
            match route.pattern.literal() {
                Some(path) => router.exact.entry(path).or_default().push(id),
                None => router.patterns.push(id),
            }
        }
        router.patterns.sort_by_cached_key(|id| routes[usize::from(id.0)].pattern.shape());
        router.lookups = routes.iter().map(|route| lookups_of_servers(route, routes, share_server)).collect();
        let covered = |(route, lookups): (&Route, &Vec<RouteId>)| {
            let covers = |id: &RouteId| route.pattern.may_cover(&routes[usize::from(id.0)].pattern);
            lookups.iter().copied().filter(covers).collect()
        };
        router.beside = routes.iter().zip(&router.lookups).map(covered).collect();
        if rivals.is_empty() { Ok(router) } else { Err(rivals) }
    }

    /// Host is lower case without port.
    pub fn find(
        &self,
        routes: &[Route],
        host: &str,
        method: &str,
        path: &CanonicalPath,
    ) -> Option<(RouteId, Captures)> {
        let answers = |id: RouteId| {
            let route = &routes[usize::from(id.0)];
            route.methods.iter().any(|declared| declared == method)
                && (route.hosts.is_empty() || route.hosts.iter().any(|declared| declared == host))
        };
        let exact = self.exact.get(path.as_str()).into_iter().flatten().copied().find(|id| answers(*id));
        let found = exact.map(|id| (id, Captures::new())).or_else(|| {
            self.patterns.iter().copied().filter(|id| answers(*id)).find_map(|id| {
                let captures = routes[usize::from(id.0)].pattern.matches(path)?;
                Some((id, captures))
            })
        });
        found.filter(|(id, _)| !self.is_lookup_in_disguise(routes, *id, path))
    }

    /// Whether a path that is passed through might be a lookup to the backend, which would look somebody up uncounted.
    fn is_lookup_in_disguise(&self, routes: &[Route], id: RouteId, path: &CanonicalPath) -> bool {
        let (lookups, beside) = (&self.lookups[usize::from(id.0)], &self.beside[usize::from(id.0)]);
        if lookups.is_empty() {
            return false;
        }
        let deeper = routes[usize::from(id.0)].pattern.is_open();
        let taken = |lookups: &[RouteId], asked: &[String]| {
            lookups.iter().any(|id| routes[usize::from(id.0)].pattern.is_taken_for(asked, deeper))
        };
        let segments = || path.segments().filter(|segment| !segment.is_empty());
        let asked: Vec<String> = segments().map(read_leniently).collect();
        // Where an escaped `?` or `#` ends the path, or nothing is left of its last segments, it is shorter than the pattern
        // that it matched, so that the pattern does not tell what it covers. A backend may do either or both.
        let ends = |segment: &str| segment.contains("%3F") || segment.contains("%23");
        let cut = &asked[..segments().position(ends).map_or(asked.len(), |end| end + 1)];
        let filled =
            |asked: &[String]| asked.iter().rposition(|segment| !segment.is_empty()).map_or(0, |last| last + 1);
        let mut shorter = [cut, &asked[..filled(&asked)], &cut[..filled(cut)]].into_iter();
        taken(beside, &asked) || shorter.any(|shorter| shorter.len() < asked.len() && taken(lookups, shorter))
    }

    /// The lookup routes that a pass route may cover; `check` says so.
    pub fn beside(&self, id: RouteId) -> &[RouteId] {
        &self.beside[usize::from(id.0)]
    }
}

/// A pass route that is written like the lookup route, but for the method, is no disguise: somebody declared it.
fn lookups_of_servers(route: &Route, routes: &[Route], share_server: &dyn Fn(usize, usize) -> bool) -> Vec<RouteId> {
    if let RouteKind::Lookup(_) = route.kind {
        return Vec::new();
    }
    let others = routes.iter().enumerate().filter(|(_, other)| {
        matches!(other.kind, RouteKind::Lookup(_))
            && share_server(other.backend, route.backend)
            && other.pattern.shape() != route.pattern.shape()
    });
    others.map(|(at, _)| RouteId(at as u16)).collect()
}

/// What a lenient backend may make of a segment: unescaped, without a query, fragment or parameters, without the dots and
/// spaces that some file systems and frameworks drop, in lower case.
fn read_leniently(segment: &str) -> String {
    let text = percent_decode_str(segment).decode_utf8_lossy();
    let text = text.split(['?', '#', ';']).next().unwrap_or_default();
    text.trim_start().trim_end_matches(|end: char| end == '.' || end.is_whitespace()).to_lowercase()
}

/// Whether a segment that was read so may be a plain segment of a pattern; with an extension, where the pattern ends.
fn may_equal(asked: &str, exact: &str, last: bool) -> bool {
    let end = asked.strip_prefix(&read_leniently(exact));
    // What a backend makes of other scripts' capitals is its own affair: they count as equal.
    !asked.is_ascii() || end.is_some_and(|end| end.is_empty() || last && end.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(methods: &[&str], hosts: &[&str], pattern: &str) -> Route {
        Route {
            name: pattern.into(),
            backend: 0,
            methods: methods.iter().map(|method| method.to_string()).collect(),
            hosts: hosts.iter().map(|host| host.to_string()).collect(),
            pattern: Pattern::parse(pattern).expect(pattern),
            kind: RouteKind::Pass(PassRoute {
                body_bytes_max: 0,
                answer_bytes_max: 0,
                parameters: Vec::new(),
                headers: Vec::new(),
            }),
            place: Place { file: "test".into(), line: 1 },
        }
    }

    fn lookup(backend: usize, pattern: &str) -> Route {
        let declared = LookupRoute {
            kind: Kind::Mobile,
            subject: Location::Body(vec!["mobile".to_owned()]),
            purpose: None,
            actor: None,
            body: None,
            parameters: Vec::new(),
            body_bytes_max: 0,
            answer_bytes_max: 0,
            records: None,
            max_people: 1,
            miss: Vec::new(),
            durability: None,
        };
        Route { backend, kind: RouteKind::Lookup(Box::new(declared)), ..route(&["POST"], &[], pattern) }
    }

    /// No two backends have a server in common.
    fn apart(one: usize, other: usize) -> bool {
        one == other
    }

    #[test]
    fn patterns_that_could_mean_two_things_are_refused() {
        for bad in
            ["", "v1", "/v1/**/x", "/{}", "/{a}/{a}", "/{a-b}", "/x{a}", "/a//b", "/a/../b", "/a%2fb", "/a*", "/%41"]
        {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_most_specific_route_that_matches_host_method_and_path_is_found() {
        let routes = [
            route(&["GET"], &[], "/v1/**"),
            route(&["GET"], &[], "/v1/people/{id}"),
            route(&["GET", "HEAD"], &[], "/v1/people/me"),
            route(&["POST"], &[], "/v1/people/{id}/notes"),
            route(&["GET"], &["stock.example"], "/v1/stock"),
            route(&["GET"], &[], "/"),
        ];
        let router = Router::build(&routes, &apart).expect("no rivals");
        for (method, host, path, found) in [
            ("GET", "a", "/v1/people/me", Some("/v1/people/me")),
            ("HEAD", "a", "/v1/people/me", Some("/v1/people/me")),
            ("GET", "a", "/v1/people/7", Some("/v1/people/{id}")),
            ("HEAD", "a", "/v1/people/7", None),
            ("GET", "a", "/v1/people/7/notes", Some("/v1/**")),
            ("POST", "a", "/v1/people/7/notes", Some("/v1/people/{id}/notes")),
            ("POST", "a", "/v1/people//notes", None),
            ("GET", "stock.example", "/v1/stock", Some("/v1/stock")),
            ("GET", "a", "/v1/stock", Some("/v1/**")),
            ("GET", "a", "/v1/", None),
            ("GET", "a", "/v1", None),
            ("GET", "a", "/", Some("/")),
            ("DELETE", "a", "/v1/people/7", None),
        ] {
            let Some(canonical) = CanonicalPath::parse(path) else {
                assert_eq!(found, None);
                continue;
            };
            let route = router.find(&routes, host, method, &canonical);
            assert_eq!(route.map(|(id, _)| &*routes[usize::from(id.0)].name), found, "{method} {host} {path}");
        }
    }

    #[test]
    fn captures_are_the_segments_themselves() {
        let routes = [route(&["GET"], &[], "/v1/{a}/x/{b}")];
        let router = Router::build(&routes, &apart).expect("no rivals");
        let path = CanonicalPath::parse("/v1/one/x/two").expect("canonical");
        let (_, captures) = router.find(&routes, "h", "GET", &path).expect("matches");
        let texts: Vec<_> = captures.iter().map(|range| &path.as_str()[range.clone()]).collect();
        assert_eq!(texts, ["one", "two"]);
        assert_eq!(routes[0].pattern.capture("b"), Some(1));
    }

    #[test]
    fn two_routes_for_the_same_requests_are_a_mistake() {
        let rivals = [route(&["GET"], &[], "/a/{x}"), route(&["POST", "GET"], &["h"], "/a/{y}")];
        assert_eq!(Router::build(&rivals, &apart).err(), Some(vec![(RouteId(0), RouteId(1))]));
        let others = [route(&["GET"], &["g"], "/a/{x}"), route(&["GET"], &["h"], "/a/{y}")];
        assert!(Router::build(&others, &apart).is_ok());
    }

    #[test]
    fn a_path_that_a_lenient_backend_may_take_for_a_lookup_is_not_passed_through() {
        let finds = |pass: &str, lookups: &[&str], path: &str| {
            let mut routes = vec![route(&["POST"], &[], pass)];
            routes.extend(lookups.iter().map(|pattern| lookup(0, pattern)));
            let router = Router::build(&routes, &apart).expect("no rivals");
            let canonical = CanonicalPath::parse(path).expect(path);
            let found = router.find(&routes, "h", "POST", &canonical).is_some_and(|(id, _)| id == RouteId(0));
            (found, !router.beside(RouteId(0)).is_empty())
        };
        let mobile = ["/v1/lookup/mobile"];
        let person = ["/v1/people/{reference}"];
        // Pass route, lookup routes, path, and whether the pass route can be known to cover a lookup's.
        for (pass, lookups, path, covers) in [
            ("/v1/lookup/{x}/", &mobile, "/v1/lookup/mobile/", true),
            ("/v1/lookup/{x}/", &mobile, "/v1/lookup/Mobile/", true),
            ("/v1/lookup/{x}", &["/v1/lookup/mobile/"], "/v1/lookup/mobile", true),
            ("/v1/**", &["/v1/lookup/mobile/"], "/v1/lookup/mobile", true),
            ("/v1/lookup/Mobile.json", &mobile, "/v1/lookup/Mobile.json", true),
            ("/v1/lookup/mob%C4%B0le", &mobile, "/v1/lookup/mob%C4%B0le", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/mobile.", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/mobile%20", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/%20mobile", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/Mobile.%20.", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup./mobile.", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/mobile%3Fa=b", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/mobile%23", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/mobile.json", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/mobile.tar.gz", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/mobile.json%3Fa", true),
            ("/v1/**", &mobile, "/v1/lookup/mobile.json/x", true),
            ("/v1/{y}/{x}/{z}", &mobile, "/v1/lookup/mobile%3Fa/b", false),
            ("/v1/{y}/{x}/{z}", &mobile, "/v1/lookup/mobile/%20", false),
            ("/v1/{y}/{x}/{z}", &mobile, "/v1/lookup/mobile/%3Fa", false),
            ("/v1/people/{id}/notes", &person, "/v1/people/7%23/notes", false),
            ("/v1/{x}/doses/{y}", &["/v1/lookup/doses"], "/v1/lookup%3Fa/doses/%20", false),
            ("/v1/{y}/{x}/{z}", &["/v1/people/{reference}/doses"], "/v1/people/7%3F/Doses", true),
        ] {
            assert_eq!(finds(pass, lookups, path), (false, covers), "{path} of {pass} beside {lookups:?}");
        }
        for (pass, lookups, path, covers) in [
            ("/v1/lookup/{x}/", &mobile, "/v1/lookup/mobiles/", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/mobile-json", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup/json.mobile", true),
            ("/v1/{y}/{x}", &mobile, "/v1/lookup.json/mobile", true),
            ("/v1.1/{y}/{x}", &mobile, "/v1.1/lookup/mobile", false),
            ("/v1/{y}/{x}/{z}", &mobile, "/v1/lookup/mobile/a%3Fb", false),
            ("/v1/people/{id}/notes", &person, "/v1/people/7/notes", false),
            ("/v1/people/{id}/notes/", &person, "/v1/people/7/notes/", false),
        ] {
            assert_eq!(finds(pass, lookups, path), (true, covers), "{path} of {pass} beside {lookups:?}");
        }
    }

    #[test]
    fn a_second_name_for_the_same_server_is_no_way_around_a_lookup() {
        let routes = [route(&["POST"], &[], "/v1/**"), lookup(1, "/v1/lookup/mobile")];
        let path = CanonicalPath::parse("/v1/lookup/Mobile").expect("canonical");
        for (together, found) in [(false, true), (true, false)] {
            let router = Router::build(&routes, &|one, other| one == other || together).expect("no rivals");
            assert_eq!(router.find(&routes, "h", "POST", &path).is_some(), found);
            assert_eq!(router.beside(RouteId(0)).is_empty(), found);
        }
    }
}
