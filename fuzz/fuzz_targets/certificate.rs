//! Does a client certificate prove what is in it and nothing else, and does a revocation list say one thing?
//!
//! The first byte says what the rest is. Even: the bytes of a certificate, in DER, that a stranger presents; of a revocation
//! list, in DER or PEM. Odd: the extensions of a certificate that a trusted CA signs, each an identifier, a length of two
//! bytes and the value.
#![no_main]

use std::sync::{Arc, LazyLock};

use dwarpal::clock::Clock;
use dwarpal::config::settings::Overrides;
use dwarpal::policy::identify::Credential;
use dwarpal::proxy::tls::{Attempt, Client, sha256};
use dwarpal::snapshot::{Snapshot, read_revocation_lists};
use dwarpal::state::State;
use dwarpal_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use time::macros::datetime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

struct World {
    snapshot: Snapshot,
    ca: CertifiedIssuer<'static, KeyPair>,
    key: KeyPair,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let scratch = Scratch::new();
    let key = || KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let mut params = dated(CertificateParams::new(vec![]).expect("no names"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(params, key()).expect("a CA");
    let own = key();
    let gateway = dated(CertificateParams::new(vec!["gateway".to_owned()]).expect("a name"));
    let gateway = gateway.signed_by(&own, &ca).expect("a certificate");
    scratch.write("ca.pem", ca.pem().as_bytes());
    scratch.write("gateway.pem", gateway.pem().as_bytes());
    scratch.write("gateway.key", own.serialize_pem().as_bytes());
    // Lists no matter here: every certificate is new.
    scratch.write("gateway.toml", include_bytes!("lookup.gateway.toml"));
    std::fs::create_dir(scratch.path().join("partners")).expect("a folder");
    let config = dwarpal::config::load(scratch.path(), &Overrides::default());
    let config = config.unwrap_or_else(|problems| panic!("{}", problems[0]));
    let snapshot = Snapshot::build(config, &State::default()).unwrap_or_else(|problems| panic!("{}", problems[0]));
    World { snapshot, ca, key: key() }
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    if kind % 2 == 1 {
        vouched_for(bytes);
    } else {
        assert!(present(bytes).is_err(), "a stranger gets in");
        lists(bytes);
    }
});

fn dated(mut params: CertificateParams) -> CertificateParams {
    (params.not_before, params.not_after) = (datetime!(2020-01-01 0:00 UTC), datetime!(2090-01-01 0:00 UTC));
    params
}

/// Shows a certificate as in a handshake.
fn present(der: &[u8]) -> Result<Arc<Client>, Arc<Attempt>> {
    let (_, attempt) = WORLD.snapshot.trust.attempt(&Clock::system()).expect("a configuration");
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    let leaf = CertificateDer::from(der);
    let verified = attempt.verify_client_cert(&leaf, &[], now);
    // As a chain's further certificate, bytes that are none help nobody.
    let helped = WORLD.snapshot.trust.attempt(&Clock::system()).expect("a configuration").1;
    assert_eq!(helped.verify_client_cert(&leaf, std::slice::from_ref(&leaf), now).is_ok(), verified.is_ok());
    match (verified, attempt.client()) {
        (Ok(_), Some(client)) => Ok(client),
        (Err(_), None) => Err(attempt),
        _ => panic!("a verdict and a client belong together"),
    }
}

fn vouched_for(bytes: &[u8]) {
    let mut params = dated(CertificateParams::new(vec![]).expect("no names"));
    params.custom_extensions = extensions(bytes);
    let Ok(certificate) = params.signed_by(&WORLD.key, &WORLD.ca) else { return };
    let der = certificate.der();
    match present(der) {
        Ok(client) => check(&client, der),
        Err(attempt) => assert!(attempt.client().is_none()),
    }
    // The same with a bit of the signature turned is nobody's.
    let mut forged = der.to_vec();
    *forged.last_mut().expect("not empty") ^= 1;
    assert!(present(&forged).is_err(), "a forged certificate gets in");
}

fn extensions(mut bytes: &[u8]) -> Vec<CustomExtension> {
    let mut extensions = Vec::new();
    while let [which, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (value, after) = rest.split_at(length);
        // Of which one decides: names, extended key usage, key usage, constraints, policies, Netscape's type.
        let oid: &[u64] = match which % 8 {
            0 | 1 => &[2, 5, 29, 17],
            2 | 3 => &[2, 5, 29, 37],
            4 => &[2, 5, 29, 15],
            5 => &[2, 5, 29, 19],
            6 => &[2, 5, 29, 32],
            _ => &[2, 16, 840, 1, 113730, 1, 1],
        };
        let mut extension = CustomExtension::from_oid_content(oid, value.to_vec());
        extension.set_criticality(*which >= 128);
        extensions.push(extension);
        bytes = after;
    }
    extensions
}

/// What was proved, by another reading of the certificate.
fn check(client: &Client, der: &[u8]) {
    let Credential { issuer, uris, dns_names, spki, fingerprint, not_after } = &client.credential;
    assert_eq!((&**issuer, &*client.certificate), ("partners", der));
    assert_eq!(*fingerprint, sha256(der));
    assert_eq!(*spki, sha256(&WORLD.key.subject_public_key_info()));
    assert_eq!(not_after.unix_seconds(), datetime!(2090-01-01 0:00 UTC).unix_timestamp() as u64);
    let (rest, parsed) = X509Certificate::from_der(der).expect("what was accepted is a certificate");
    assert!(rest.is_empty());
    let usage = parsed.extended_key_usage().expect("one at the most").expect("there is one");
    assert!(usage.value.client_auth);
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    for uri in uris {
        assert!(names.contains(&GeneralName::URI(uri)), "a URI that is not in the certificate");
        assert!(uri.is_ascii());
    }
    for name in dns_names {
        let same =
            |other: &GeneralName| matches!(other, GeneralName::DNSName(other) if other.eq_ignore_ascii_case(name));
        assert!(names.iter().any(same), "a name that is not in the certificate");
        assert!(!name.contains(|c: char| c.is_ascii_uppercase() || c.is_control()), "one name has one spelling");
    }
}

fn lists(bytes: &[u8]) {
    let read = |bytes: Vec<u8>| {
        let lists = read_revocation_lists("list.pem", bytes)?;
        Ok::<_, String>(lists.iter().map(|list| (list.this_update, list.next_update)).collect::<Vec<_>>())
    };
    match read(bytes.to_vec()) {
        Ok(found) => {
            assert!(!found.is_empty(), "a file without a list is refused");
            if bytes.first() == Some(&0x30) && !bytes.windows(10).any(|window| window == b"-----BEGIN") {
                assert_eq!(found.len(), 1);
                assert!(read([bytes, &[0]].concat()).is_err(), "what follows a list is not overlooked");
                assert!(read(bytes[..bytes.len() - 1].to_vec()).is_err(), "half a list is none");
            }
            // Twice in a file is twice the same.
            if bytes.starts_with(b"-----BEGIN") && bytes.ends_with(b"\n") {
                assert_eq!(read([bytes, bytes].concat()), Ok([&found[..], &found[..]].concat()));
            }
        }
        Err(why) => assert!(!why.is_empty()),
    }
}
