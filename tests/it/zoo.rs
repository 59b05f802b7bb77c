//! What does each kind of certificate get? A table: how it is made, whom it is taken for or why it is refused.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::world::backend::one_person;
use crate::world::line::{self, Line};
use crate::world::pki::{Authority, FAR_AWAY, FARTHER_AWAY, LONG_AGO, Leaf, NOT_SO_LONG_AGO, Profile, named, pki};
use crate::world::process::run;
use crate::world::{ALPHA, BETA, Setup, World, eventually};

const WHOAMI: &str = "GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
const ALPHA_URI: &str = "URI:spiffe://partners.test/alpha";
const BETA_DNS: &str = "DNS:beta.partners.test";

/// A certificate, how it came to be, and what it gets.
struct Row {
    name: &'static str,
    verdict: Verdict,
    why: &'static str,
    shown: Shown,
}

#[derive(Clone, Copy)]
enum Verdict {
    /// Taken for this partner.
    Partner(&'static str),
    /// The handshake is done, for the certificate is sound; but its names are nobody's.
    Nobody,
    /// No handshake, for this reason.
    Refused(&'static str),
}

use Verdict::{Nobody, Partner, Refused};

/// What is sent in the handshake: the leaf's bytes first.
#[derive(Clone)]
struct Shown {
    chain: Vec<Vec<u8>>,
    key: PathBuf,
}

/// A certificate and the key that it is for; either a leaf or an authority.
#[derive(Clone)]
struct Made {
    der: Vec<u8>,
    certificate: PathBuf,
    key: PathBuf,
}

impl Made {
    fn of(leaf: &Leaf) -> Made {
        let der = CertificateDer::from_pem_file(&leaf.certificate).expect("certificate").to_vec();
        Made { der, certificate: leaf.certificate.clone(), key: leaf.key.clone() }
    }

    fn of_authority(authority: &Authority) -> Made {
        let key = authority.directory.join("ca.key");
        Made::of(&Leaf { certificate: authority.certificate(), key })
    }

    fn alone(&self) -> Shown {
        Shown { chain: vec![self.der.clone()], key: self.key.clone() }
    }

    fn with(&self, others: &[&Made]) -> Shown {
        let others = others.iter().map(|other| other.der.clone());
        Shown { chain: [self.der.clone()].into_iter().chain(others).collect(), key: self.key.clone() }
    }
}

/// Where the certificates of the table are made.
struct Forge {
    directory: PathBuf,
    root: Made,
    /// Of leaves for which another key is no matter.
    key: PathBuf,
}

struct Recipe<'a> {
    subject: &'a str,
    key: &'a Path,
    digest: &'a str,
    serial: &'a str,
    /// `None` makes a certificate of version 1.
    extensions: Option<&'a str>,
}

impl Forge {
    fn key(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let file = self.directory.join(format!("{name}.key"));
        self.openssl(&[&["genpkey", "-out", &file.display().to_string()], arguments].concat(), b"");
        file
    }

    fn usual<'a>(&'a self, extensions: &'a str) -> Recipe<'a> {
        Recipe { subject: USUAL, key: &self.key, digest: "-sha256", serial: "4711", extensions: Some(extensions) }
    }

    /// A leaf of the root with these extensions.
    fn leaf(&self, name: &str, extensions: &str) -> Made {
        self.issue(name, &self.root, &self.usual(extensions))
    }

    /// An authority below another.
    fn authority(&self, name: &str, above: &Made, extensions: &str) -> Made {
        let key = self.key(&format!("{name}-ca"), EC);
        let subject = format!("/O=Test/CN={name}");
        self.issue(name, above, &Recipe { subject: &subject, key: &key, ..self.usual(extensions) })
    }

    fn issue(&self, name: &str, above: &Made, recipe: &Recipe) -> Made {
        let path = |suffix: &str| self.directory.join(format!("zoo-{name}.{suffix}")).display().to_string();
        let (certificate, extensions) = (path("pem"), path("ext"));
        // Most requests are the same.
        let usual = recipe.subject == USUAL && recipe.key == self.key;
        let request = if usual { "zoo-usual.csr".to_owned() } else { path("csr") };
        if !usual || !self.directory.join(&request).exists() {
            let key = recipe.key.display().to_string();
            let ask = ["req", "-new", "-config", "openssl.cnf", "-utf8", "-subj", recipe.subject, "-key", &key];
            self.openssl(&[&ask[..], &["-out", &request]].concat(), b"");
        }
        let (above_certificate, above_key) = (above.certificate.display().to_string(), above.key.display().to_string());
        let sign = ["x509", "-req", "-in", &request, "-CA", &above_certificate, "-CAkey", &above_key];
        let how = [recipe.digest, "-set_serial", recipe.serial, "-days", "9000", "-out", &certificate];
        let mut arguments = [&sign[..], &how].concat();
        if let Some(text) = recipe.extensions {
            std::fs::write(&extensions, text).expect("write");
            arguments.extend(["-extfile", &extensions]);
        }
        self.openssl(&arguments, b"");
        Made::of(&Leaf { certificate: certificate.into(), key: recipe.key.into() })
    }

    /// A leaf whose content is changed, and signed by the root as it is then: openssl makes nothing that is so wrong.
    fn changed(&self, made: &Made, change: impl Fn(&mut Vec<u8>)) -> Shown {
        let (_, body) = element(&made.der);
        let (content, rest) = split(body);
        let (algorithm, _) = split(rest);
        let mut content = content.to_vec();
        change(&mut content);
        let key = self.root.key.display().to_string();
        let signature = self.openssl(&["dgst", "-sha256", "-sign", &key], &content);
        let signature = wrap(3, &[&[0][..], &signature].concat());
        Shown { chain: vec![wrap(0x30, &[&content, algorithm, &signature].concat())], key: made.key.clone() }
    }

    fn openssl(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let ran = run(Command::new("openssl").args(arguments).current_dir(&self.directory), input);
        assert_eq!(ran.code, Some(0), "openssl {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        ran.stdout
    }
}

const USUAL: &str = "/O=Test/CN=zoo";
const EC: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

// ---- DER, as far as it goes here

/// Length of an element's head, and its content.
fn element(bytes: &[u8]) -> (usize, &[u8]) {
    let (head, length) = match bytes[1] {
        short @ 0..=0x7f => (2, usize::from(short)),
        0x81 => (3, usize::from(bytes[2])),
        _ => (4, usize::from(bytes[2]) << 8 | usize::from(bytes[3])),
    };
    (head, &bytes[head..head + length])
}

/// The first element, and what is behind it.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (head, content) = element(bytes);
    bytes.split_at(head + content.len())
}

fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = match length {
        0..=0x7f => vec![tag, length as u8],
        0x80..=0xff => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [head, content.to_vec()].concat()
}

/// Puts other bytes, as many, in the place of some that stand once.
fn replace(from: &'static [u8], to: &'static [u8]) -> impl Fn(&mut Vec<u8>) {
    move |bytes| {
        assert_eq!(from.len(), to.len());
        let places: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
        assert_eq!(places.len(), 1, "{from:x?} stands once");
        bytes[places[0]..places[0] + to.len()].copy_from_slice(to);
    }
}

/// A subject alternative name of any bytes: 1 is an address of mail, 2 a DNS name, 6 a URI, 7 an address.
fn raw_name(kind: u8, bytes: &[u8]) -> String {
    let der = wrap(0x30, &wrap(0x80 | kind, bytes));
    let hex: Vec<_> = der.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{CLIENT}subjectAltName = DER:{}\n", hex.join(":"))
}

const CLIENT: &str = "basicConstraints = CA:FALSE\nkeyUsage = digitalSignature\nextendedKeyUsage = clientAuth\n";
const AUTHORITY: &str = "basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n";

fn row(name: &'static str, shown: impl Into<Shown>, verdict: Verdict, why: &'static str) -> Row {
    Row { name, verdict, why, shown: shown.into() }
}

impl From<Made> for Shown {
    fn from(made: Made) -> Shown {
        made.alone()
    }
}

impl From<Leaf> for Shown {
    fn from(leaf: Leaf) -> Shown {
        Made::of(&leaf).alone()
    }
}

#[rustfmt::skip]
fn leaves(house: &House) -> Vec<Row> {
    let House { root, other, foreign, forge } = house;
    let fine = named(ALPHA_URI);
    let leaf = |name: &str, extensions: &str| forge.leaf(name, extensions);
    let uri = |name: &str, uri: &[u8]| forge.leaf(name, &raw_name(6, uri));
    let dns = |name: &str, dns: &[u8]| forge.leaf(name, &raw_name(2, dns));
    let usual = leaf("usual", &fine);
    let period = |name: &str, from, until| root.issue(name, &Profile { extensions: &fine, from, until });
    let keyed = |name: &str, arguments: &[&str]| {
        let key = forge.key(name, arguments);
        forge.issue(name, &forge.root, &Recipe { key: &key, ..forge.usual(&fine) })
    };
    let curve = |name: &str, curve: &str| keyed(name, &["-algorithm", "EC", "-pkeyopt", &format!("ec_paramgen_curve:{curve}")]);
    let rsa = |name: &str, bits: u32| keyed(name, &["-algorithm", "RSA", "-pkeyopt", &format!("rsa_keygen_bits:{bits}")]);
    let digest = |name: &str, digest| forge.issue(name, &forge.root, &Recipe { digest, ..forge.usual(&fine) });
    let serial = |name: &str, serial| forge.issue(name, &forge.root, &Recipe { serial, ..forge.usual(&fine) });
    let subject = |name: &str, subject, extensions| forge.issue(name, &forge.root, &Recipe { subject, ..forge.usual(extensions) });
    let revoked = root.client("revoked", ALPHA_URI);
    root.revoke(&revoked);
    let many: String = (0..200).map(|at| format!("DNS:host-{at}.partners.test, ")).collect();
    let beta = leaf("beta", &named(BETA_DNS));
    vec![
        row("as it should be", usual.clone(), Partner("alpha"), "a name that was agreed, under the issuer that it was agreed for"),
        row("a DNS name", beta, Partner("beta"), "the same by a DNS name"),
        // Time, revocation, issuer, purpose.
        row("expired", period("expired", LONG_AGO, NOT_SO_LONG_AGO), Refused("certificate-expired"), "its time is over"),
        row("not yet valid", period("early", FAR_AWAY, FARTHER_AWAY), Refused("certificate-not-yet-valid"), "its time is to come"),
        row("a time before it began", period("backward", FARTHER_AWAY, LONG_AGO), Refused("chain-invalid"), "no moment is in it"),
        row("revoked", revoked, Refused("certificate-revoked"), "it is on the issuer's list"),
        row("the right name of an unknown issuer", foreign.client("alpha", ALPHA_URI), Refused("issuer-unknown"), "anybody can mint a name"),
        row("the right name of another issuer that is trusted", other.client("alpha", ALPHA_URI), Nobody, "a name counts only under the issuer that it was agreed for"),
        row("the right name of an unknown issuer of the same name", Authority::root(&foreign.directory, "zoo").client("alpha", ALPHA_URI), Refused("signature-invalid"), "names of issuers prove nothing either"),
        row("signed by itself", Leaf::self_signed(root, ALPHA_URI), Refused("issuer-unknown"), "nobody vouches for it"),
        row("the authority's own", forge.root.clone(), Refused("chain-invalid"), "an authority is no client"),
        row("an authority as a leaf", leaf("authority", &fine.replace("CA:FALSE", "CA:TRUE")), Refused("chain-invalid"), "an authority is no client"),
        row("a server's", leaf("server", &fine.replace("clientAuth", "serverAuth")), Refused("purpose-wrong"), "its extended key usage is not clientAuth"),
        row("no extended key usage", leaf("no-usage", &fine.replace("extendedKeyUsage = clientAuth\n", "")), Refused("purpose-wrong"), "a client's certificate says that it is one"),
        row("any extended key usage", leaf("any-usage", &fine.replace("clientAuth", "anyExtendedKeyUsage")), Refused("purpose-wrong"), "any usage is not this usage"),
        row("mail", leaf("mail", &fine.replace("clientAuth", "emailProtection")), Refused("purpose-wrong"), "its extended key usage is not clientAuth"),
        row("client and server", leaf("both", &fine.replace("clientAuth", "serverAuth, clientAuth")), Partner("alpha"), "clientAuth is among its usages"),
        row("no key usage", leaf("no-key-usage", &fine.replace("keyUsage = digitalSignature\n", "")), Partner("alpha"), "RFC 5280 section 4.2.1.3 leaves it to the issuer"),
        row("a key for encryption", leaf("encrypting", &fine.replace("digitalSignature", "keyEncipherment")), Refused("purpose-wrong"), "its key may not sign, and a handshake is a signature (RFC 5280 section 4.2.1.3)"),
        row("a key for agreement", leaf("agreeing", &fine.replace("digitalSignature", "keyAgreement")), Refused("purpose-wrong"), "its key may not sign"),
        row("another's key", Shown { key: forge.key("stolen", EC), ..usual.alone() }, Refused("signature-invalid"), "a certificate is public: only its key proves whose it is"),
        // Keys and hashes.
        row("P-384", curve("p-384", "P-384"), Partner("alpha"), "strong"),
        row("P-521", curve("p-521", "P-521"), Partner("alpha"), "strong"),
        row("Ed25519", keyed("ed25519", &["-algorithm", "ED25519"]), Partner("alpha"), "strong"),
        row("RSA of 2,048 bits", rsa("rsa-2048", 2_048), Partner("alpha"), "strong enough"),
        row("RSA of 1,024 bits", rsa("rsa-1024", 1_024), Refused("signature-invalid"), "its key is weak: no signature of it counts"),
        row("Ed448", keyed("ed448", &["-algorithm", "ED448"]), Refused("certificate-missing"), "no signature scheme of it is offered, and openssl keeps it to itself"),
        row("P-224", curve("p-224", "P-224"), Refused("certificate-missing"), "no signature scheme of it is offered, and openssl keeps it to itself"),
        row("secp256k1", curve("secp256k1", "secp256k1"), Refused("certificate-missing"), "no signature scheme of it is offered, and openssl keeps it to itself"),
        row("signed with SHA-1", digest("sha-1", "-sha1"), Refused("chain-invalid"), "the hash is broken"),
        row("signed with SHA-224", digest("sha-224", "-sha224"), Refused("chain-invalid"), "the hash is not among those that are accepted"),
        row("signed with SHA-512", digest("sha-512", "-sha512"), Partner("alpha"), "strong"),
        // Versions, serial numbers, bytes.
        row("version 1", forge.issue("v1", &forge.root, &Recipe { extensions: None, ..forge.usual("") }), Refused("certificate-malformed"), "version 1 has no extensions, and so neither usage nor name"),
        row("version 2 with extensions", forge.changed(&usual, replace(&[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 1])), Refused("certificate-malformed"), "extensions belong to version 3"),
        row("version 4", forge.changed(&usual, replace(&[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 3])), Refused("certificate-malformed"), "there is no version 4"),
        row("serial number 0", serial("serial-0", "0"), Partner("alpha"), "not right (RFC 5280 section 4.1.2.2), and as unique as any other"),
        row("a serial number of 20 bytes", serial("serial-20", "0x7fffffffffffffffffffffffffffffffffffffff"), Partner("alpha"), "the longest that RFC 5280 allows"),
        row("a serial number of 21 bytes", serial("serial-21", "0x7fffffffffffffffffffffffffffffffffffffffff"), Partner("alpha"), "longer than RFC 5280 section 4.1.2.2 allows; readers are to bear with it, and lists name it by the same bytes"),
        row("a negative serial number", serial("serial-negative", "-4711"), Partner("alpha"), "not right; RFC 5280 section 4.1.2.2 asks readers to bear with it, and lists name it by the same bytes"),
        row("bytes behind it", Shown { chain: vec![[&usual.der[..], &[0]].concat()], ..usual.alone() }, Refused("certificate-malformed"), "bytes that nobody signed"),
        row("its last byte missing", Shown { chain: vec![usual.der[..usual.der.len() - 1].to_vec()], ..usual.alone() }, Refused("certificate-malformed"), "it is not whole"),
        row("no certificate", Shown { chain: vec![b"certificate".to_vec()], ..usual.alone() }, Refused("certificate-malformed"), "it is none"),
        row("a bit of it changed", Shown { chain: vec![flipped(&usual.der)], ..usual.alone() }, Refused("signature-invalid"), "the signature is over other bytes"),
        row("signed anew", forge.changed(&usual, |_| {}), Partner("alpha"), "that changed certificates are refused for their change alone"),
        // Extensions.
        row("an unknown extension", leaf("unknown", &format!("{fine}1.2.3.4.5 = ASN1:NULL\n")), Partner("alpha"), "what is not critical may be ignored"),
        row("an unknown critical extension", leaf("unknown-critical", &format!("{fine}1.2.3.4.5 = critical, ASN1:NULL\n")), Refused("chain-invalid"), "what is critical must be understood"),
        row("a critical name", leaf("critical-name", &fine.replace("subjectAltName = ", "subjectAltName = critical, ")), Partner("alpha"), "names are understood"),
        row("name constraints on a leaf", leaf("constrained", &format!("{fine}nameConstraints = critical, permitted;DNS:elsewhere.test\n")), Partner("alpha"), "constraints bind those below, and a leaf has nobody below (RFC 5280 section 4.2.1.10)"),
        row("an empty usage", leaf("empty-usage", &fine.replace("extendedKeyUsage = clientAuth", "extendedKeyUsage = DER:30:00")), Refused("purpose-wrong"), "a list of usages with none in it"),
        row("the same extension twice", forge.changed(&leaf("twice", &format!("{fine}1.2.3.4.29.17 = ASN1:NULL\n1.2.3.4.29.18 = ASN1:NULL\n")), replace(&[0x2a, 3, 4, 29, 18], &[0x2a, 3, 4, 29, 17])), Refused("certificate-malformed"), "RFC 5280 section 4.2 allows one of a kind"),
        row("two extensions of names", forge.changed(&leaf("two-names-extensions", &format!("{fine}issuerAltName = {BETA_DNS}\n")), replace(&[0x55, 0x1d, 0x12], &[0x55, 0x1d, 0x11])), Refused("certificate-malformed"), "RFC 5280 section 4.2 allows one of a kind"),
        // Names.
        row("no name", leaf("nameless", CLIENT), Nobody, "only alternative names are names"),
        row("the name as a common name", subject("common", "/O=Test/CN=beta.partners.test", CLIENT), Nobody, "a common name is no identity"),
        row("two common names", subject("two-common", "/O=Test/CN=alpha/CN=beta.partners.test", &fine), Partner("alpha"), "common names are not looked at"),
        row("a common name with a NUL", forge.changed(&subject("nul", "/O=Test/CN=alpha#evil", &fine), replace(b"alpha#evil", b"alpha\0evil")), Partner("alpha"), "common names are not looked at"),
        row("a common name with a line end", subject("line", "/O=Test/CN=alpha\r\nx-partner: beta", &fine), Partner("alpha"), "common names are not looked at"),
        row("a URI with a NUL", uri("uri-nul", b"spiffe://partners.test/alpha\0.evil.test"), Nobody, "every byte of a name counts (CVE-2009-2408)"),
        row("a DNS name with a NUL", dns("dns-nul", b"beta.partners.test\0.evil.test"), Nobody, "every byte of a name counts (CVE-2009-2408)"),
        row("a URI with a line end", uri("uri-line", b"spiffe://partners.test/alpha\n"), Nobody, "every byte of a name counts"),
        row("a URI with a space", uri("uri-space", b"spiffe://partners.test/alpha "), Nobody, "every byte of a name counts"),
        row("a scheme in capitals", uri("uri-scheme", b"SPIFFE://partners.test/alpha"), Nobody, "URIs are compared byte by byte, so that there is one spelling"),
        row("a trust domain in capitals", uri("uri-domain", b"spiffe://PARTNERS.test/alpha"), Nobody, "URIs are compared byte by byte"),
        row("a path in capitals", uri("uri-path", b"spiffe://partners.test/ALPHA"), Nobody, "URIs are compared byte by byte"),
        row("a path with an escape", uri("uri-escape", b"spiffe://partners.test/%61lpha"), Nobody, "URIs are compared byte by byte"),
        row("a path with a slash behind", uri("uri-slash", b"spiffe://partners.test/alpha/"), Nobody, "URIs are compared byte by byte"),
        row("a path with dots", uri("uri-dots", b"spiffe://partners.test/x/../alpha"), Nobody, "URIs are compared byte by byte"),
        row("a path with a query", uri("uri-query", b"spiffe://partners.test/alpha?"), Nobody, "URIs are compared byte by byte"),
        row("a path with a port", uri("uri-port", b"spiffe://partners.test:443/alpha"), Nobody, "URIs are compared byte by byte"),
        row("a letter of another script", uri("uri-script", "spiffe://partners.test/аlpha".as_bytes()), Nobody, "URIs are compared byte by byte"),
        row("a wild card in a URI", uri("uri-wild", b"spiffe://partners.test/*"), Nobody, "no name stands for another"),
        row("a DNS name in capitals", dns("dns-capitals", b"BETA.Partners.TEST"), Partner("beta"), "DNS names have no case (RFC 4343)"),
        row("a DNS name with a dot behind", dns("dns-dot", b"beta.partners.test."), Nobody, "a name has one spelling"),
        row("a DNS name below", dns("dns-below", b"x.beta.partners.test"), Nobody, "no name stands for another"),
        row("a wild card", dns("dns-wild", b"*.partners.test"), Nobody, "a wild card is nobody's name"),
        row("a wild card in a label", dns("dns-wild-label", b"b*.partners.test"), Nobody, "a wild card is nobody's name"),
        row("a DNS name with a space", dns("dns-space", b" beta.partners.test"), Nobody, "it is no DNS name"),
        row("a URI as a DNS name", dns("dns-uri", b"spiffe://partners.test/alpha"), Nobody, "kinds of names are not mixed"),
        row("a DNS name as a URI", uri("uri-dns", b"beta.partners.test"), Nobody, "kinds of names are not mixed"),
        row("a DNS name as an address of mail", leaf("mail-dns", &raw_name(1, b"beta.partners.test")), Nobody, "kinds of names are not mixed"),
        row("an address", leaf("address", &raw_name(7, &[127, 0, 0, 1])), Nobody, "where somebody is does not say who"),
        row("an empty URI", uri("uri-empty", b""), Nobody, "an empty name is nobody's"),
        row("200 names and the right one", leaf("many", &named(&format!("{many}{ALPHA_URI}"))), Partner("alpha"), "names that are nobody's are no harm"),
        row("names of two partners", leaf("two-partners", &named(&format!("{ALPHA_URI}, {BETA_DNS}"))), Nobody, "whoever is two is nobody"),
        row("the right name and another of the same kind", leaf("two-names", &named(&format!("URI:spiffe://partners.test/else, {ALPHA_URI}"))), Partner("alpha"), "one of its names was agreed"),
        // More than one certificate.
        row("the root behind it", usual.with(&[&forge.root]), Partner("alpha"), "a root is not needed, and no harm"),
        row("an unrelated certificate behind it", usual.with(&[&Made::of(&pki().beta), &Made::of_authority(foreign)]), Partner("alpha"), "what is not part of the chain is not looked at"),
        row("itself behind it, forty times", usual.with(&[&usual; 40]), Partner("alpha"), "what is not part of the chain is not looked at"),
        row("an unknown leaf before a known one", Shown { chain: vec![foreign.client("before", ALPHA_URI).der(), usual.der.clone()], key: foreign.directory.join("before.key") }, Refused("issuer-unknown"), "the first certificate is the one that was shown"),
        row("another's leaf before the right one", Shown { chain: vec![pki().beta.der(), usual.der.clone()], ..usual.alone() }, Refused("issuer-unknown"), "the first certificate is the one that was shown"),
    ]
}

/// Those with authorities between: revocation is off here, since each of them would need a list of its own.
#[rustfmt::skip]
fn chains(house: &House) -> Vec<Row> {
    let House { forge, foreign, .. } = house;
    let fine = named(ALPHA_URI);
    let below = |name: &str, above: &Made| forge.issue(name, above, &forge.usual(&fine));
    let beta = |name: &str, above: &Made| forge.issue(name, above, &forge.usual(&named(BETA_DNS)));
    let authority = |name: &str, more: &str| forge.authority(name, &forge.root, &format!("{AUTHORITY}{more}"));
    let one = authority("one", "");
    let leaf_of_one = below("leaf-of-one", &one);
    let two = forge.authority("two", &one, AUTHORITY);
    let leaf_of_two = below("leaf-of-two", &two);
    let short = forge.authority("short", &forge.root, &AUTHORITY.replace("CA:TRUE", "CA:TRUE, pathlen:0"));
    let too_deep = forge.authority("too-deep", &short, AUTHORITY);
    let no_authority = forge.authority("no-authority", &forge.root, &AUTHORITY.replace("CA:TRUE", "CA:FALSE"));
    let plain = forge.authority("plain", &forge.root, "keyUsage = digitalSignature\n");
    let signs_nothing = forge.authority("signs-nothing", &forge.root, &AUTHORITY.replace("keyCertSign, ", ""));
    let for_servers = authority("for-servers", "extendedKeyUsage = serverAuth\n");
    let for_clients = authority("for-clients", "extendedKeyUsage = clientAuth\n");
    let permitted = authority("permitted", "nameConstraints = critical, permitted;DNS:partners.test\n");
    let elsewhere = authority("elsewhere", "nameConstraints = critical, permitted;DNS:elsewhere.test\n");
    let excluded = authority("excluded", "nameConstraints = critical, excluded;DNS:partners.test\n");
    let constrained_uri = authority("constrained-uri", "nameConstraints = critical, permitted;URI:elsewhere.test\n");
    let weak = forge.issue("weak", &forge.root, &Recipe { subject: "/O=Test/CN=weak", key: &forge.key("weak-ca", EC), digest: "-sha1", ..forge.usual(AUTHORITY) });
    let rsa = |name: &str, bits: u32| {
        let key = forge.key(&format!("{name}-ca"), &["-algorithm", "RSA", "-pkeyopt", &format!("rsa_keygen_bits:{bits}")]);
        forge.issue(name, &forge.root, &Recipe { subject: &format!("/O=Test/CN={name}"), key: &key, ..forge.usual(AUTHORITY) })
    };
    let (rsa_strong, rsa_weak) = (rsa("rsa-strong", 2_048), rsa("rsa-weak", 1_024));
    let digested = |digest| forge.issue(digest, &rsa_strong, &Recipe { digest, ..forge.usual(&fine) }).with(&[&rsa_strong]);
    let understood_by_nobody = authority("understood-by-nobody", "1.2.3.4.5 = critical, ASN1:NULL\n");
    let mut long = vec![one.clone()];
    for name in ["long-2", "long-3", "long-4", "long-5", "long-6", "long-7", "long-8", "long-9", "long-10"] {
        let next = forge.authority(name, long.last().expect("one"), AUTHORITY);
        long.push(next);
    }
    let leaf_of_long = below("leaf-of-long", long.last().expect("one"));
    let long: Vec<&Made> = long.iter().rev().collect();
    let leaf_of_leaf = below("leaf-of-leaf", &Made::of(&pki().alpha));
    vec![
        row("below one authority", leaf_of_one.with(&[&one]), Partner("alpha"), "a chain that is whole"),
        row("below two authorities", leaf_of_two.with(&[&two, &one]), Partner("alpha"), "a chain that is whole"),
        row("below two authorities in the wrong order", leaf_of_two.with(&[&one, &two]), Partner("alpha"), "TLS 1.3 leaves the order to the client (RFC 8446 section 4.4.2)"),
        row("below two authorities among others", leaf_of_two.with(&[&Made::of_authority(foreign), &two, &forge.root, &one]), Partner("alpha"), "what is not part of the chain is not looked at"),
        row("an authority that is missing", leaf_of_two.with(&[&one]), Refused("issuer-unknown"), "a chain with a gap"),
        row("no authority at all", leaf_of_two.alone(), Refused("issuer-unknown"), "a chain with a gap"),
        row("an authority's path length", below("deep", &too_deep).with(&[&too_deep, &short]), Refused("chain-invalid"), "there was to be no authority below that one"),
        row("an authority's path length that is kept", below("short-leaf", &short).with(&[&short]), Partner("alpha"), "a leaf is no authority"),
        row("below what is no authority", below("under-leaf", &no_authority).with(&[&no_authority]), Refused("chain-invalid"), "only authorities vouch"),
        row("below what does not say that it is one", below("under-plain", &plain).with(&[&plain]), Refused("chain-invalid"), "only authorities vouch"),
        row("below a partner's leaf", leaf_of_leaf.with(&[&Made::of(&pki().alpha)]), Refused("chain-invalid"), "only authorities vouch"),
        row("below an authority that may not sign certificates", below("under-lists", &signs_nothing).with(&[&signs_nothing]), Refused("chain-invalid"), "its key usage has no keyCertSign (RFC 5280 section 4.2.1.3)"),
        row("below an authority for servers", below("under-servers", &for_servers).with(&[&for_servers]), Refused("purpose-wrong"), "extended key usages hold for those below"),
        row("below an authority for clients", below("under-clients", &for_clients).with(&[&for_clients]), Partner("alpha"), "extended key usages hold for those below"),
        row("a DNS name that is permitted", beta("permitted-leaf", &permitted).with(&[&permitted]), Partner("beta"), "name constraints are kept"),
        row("a DNS name that is not permitted", beta("elsewhere-leaf", &elsewhere).with(&[&elsewhere]), Refused("chain-invalid"), "name constraints are broken"),
        row("a DNS name that is excluded", beta("excluded-leaf", &excluded).with(&[&excluded]), Refused("chain-invalid"), "name constraints are broken"),
        row("a URI that is not permitted", below("constrained-leaf", &constrained_uri).with(&[&constrained_uri]), Refused("chain-invalid"), "constraints on URIs are not understood, and so nothing below them is taken"),
        row("below an authority signed with SHA-1", below("under-weak", &weak).with(&[&weak]), Refused("chain-invalid"), "the hash is broken"),
        row("below an authority of RSA", digested("-sha256"), Partner("alpha"), "strong enough"),
        row("below an authority of RSA, signed with MD5", digested("-md5"), Refused("chain-invalid"), "the hash is broken"),
        row("below an authority of RSA, signed with SHA-1", digested("-sha1"), Refused("chain-invalid"), "the hash is broken"),
        row("below an authority of RSA of 1,024 bits", below("under-rsa-weak", &rsa_weak).with(&[&rsa_weak]), Refused("signature-invalid"), "its key is weak: no signature of it counts"),
        row("below an authority with an unknown critical extension", below("under-unknown", &understood_by_nobody).with(&[&understood_by_nobody]), Refused("chain-invalid"), "what is critical must be understood"),
        row("below ten authorities", leaf_of_long.with(&long), Refused("chain-invalid"), "a chain is six authorities long at most"),
        row("an authority forty times", leaf_of_one.with(&[&one; 40]), Partner("alpha"), "copies are no harm"),
        row("one authority of forty", leaf_of_one.with(&[vec![&two; 40], vec![&one]].concat()), Partner("alpha"), "what is not part of the chain is not looked at"),
        row("an authority as a leaf, with its chain", two.with(&[&one]), Refused("chain-invalid"), "an authority is no client"),
        row("an authority with bytes behind it", Shown { chain: vec![leaf_of_one.der.clone(), [&one.der[..], &[0]].concat()], ..leaf_of_one.alone() }, Refused("certificate-malformed"), "bytes that nobody signed"),
    ]
}

/// The last letter of its name changed: what was signed is another name.
fn flipped(der: &[u8]) -> Vec<u8> {
    let mut der = der.to_vec();
    let name = b"spiffe://partners.test/alpha";
    let at = (0..der.len()).find(|at| der[*at..].starts_with(name)).expect("the name");
    der[at + name.len() - 1] ^= 1;
    der
}

/// Shows a certificate: what the answer says, or the error.
fn knock(world: &World, shown: &Shown, source: Ipv4Addr) -> Result<String, String> {
    let key = PrivateKeyDer::from_pem_file(&shown.key).expect("key");
    if aws_lc_rs::default_provider().key_provider.load_private_key(key).is_err() {
        return knock_by_openssl(world, shown, source);
    }
    let mut line = connect(world, shown, source).map_err(|error| error.to_string())?;
    // In TLS 1.3 a client learns of a refusal with its first read.
    let _ = line.try_send(WHOAMI);
    match line.more() {
        Ok(true) => Ok(line.answer(false).text()),
        Ok(false) => Err("closed without an alert".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn connect(world: &World, shown: &Shown, source: Ipv4Addr) -> io::Result<Line> {
    let key = PrivateKeyDer::from_pem_file(&shown.key).expect("key");
    let chain = shown.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let stream = line::tcp(source, world.address)?;
    line::show(stream, Some((chain, key)), b"http/1.1", aws_lc_rs::default_provider())
}

/// For keys that rustls does not take on its own side either.
fn knock_by_openssl(world: &World, shown: &Shown, source: Ipv4Addr) -> Result<String, String> {
    let chain = shown.key.with_extension("shown");
    let pem = |der: &Vec<u8>| {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", BASE64_STANDARD.encode(der))
    };
    let text: String = shown.chain.iter().map(pem).collect();
    // openssl reads lines of 64 characters, and longer ones only up to a limit.
    let lines = |line: &str| {
        let pieces: Vec<_> =
            line.as_bytes().chunks(64).map(|piece| String::from_utf8_lossy(piece).into_owned()).collect();
        pieces.join("\n") + "\n"
    };
    std::fs::write(&chain, text.lines().map(lines).collect::<String>()).expect("write");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &world.address.to_string(), "-servername", "localhost", "-ign_eof"]);
    command.args(["-bind", &format!("{source}:0"), "-cipher", "ALL:@SECLEVEL=0", "-sigalgs", SCHEMES]);
    command.arg("-CAfile").arg(pki().partners.certificate());
    command.arg("-cert").arg(&chain).arg("-key").arg(&shown.key);
    let ran = run(&mut command, WHOAMI.as_bytes());
    let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
    match said.split_once("HTTP/1.1 ").and_then(|(_, answer)| answer.split_once("\r\n\r\n")) {
        Some((_, body)) => Ok(body.to_owned()),
        None => Err(said),
    }
}

/// Whatever openssl can sign with.
const SCHEMES: &str = "ECDSA+SHA256:RSA-PSS+SHA256:ed25519:ed448:ECDSA+SHA224:RSA+SHA256";

/// Shows every certificate: all that get something else than they should are named.
fn check(world: &World, rows: &[Row]) {
    let mut names: Vec<_> = rows.iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.windows(2).for_each(|two| assert_ne!(two[0], two[1], "two rows of one name"));
    let mut wrong = Vec::new();
    for Row { name, verdict, why, shown } in rows {
        let (source, result) = match verdict {
            Partner("beta") => (BETA, "ok"),
            Partner(_) | Nobody => (ALPHA, "ok"),
            Refused(reason) => (ALPHA, *reason),
        };
        let counted = || world.metric(&format!("dwarpal_handshakes_total{{result=\"{result}\"}}"));
        let before = counted();
        let got = knock(world, shown, source);
        let as_told = match (verdict, &got) {
            (Partner(partner), Ok(body)) => body.contains(&format!("\"partner\":\"{partner}\"")),
            (Nobody, Ok(body)) => body.contains("urn:dwarpal:reason:identity-unknown"),
            (Refused(_), Err(error)) => error.contains("alert"),
            _ => false,
        };
        if as_told {
            eventually(&format!("{name}: {result}, because {why}"), || counted() == before + 1.0);
        } else {
            wrong.push(format!("{name}: {result}, because {why}: {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// The authorities of these tests alone.
struct House {
    root: Authority,
    /// Trusted under another name.
    other: Authority,
    /// Not trusted.
    foreign: Authority,
    forge: Forge,
}

fn house(name: &str) -> House {
    let directory = pki().directory.join(name);
    std::fs::create_dir_all(&directory).expect("directory");
    let [root, other, foreign] = ["zoo", "zoo-other", "zoo-foreign"].map(|name| Authority::root(&directory, name));
    let made = Made::of_authority(&root);
    let mut forge = Forge { directory: root.directory.clone(), root: made, key: PathBuf::default() };
    forge.key = forge.key("any", EC);
    House { root, other, foreign, forge }
}

impl House {
    /// A gateway that trusts the root, with what is said of its lists.
    fn trusting(&self, lists: &str) -> Setup {
        let shared = pki().directory.display();
        let usual = format!("crls = [\"{shared}/partners/current.crl\"]\ncrl_grace = \"24h\"\nrevocation = \"chain\"");
        Setup::new()
            .gateway(&format!("{shared}/partners/ca.pem"), &self.root.certificate().display().to_string())
            .gateway(&usual, lists)
    }
}

#[test]
fn every_leaf_is_accepted_or_refused_for_its_reason() {
    let house = house("zoo-of-leaves");
    let rows = leaves(&house);
    let list = |authority: &Authority| authority.list("zoo", LONG_AGO, FARTHER_AWAY).display().to_string();
    let setup = house.trusting(&format!("crls = [\"{}\"]\nrevocation = \"chain\"", list(&house.root)));
    let (certificate, list) = (house.other.certificate(), list(&house.other));
    let elsewhere = format!(
        "[[issuer]]\nname = \"elsewhere\"\ncertificates = \"{}\"\ncrls = [\"{list}\"]\n",
        certificate.display()
    );
    check(&setup.section(&elsewhere).start(one_person), &rows);
}

#[test]
fn every_chain_is_accepted_or_refused_for_its_reason() {
    let house = house("zoo-of-chains");
    // Each authority between would need a list of its own.
    check(&house.trusting("revocation = \"off\"").start(one_person), &chains(&house));
}

#[test]
fn a_name_in_a_certificate_writes_no_fields() {
    let house = house("zoo-of-fields");
    let forge = &house.forge;
    let subject = "/O=Test/CN=alpha\r\nx-partner: beta\r\n\r\nGET smuggled";
    let fine = named(ALPHA_URI);
    let leaf = forge.issue("fields", &forge.root, &Recipe { subject, ..forge.usual(&fine) });
    let world = house.trusting("revocation = \"off\"").start(one_person);
    let mut line = connect(&world, &leaf.alone(), ALPHA).expect("a handshake");
    assert_eq!(line.ask("GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n").status, 200);
    let request = world.backend.only();
    let shown = "O=Test, CN=alpha??x-partner: beta????GET smuggled";
    assert_eq!((request.header("x-client-dn"), request.header("x-partner")), (shown, "alpha"));
}

#[test]
fn a_revoked_authority_takes_those_below_with_it() {
    let house = house("zoo-of-lists");
    let (revoked, fine) = (house.root.intermediate("revoked"), house.root.intermediate("fine"));
    let below = |authority: &Authority| {
        let leaf = Made::of(&authority.client("leaf", ALPHA_URI));
        leaf.with(&[&Made::of_authority(authority)])
    };
    let own = Leaf { certificate: revoked.certificate(), key: revoked.directory.join("ca.key") };
    let (under_revoked, under_fine) = (below(&revoked), below(&fine));
    house.root.revoke(&own);
    let lists = [&house.root, &revoked, &fine].map(|authority| authority.list("zoo", LONG_AGO, FARTHER_AWAY));
    let lists = lists.map(|list| format!("\"{}\"", list.display())).join(", ");
    let rows = [
        row("below a revoked authority", under_revoked, Refused("certificate-revoked"), "it is on the root's list"),
        row("below another", under_fine, Partner("alpha"), "nothing of its chain is on a list"),
    ];
    check(&house.trusting(&format!("crls = [{lists}]\nrevocation = \"chain\"")).start(one_person), &rows);
}
