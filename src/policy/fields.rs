//! Which header fields mean what? Names only; the live path and the configuration ask the same questions.

/// Fields that a pass route lets through without being told: content and its negotiation (RFC 9110), and who asks in
/// the sense of a program.
pub fn passes(name: &str) -> bool {
    matches!(
        name,
        "accept"
            | "accept-encoding"
            | "accept-language"
            | "content-type"
            | "content-encoding"
            | "content-language"
            | "content-digest"
            | "if-match"
            | "if-none-match"
            | "if-modified-since"
            | "if-unmodified-since"
            | "if-range"
            | "range"
            | "user-agent"
            | "idempotency-key"
    )
}

/// Fields that no configuration may read from a partner or let through.
pub fn is_reserved(name: &str) -> bool {
    is_hop_by_hop(name)
        || is_identity(name)
        || name.starts_with("content-")
        || matches!(name, "host" | "expect" | "max-forwards")
}

/// Fields that the gateway sets or relies on: a request whose `Connection` nominates one (RFC 9110 section 7.6.1) tries to
/// have it removed on the way (CVE-2024-45410).
pub fn is_relied_on(name: &str) -> bool {
    is_identity(name)
        || matches!(
            name,
            "host"
                | "content-length"
                | "transfer-encoding"
                | "content-type"
                | "content-encoding"
                | "expect"
                | "authorization"
        )
}

pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-authentication-info"
    )
}

/// Fields by which some backend or proxy learns who is calling, for whom, from where, or what to call instead. Names
/// count with `_` and `.` for `-` too: some backends cannot tell them apart.
pub fn is_identity(name: &str) -> bool {
    let dashed;
    let name = if name.contains(['_', '.']) {
        dashed = name.replace(['_', '.'], "-");
        dashed.as_str()
    } else {
        name
    };
    const PREFIXES: [&str; 14] = [
        "x-forwarded",
        "x-client-",
        "client-cert",
        "x-ssl-",
        "ssl-client",
        "x-partner",
        "x-original-",
        "x-rewrite-",
        "x-envoy-",
        "x-amzn-mtls-",
        "x-dwarpal",
        "cf-",
        "x-arr-clientcert",
        "x-tls-",
    ];
    const NAMES: [&str; 19] = [
        "forwarded",
        "x-real-ip",
        "x-actor",
        "x-purpose",
        "x-decision-id",
        "true-client-ip",
        "x-cluster-client-ip",
        "x-originating-ip",
        "x-remote-ip",
        "x-remote-addr",
        "remote-user",
        "x-remote-user",
        "via",
        "traceparent",
        "tracestate",
        "baggage",
        "x-http-method-override",
        "x-method-override",
        "x-http-method",
    ];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_said_by_the_gateway_alone() {
        for name in [
            "x-partner",
            "x_partner",
            "x-partner-id",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded-client-cert",
            "forwarded",
            "client-cert",
            "client_cert",
            "client-cert-chain",
            "x-client-dn",
            "x-client-cert",
            "x-ssl-client-s-dn",
            "ssl_client_verify",
            "x-real-ip",
            "x_real_ip",
            "x-actor",
            "x-purpose",
            "x-decision-id",
            "x-original-url",
            "x-rewrite-url",
            "x-http-method-override",
            "true-client-ip",
            "traceparent",
            "tracestate",
            "baggage",
            "via",
        ] {
            assert!(is_identity(name), "{name}");
        }
        for name in ["accept", "content-type", "user-agent", "x-request-id", "authorization", "x-case"] {
            assert!(!is_identity(name), "{name}");
        }
    }
}
