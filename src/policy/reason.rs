//! Why was it refused? The one closed list of reasons, and what each of them tells whom.
//!
//! A private code is for ever: logs, metrics, audit and `explain` share it. The public code may be coarser; it is all
//! that the partner learns besides the decision id.

use std::fmt;

/// A reason for refusing a request. Every refusal of the gateway is one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    // intake
    MalformedRequest,
    AmbiguousFraming,
    HeadTooLarge,
    BadPath,
    HostMismatch,
    MethodRefused,
    UpgradeRefused,
    ExpectationRefused,
    // identify
    IdentityUnknown,
    IdentityAmbiguous,
    CertificateExpired,
    TrustWithdrawn,
    // admit
    PartnerFrozen,
    PartnerNotValid,
    OutsideHours,
    NetworkNotAllowed,
    NetworkExpired,
    // entitle
    NoRoute,
    NoGrant,
    // charge
    RatePartner,
    RateRoute,
    RateSource,
    RateSubject,
    BudgetPartner,
    BudgetActor,
    BudgetGrant,
    BudgetPeople,
    HeldPartner,
    HeldActor,
    HeldPending,
    InFlightPartner,
    InFlightRoute,
    LimiterFull,
    StateUnavailable,
    ConnectionsPartner,
    // lookup
    ContentType,
    ContentEncoding,
    BodyTooLarge,
    BodyTimeout,
    BodyIncomplete,
    BodyNotJson,
    BodyNotExpected,
    MemberUndeclared,
    MemberDuplicate,
    MemberMissing,
    MemberInvalid,
    ParameterUndeclared,
    ParameterDuplicate,
    ParameterMissing,
    ParameterInvalid,
    IdentifierMissing,
    IdentifierFormat,
    IdentifierPrefix,
    IdentifierCheckDigit,
    IdentifierPalindrome,
    IdentifierMasked,
    IdentifierUndeclared,
    PurposeMissing,
    PurposeNotGranted,
    ActorMissing,
    ActorInvalid,
    // forward and disclose
    BackendBusy,
    BackendCircuitOpen,
    BackendUnreachable,
    BackendTls,
    BackendConnectTimeout,
    BackendTimeout,
    BackendProtocol,
    BackendError,
    BackendTooLarge,
    BackendIncomplete,
    NoMatch,
    // record
    AuditUnavailable,
    // the gateway itself
    Internal,
}

/// What the partner may conclude about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request will be refused again.
    No,
    /// The same request may pass later; `Retry-After` says when, where that is known.
    Later,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Stable code in logs, metrics, audit and `explain`.
    pub code: &'static str,
    /// Code in the problem document's `type`.
    pub public: &'static str,
    /// HTTP status.
    pub status: u16,
    /// Text for the partner. Holds nothing that the request brought.
    pub text: &'static str,
    pub retry: Retry,
    /// Proxy error type of RFC 9209 section 2.3.
    pub proxy_error: &'static str,
}

impl Reason {
    #[rustfmt::skip]
    pub const fn row(self) -> Row {
        use Reason::*;
        use Retry::{Later, No};
        const BAD: &str = "http_request_error";
        const DENIED: &str = "http_request_denied";
        match self {
            MalformedRequest      => row("malformed-request", "bad-request", 400, "the request is not well-formed HTTP", No, BAD),
            AmbiguousFraming      => row("ambiguous-framing", "bad-request", 400, "the length of the request's body is ambiguous", No, BAD),
            HeadTooLarge          => row("head-too-large", "head-too-large", 431, "the request's head is too large", No, BAD),
            BadPath               => row("bad-path", "bad-request", 400, "the path or query is not in canonical form", No, BAD),
            HostMismatch          => row("host-mismatch", "host-mismatch", 421, "this gateway does not answer for that host", No, BAD),
            MethodRefused         => row("method-refused", "method-refused", 405, "this method is never allowed here", No, BAD),
            UpgradeRefused        => row("upgrade-refused", "upgrade-refused", 400, "protocol upgrades are not offered", No, BAD),
            ExpectationRefused    => row("expectation-refused", "expectation-refused", 417, "the only expectation that is met is 100-continue", No, BAD),

            IdentityUnknown       => row("identity-unknown", "identity-unknown", 403, "the client certificate is valid but belongs to no registered partner", No, DENIED),
            IdentityAmbiguous     => row("identity-ambiguous", "identity-unknown", 403, "the client certificate is valid but belongs to no registered partner", No, DENIED),
            CertificateExpired    => row("certificate-expired", "certificate-expired", 403, "the client certificate has expired since the connection was made", No, DENIED),
            TrustWithdrawn        => row("trust-withdrawn", "certificate-refused", 403, "the client certificate is not trusted any more", No, DENIED),

            PartnerFrozen         => row("partner-frozen", "held", 403, "access is on hold", Later, DENIED),
            PartnerNotValid       => row("partner-not-valid", "not-valid-now", 403, "access is outside the agreed period", No, DENIED),
            OutsideHours          => row("outside-hours", "not-valid-now", 403, "access is outside the agreed hours", Later, DENIED),
            NetworkNotAllowed     => row("network-not-allowed", "network-not-allowed", 403, "the source address is not on this partner's allowlist", No, DENIED),
            NetworkExpired        => row("network-expired", "network-not-allowed", 403, "the source address is not on this partner's allowlist", No, DENIED),

            NoRoute               => row("no-route", "no-grant", 403, "this partner has no grant for that method and path", No, DENIED),
            NoGrant               => row("no-grant", "no-grant", 403, "this partner has no grant for that method and path", No, DENIED),

            RatePartner           => row("rate-partner", "rate-limited", 429, "too many requests", Later, DENIED),
            RateRoute             => row("rate-route", "rate-limited", 429, "too many requests", Later, DENIED),
            RateSource            => row("rate-source", "rate-limited", 429, "too many requests", Later, DENIED),
            RateSubject           => row("rate-subject", "rate-limited", 429, "too many requests", Later, DENIED),
            BudgetPartner         => row("budget-partner", "budget-spent", 429, "too many different people were looked up", Later, DENIED),
            BudgetActor           => row("budget-actor", "budget-spent", 429, "too many different people were looked up", Later, DENIED),
            BudgetGrant           => row("budget-grant", "budget-spent", 429, "too many different people were looked up", Later, DENIED),
            BudgetPeople          => row("budget-people", "budget-spent", 429, "too many different people were looked up", Later, DENIED),
            HeldPartner           => row("held-partner", "held", 403, "access is on hold", Later, DENIED),
            HeldActor             => row("held-actor", "held", 403, "access is on hold", Later, DENIED),
            HeldPending           => row("held-pending", "held", 403, "access is on hold", Later, DENIED),
            InFlightPartner       => row("in-flight-partner", "too-many-in-flight", 429, "too many requests at the same time", Later, DENIED),
            InFlightRoute         => row("in-flight-route", "too-many-in-flight", 429, "too many requests at the same time", Later, DENIED),
            LimiterFull           => row("limiter-full", "unavailable", 503, "the gateway cannot take this request now", Later, "proxy_internal_error"),
            StateUnavailable      => row("state-unavailable", "unavailable", 503, "the gateway cannot take this request now", Later, "proxy_internal_error"),
            ConnectionsPartner    => row("connections-partner", "too-many-connections", 429, "too many connections of this partner", Later, DENIED),

            ContentType           => row("content-type", "content-type", 415, "a lookup's body must be application/json", No, BAD),
            ContentEncoding       => row("content-encoding", "content-encoding", 415, "a lookup's body must not be encoded", No, BAD),
            BodyTooLarge          => row("body-too-large", "body-too-large", 413, "the request's body is too large", No, BAD),
            BodyTimeout           => row("body-timeout", "body-timeout", 408, "the request's body came too slowly", Later, BAD),
            BodyIncomplete        => row("body-incomplete", "bad-request", 400, "the request's body ended early or was malformed", No, BAD),
            BodyNotJson           => row("body-not-json", "body-invalid", 400, "the body is not one JSON object", No, BAD),
            BodyNotExpected       => row("body-not-expected", "body-invalid", 400, "this route takes no body", No, BAD),
            MemberUndeclared      => row("member-undeclared", "body-invalid", 400, "the body has a member that this route does not declare", No, BAD),
            MemberDuplicate       => row("member-duplicate", "body-invalid", 400, "the body has the same member twice", No, BAD),
            MemberMissing         => row("member-missing", "body-invalid", 400, "the body lacks a required member", No, BAD),
            MemberInvalid         => row("member-invalid", "body-invalid", 400, "a member of the body has the wrong type or length", No, BAD),
            ParameterUndeclared   => row("parameter-undeclared", "query-invalid", 400, "the query has a parameter that this route does not declare", No, BAD),
            ParameterDuplicate    => row("parameter-duplicate", "query-invalid", 400, "the query has the same parameter twice", No, BAD),
            ParameterMissing      => row("parameter-missing", "query-invalid", 400, "the query lacks a required parameter", No, BAD),
            ParameterInvalid      => row("parameter-invalid", "query-invalid", 400, "a query parameter has the wrong type or length", No, BAD),
            IdentifierMissing     => row("identifier-missing", "identifier-invalid", 422, "the identifier is missing", No, BAD),
            IdentifierFormat      => row("identifier-format", "identifier-invalid", 422, "the identifier is malformed", No, BAD),
            IdentifierPrefix      => row("identifier-prefix", "identifier-invalid", 422, "the identifier starts with digits that its kind never has", No, BAD),
            IdentifierCheckDigit  => row("identifier-check-digit", "identifier-invalid", 422, "the identifier's check digit does not match", No, BAD),
            IdentifierPalindrome  => row("identifier-palindrome", "identifier-invalid", 422, "the identifier is of a form that is never issued", No, BAD),
            IdentifierMasked      => row("identifier-masked", "identifier-invalid", 422, "a masked identifier cannot be looked up", No, BAD),
            IdentifierUndeclared  => row("identifier-undeclared", "body-invalid", 400, "a value that is not the identifier reads like one", No, BAD),
            PurposeMissing        => row("purpose-missing", "purpose-missing", 400, "the request names no purpose", No, BAD),
            PurposeNotGranted     => row("purpose-not-granted", "purpose-not-granted", 403, "this purpose is not granted", No, DENIED),
            ActorMissing          => row("actor-missing", "actor-missing", 400, "the request names no actor, which this partner must", No, BAD),
            ActorInvalid          => row("actor-invalid", "actor-invalid", 400, "the actor is not an opaque id of 1 to 64 letters, digits and . _ @ -, or looks like a person's identifier", No, BAD),

            BackendBusy           => row("backend-busy", "unavailable", 503, "the service behind the gateway is busy", Later, "connection_limit_reached"),
            BackendCircuitOpen    => row("backend-circuit-open", "unavailable", 503, "the service behind the gateway is busy", Later, "destination_unavailable"),
            BackendUnreachable    => row("backend-unreachable", "backend-failed", 502, "the service behind the gateway did not answer properly", Later, "destination_unavailable"),
            BackendTls            => row("backend-tls", "backend-failed", 502, "the service behind the gateway did not answer properly", Later, "tls_protocol_error"),
            BackendConnectTimeout => row("backend-connect-timeout", "backend-timeout", 504, "the service behind the gateway did not answer in time", Later, "connection_timeout"),
            BackendTimeout        => row("backend-timeout", "backend-timeout", 504, "the service behind the gateway did not answer in time", Later, "http_response_timeout"),
            BackendProtocol       => row("backend-protocol", "backend-failed", 502, "the service behind the gateway did not answer properly", Later, "http_protocol_error"),
            BackendError          => row("backend-error", "backend-failed", 502, "the service behind the gateway did not answer properly", Later, "http_protocol_error"),
            BackendTooLarge       => row("backend-too-large", "backend-failed", 502, "the service behind the gateway did not answer properly", No, "http_response_body_size"),
            BackendIncomplete     => row("backend-incomplete", "backend-failed", 502, "the service behind the gateway did not answer properly", Later, "http_response_incomplete"),
            NoMatch               => row("no-match", "no-match", 404, "nobody was found", No, "http_request_error"),

            AuditUnavailable      => row("audit-unavailable", "unavailable", 503, "the gateway cannot take this request now", Later, "proxy_internal_error"),

            Internal              => row("internal", "internal", 500, "the gateway failed", Later, "proxy_internal_error"),
        }
    }

    pub const fn code(self) -> &'static str {
        self.row().code
    }

    /// Whether all that the partner is told is that its access is on hold: not why, how, since or until when.
    pub fn is_held(self) -> bool {
        self.row().public == "held"
    }

    /// Reads a private code, as cases and commands name it.
    pub fn parse(code: &str) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|reason| reason.code() == code)
    }

    /// Every reason, in the order of the request's life.
    #[rustfmt::skip]
    pub const ALL: &'static [Reason] = {
        use Reason::*;
        &[
            MalformedRequest, AmbiguousFraming, HeadTooLarge, BadPath, HostMismatch, MethodRefused, UpgradeRefused, ExpectationRefused,
            IdentityUnknown, IdentityAmbiguous, CertificateExpired, TrustWithdrawn, PartnerFrozen, PartnerNotValid, OutsideHours, NetworkNotAllowed, NetworkExpired,
            NoRoute, NoGrant, RatePartner, RateRoute, RateSource, RateSubject, BudgetPartner, BudgetActor, BudgetGrant, BudgetPeople, HeldPartner, HeldActor, HeldPending, InFlightPartner, InFlightRoute, LimiterFull, StateUnavailable, ConnectionsPartner,
            ContentType, ContentEncoding, BodyTooLarge, BodyTimeout, BodyIncomplete, BodyNotJson, BodyNotExpected,
            MemberUndeclared, MemberDuplicate, MemberMissing, MemberInvalid,
            ParameterUndeclared, ParameterDuplicate, ParameterMissing, ParameterInvalid,
            IdentifierMissing, IdentifierFormat, IdentifierPrefix, IdentifierCheckDigit, IdentifierPalindrome, IdentifierMasked, IdentifierUndeclared,
            PurposeMissing, PurposeNotGranted, ActorMissing, ActorInvalid,
            BackendBusy, BackendCircuitOpen, BackendUnreachable, BackendTls, BackendConnectTimeout, BackendTimeout, BackendProtocol, BackendError, BackendTooLarge, BackendIncomplete, NoMatch,
            AuditUnavailable,
            Internal,
        ]
    };
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

const fn row(
    code: &'static str,
    public: &'static str,
    status: u16,
    text: &'static str,
    retry: Retry,
    proxy_error: &'static str,
) -> Row {
    Row { code, public, status, text, retry, proxy_error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn every_reason_is_listed_once_and_found_by_its_code() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        // `Internal` is declared last: were a variant missing from ALL, the discriminants would not fill the range.
        assert_eq!(Reason::Internal as usize + 1, Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.code()), Some(*reason));
        }
    }

    #[test]
    fn a_public_code_has_one_status_so_that_it_cannot_tell_private_reasons_apart() {
        let mut status = BTreeMap::new();
        for reason in Reason::ALL {
            let row = reason.row();
            assert!((400..600).contains(&row.status), "{}", row.code);
            assert_eq!(*status.entry(row.public).or_insert(row.status), row.status, "{}", row.public);
        }
    }
}
