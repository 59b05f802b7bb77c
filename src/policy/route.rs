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
    /// Statuses by which the backend says that nobody was found.
    pub miss: Vec<u16>,
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

    /// Whether a lenient backend could take a path for one of this pattern's: in other case, with slashes at the end, or,
    /// where `deeper`, with more segments.
    fn is_taken_for(&self, path: &CanonicalPath, deeper: bool) -> bool {
        let fold = |text: &str| percent_decode_str(text).decode_utf8_lossy().to_lowercase();
        let segments: Vec<&str> = path.segments().collect();
        let length = segments.iter().rposition(|segment| !segment.is_empty()).map_or(0, |last| last + 1);
        let mut segments = segments[..length].iter();
        for wanted in &self.segments {
            let Some(segment) = segments.next() else { return false };
            match wanted {
                Segment::Rest => return true,
                // What a backend makes of other scripts' capitals is its own affair: they count as equal.
                Segment::Exact(exact) if fold(segment).is_ascii() && fold(exact) != fold(segment) => return false,
                Segment::Exact(_) | Segment::Capture(_) => {}
            }
        }
        deeper || segments.next().is_none()
    }

    /// Whether some path may match both, or be taken for one of the other's.
    fn may_cover(&self, other: &Pattern) -> bool {
        let pairs = self.segments.iter().zip(&other.segments);
        let agree = pairs.take_while(|(mine, theirs)| **mine != Segment::Rest && **theirs != Segment::Rest).all(
            |(mine, theirs)| match (mine, theirs) {
                (Segment::Exact(mine), Segment::Exact(theirs)) => mine.eq_ignore_ascii_case(theirs) || !mine.is_ascii(),
                _ => true,
            },
        );
        agree && (self.is_open() || other.is_open() || self.segments.len() == other.segments.len())
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
    /// For each pass route, the lookup routes of the same backend whose paths it may cover.
    beside: Vec<Vec<RouteId>>,
}

impl Router {
    /// Builds the router; the error names every two routes that would match the same requests.
    pub fn build(routes: &[Route]) -> Result<Router, Vec<(RouteId, RouteId)>> {
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
        router.beside = routes.iter().map(|route| lookups_beside(route, routes)).collect();
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
        let deeper = routes[usize::from(id.0)].pattern.is_open();
        self.beside[usize::from(id.0)]
            .iter()
            .any(|lookup| routes[usize::from(lookup.0)].pattern.is_taken_for(path, deeper))
    }

    /// The lookup routes that a pass route may cover; `check` says so.
    pub fn beside(&self, id: RouteId) -> &[RouteId] {
        &self.beside[usize::from(id.0)]
    }
}

/// A pass route that is written like the lookup route, but for the method, is no disguise: somebody declared it.
fn lookups_beside(route: &Route, routes: &[Route]) -> Vec<RouteId> {
    if let RouteKind::Lookup(_) = route.kind {
        return Vec::new();
    }
    let others = routes.iter().enumerate().filter(|(_, other)| {
        matches!(other.kind, RouteKind::Lookup(_))
            && other.backend == route.backend
            && other.pattern.shape() != route.pattern.shape()
            && route.pattern.may_cover(&other.pattern)
    });
    others.map(|(at, _)| RouteId(at as u16)).collect()
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
        let router = Router::build(&routes).expect("no rivals");
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
        let router = Router::build(&routes).expect("no rivals");
        let path = CanonicalPath::parse("/v1/one/x/two").expect("canonical");
        let (_, captures) = router.find(&routes, "h", "GET", &path).expect("matches");
        let texts: Vec<_> = captures.iter().map(|range| &path.as_str()[range.clone()]).collect();
        assert_eq!(texts, ["one", "two"]);
        assert_eq!(routes[0].pattern.capture("b"), Some(1));
    }

    #[test]
    fn two_routes_for_the_same_requests_are_a_mistake() {
        let rivals = [route(&["GET"], &[], "/a/{x}"), route(&["POST", "GET"], &["h"], "/a/{y}")];
        assert_eq!(Router::build(&rivals).err(), Some(vec![(RouteId(0), RouteId(1))]));
        let apart = [route(&["GET"], &["g"], "/a/{x}"), route(&["GET"], &["h"], "/a/{y}")];
        assert!(Router::build(&apart).is_ok());
    }
}
