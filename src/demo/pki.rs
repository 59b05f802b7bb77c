//! Which certificates does the development PKI hold, and how are they made without ever leaving half a set?

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use time::OffsetDateTime;
use webpki::{
    ALL_VERIFICATION_ALGS, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationOptionsBuilder, anchor_from_trusted_cert,
};

use crate::clock::Timestamp;

/// The subject organisation of both development CAs: how `serve` knows that it must stay on the loopback interface.
pub const DEVELOPMENT_ORGANISATION: &str = "Dwarpal development PKI - never trust off loopback";

/// The partners that hold a good client certificate, `<name>.pem` and `<name>.key`, with the SAN URI
/// `spiffe://partners.dwarpal.test/<name>`.
pub const PARTNERS: [&str; 3] = ["icmr", "state-health", "travel-desk"];

/// What [`ensure`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    Fresh,
    Reused,
}

/// Why no PKI could be made. What was there before is left as it was.
#[derive(Debug)]
pub enum PkiError {
    /// A file or directory operation failed at this path.
    Files { path: PathBuf, source: io::Error },
    /// The path ends in no name (`/`, `..`), so nothing can be put in its place.
    Unnamed { path: PathBuf },
    /// The directory holds something that this module did not make; replacing the directory would destroy it.
    Occupied { path: PathBuf },
    /// A key, certificate or CRL could not be made.
    Signing(rcgen::Error),
    /// The system gave no randomness.
    Randomness,
}

/// Is this the subject organisation of a CA that [`make`] made?
pub fn is_development_ca(subject_organisation: &str) -> bool {
    subject_organisation == DEVELOPMENT_ORGANISATION
}

/// Makes the PKI in `dir`, unless the one there is whole: every file exists and parses, no key is open to others, keys
/// fit their certificates, the leaves and the CRL are signed by the CA, and the gateway's and the partners'
/// certificates and the CRL are valid at `now` and for at least 7 days more.
pub fn ensure(dir: &Path, now: Timestamp) -> Result<Made, PkiError> {
    if inspect(dir, now).is_some() {
        return Ok(Made::Reused);
    }
    make(dir, now)?;
    Ok(Made::Fresh)
}

/// Makes every key, certificate and the CRL anew and puts them in the place of `dir` by a rename. Parents are made as
/// needed; directories have mode 0700 and keys 0600. A run that is killed leaves the old PKI, the new one or none, and
/// perhaps a hidden `.pki-*` sibling; the next [`ensure`] copes with each.
pub fn make(dir: &Path, now: Timestamp) -> Result<(), PkiError> {
    let files = issue(now)?;
    replace(dir, &files)
}

struct Leaf {
    file: &'static str,
    holder: Holder,
    standing: Standing,
}

#[derive(Clone, Copy)]
enum Holder {
    Gateway,
    Partner(&'static str),
}

/// What a verifier that trusts `ca.pem` and reads `crl.pem` should think of a leaf.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Good,
    Revoked,
    Expired,
    Foreign,
}

/// The last three, the impostors, carry icmr's name: only the CRL, the dates or the signature tell them from the real
/// one.
const LEAVES: [Leaf; 7] = [
    Leaf { file: "gateway", holder: Holder::Gateway, standing: Standing::Good },
    Leaf { file: PARTNERS[0], holder: Holder::Partner(PARTNERS[0]), standing: Standing::Good },
    Leaf { file: PARTNERS[1], holder: Holder::Partner(PARTNERS[1]), standing: Standing::Good },
    Leaf { file: PARTNERS[2], holder: Holder::Partner(PARTNERS[2]), standing: Standing::Good },
    Leaf { file: "revoked", holder: Holder::Partner("icmr"), standing: Standing::Revoked },
    Leaf { file: "expired", holder: Holder::Partner("icmr"), standing: Standing::Expired },
    Leaf { file: "foreign", holder: Holder::Partner("icmr"), standing: Standing::Foreign },
];
const CA: &str = "ca";
const FOREIGN_CA: &str = "foreign-ca";
const CRL_FILE: &str = "crl.pem";

const HOUR: time::Duration = time::Duration::HOUR;
const DAY: time::Duration = time::Duration::DAY;
/// Valid for this long after making; the CRL says the same, so that no part of the set outlives another.
const LEAF_LIFE: time::Duration = time::Duration::days(90);
const CA_LIFE: time::Duration = time::Duration::days(365);
/// How long a reused PKI must still be good: longer than any demo runs.
const MARGIN: Duration = Duration::from_secs(7 * 24 * 60 * 60);

struct File {
    name: String,
    pem: String,
}

fn issue(now: Timestamp) -> Result<Vec<File>, PkiError> {
    let ca = authority("Dwarpal DEVELOPMENT CA", now)?;
    let foreign_ca = authority("Dwarpal DEVELOPMENT foreign CA", now)?;
    let mut files = Vec::new();
    let mut put = |file: &str, certificate: String, key: &KeyPair| {
        files.push(File { name: certificate_file(file), pem: certificate });
        files.push(File { name: key_file(file), pem: key.serialize_pem() });
    };
    put(CA, ca.pem(), ca.key());
    put(FOREIGN_CA, foreign_ca.pem(), foreign_ca.key());

    let mut revoked_certs = Vec::new();
    for leaf in &LEAVES {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let serial = serial_number()?;
        if leaf.standing == Standing::Revoked {
            revoked_certs.push(RevokedCertParams {
                serial_number: serial.clone(),
                revocation_time: calendar(now) - HOUR,
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            });
        }
        let issuer = if leaf.standing == Standing::Foreign { &foreign_ca } else { &ca };
        let certificate = leaf_params(leaf, serial, now)?.signed_by(&key, issuer)?;
        put(leaf.file, certificate.pem(), &key);
    }

    let crl = CertificateRevocationListParams {
        this_update: calendar(now) - HOUR,
        next_update: calendar(now) + LEAF_LIFE,
        // The time grows with every making, as RFC 5280 section 5.2.3 wants of CRL numbers of one issuer name.
        crl_number: SerialNumber::from(now.unix_seconds()),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    files.push(File { name: CRL_FILE.to_owned(), pem: crl.signed_by(&ca)?.pem()? });
    Ok(files)
}

fn authority(common_name: &str, now: Timestamp) -> Result<CertifiedIssuer<'static, KeyPair>, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, DEVELOPMENT_ORGANISATION);
    params.serial_number = Some(serial_number()?);
    // Two days back, so that the expired leaf lies within its issuer's life and fails for its own dates only.
    params.not_before = calendar(now) - 2 * DAY;
    params.not_after = calendar(now) + CA_LIFE;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?)
}

fn leaf_params(leaf: &Leaf, serial: SerialNumber, now: Timestamp) -> Result<CertificateParams, PkiError> {
    let (common_name, names, usage) = match leaf.holder {
        Holder::Gateway => ("gateway.dwarpal.test", gateway_names()?, ExtendedKeyUsagePurpose::ServerAuth),
        Holder::Partner(name) => {
            let uri = format!("spiffe://partners.dwarpal.test/{name}");
            (name, vec![SanType::URI(uri.try_into()?)], ExtendedKeyUsagePurpose::ClientAuth)
        }
    };
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(serial);
    params.subject_alt_names = names;
    (params.not_before, params.not_after) = match leaf.standing {
        Standing::Expired => (calendar(now) - 2 * DAY, calendar(now) - DAY),
        Standing::Good | Standing::Revoked | Standing::Foreign => (calendar(now) - HOUR, calendar(now) + LEAF_LIFE),
    };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    // With `NoCa` rcgen leaves out the subject key identifier as well.
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn gateway_names() -> Result<Vec<SanType>, PkiError> {
    Ok(vec![
        SanType::DnsName("localhost".try_into()?),
        SanType::DnsName("gateway.dwarpal.test".try_into()?),
        SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
        SanType::IpAddress(Ipv6Addr::LOCALHOST.into()),
    ])
}

/// 126 random bits in 16 octets. The top bits are 01, so the DER integer is positive, non-zero and of one length.
fn serial_number() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0u8; 16];
    rand::fill(&mut bytes).map_err(|_| PkiError::Randomness)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Timestamps end in 2554, so the years added and taken here stay within what `time` can hold.
fn calendar(now: Timestamp) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(now.unix_seconds())
}

fn certificate_file(name: &str) -> String {
    format!("{name}.pem")
}

fn key_file(name: &str) -> String {
    format!("{name}.key")
}

fn replace(dir: &Path, files: &[File]) -> Result<(), PkiError> {
    // A symbolic link is followed, so that the keys it leads to are replaced and not left behind.
    let place = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if place.file_name().is_none() {
        return Err(PkiError::Unnamed { path: place });
    }
    let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(at(parent))?;

    let fresh = sibling(parent, ".pki-new-")?;
    for File { name, pem } in files {
        write(&fresh.path().join(name), pem)?;
    }
    if !place.exists() {
        fs::rename(fresh.path(), &place).map_err(at(&place))?;
        let _renamed = fresh.keep();
        return Ok(());
    }

    refuse_strangers(&place, files)?;
    // POSIX renames a directory over an empty one, and over nothing else: the old set steps aside first, and is
    // deleted with its temporary name once the new one is in place.
    let aside = sibling(parent, ".pki-old-")?;
    fs::rename(&place, aside.path()).map_err(at(&place))?;
    if let Err(source) = fs::rename(fresh.path(), &place) {
        fs::rename(aside.path(), &place).map_err(at(&place))?;
        return Err(PkiError::Files { path: place, source });
    }
    let _renamed = fresh.keep();
    Ok(())
}

fn sibling(parent: &Path, prefix: &str) -> Result<tempfile::TempDir, PkiError> {
    let made = tempfile::Builder::new().prefix(prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent);
    made.map_err(at(parent))
}

fn write(path: &Path, pem: &str) -> Result<(), PkiError> {
    let mode = if is_key(path) { 0o600 } else { 0o644 };
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(pem.as_bytes())).map_err(at(path))
}

fn is_key(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "key")
}

/// A mistyped directory must cost an error and not its contents.
fn refuse_strangers(place: &Path, files: &[File]) -> Result<(), PkiError> {
    for entry in fs::read_dir(place).map_err(at(place))? {
        let entry = entry.map_err(at(place))?;
        if !files.iter().any(|file| entry.file_name() == *file.name) {
            return Err(PkiError::Occupied { path: entry.path() });
        }
    }
    Ok(())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Files { path, source }
}

/// `Some` when the PKI in `dir` is what [`ensure`] promises, so that every doubt, of whatever kind, makes a new one.
fn inspect(dir: &Path, now: Timestamp) -> Option<()> {
    let ca = read_pair(dir, CA)?;
    let foreign_ca = read_pair(dir, FOREIGN_CA)?;
    let crl = CertificateRevocationListDer::from_pem_slice(&fs::read(dir.join(CRL_FILE)).ok()?).ok()?;
    let crl = CertRevocationList::from(OwnedCertRevocationList::from_der(&crl).ok()?);
    let soon = unix_time(now);
    let later = unix_time(now.plus(MARGIN));
    for leaf in &LEAVES {
        let certificate = read_pair(dir, leaf.file)?;
        let check = |time| verify(&certificate, leaf.holder, &ca, Some(&crl), time);
        let sound = match (leaf.standing, check(soon)) {
            (Standing::Good, Ok(())) => check(later).is_ok(),
            (Standing::Revoked, Err(webpki::Error::CertRevoked)) => true,
            // Dates are looked at before signatures: only at its last good second does the signature count.
            (Standing::Expired, Err(webpki::Error::CertExpired { not_after, .. })) => check(not_after).is_ok(),
            (Standing::Foreign, Err(_)) => verify(&certificate, leaf.holder, &foreign_ca, None, soon).is_ok(),
            _ => false,
        };
        if !sound {
            return None;
        }
    }
    Some(())
}

/// The certificate of `<name>.pem`, if it and the private key beside it belong together.
fn read_pair(dir: &Path, name: &str) -> Option<CertificateDer<'static>> {
    let key_path = dir.join(key_file(name));
    if fs::metadata(&key_path).ok()?.permissions().mode() & 0o077 != 0 {
        return None;
    }
    let key = KeyPair::from_pem(&fs::read_to_string(key_path).ok()?).ok()?;
    let certificate = CertificateDer::from_pem_slice(&fs::read(dir.join(certificate_file(name))).ok()?).ok()?;
    let certified = EndEntityCert::try_from(&certificate).ok()?.subject_public_key_info();
    (*certified == *key.subject_public_key_info()).then_some(certificate)
}

fn verify(
    certificate: &CertificateDer<'_>,
    holder: Holder,
    ca: &CertificateDer<'_>,
    crl: Option<&CertRevocationList<'_>>,
    time: UnixTime,
) -> Result<(), webpki::Error> {
    let usage = match holder {
        Holder::Gateway => KeyUsage::server_auth(),
        Holder::Partner(_) => KeyUsage::client_auth(),
    };
    let anchors = [anchor_from_trusted_cert(ca)?];
    let crls = crl.as_slice();
    let revocation = RevocationOptionsBuilder::new(crls)
        .ok()
        .map(|options| options.with_expiration_policy(ExpirationPolicy::Enforce).build());
    let leaf = EndEntityCert::try_from(certificate)?;
    leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &[], time, usage, revocation, None).map(|_path| ())
}

fn unix_time(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(at.unix_seconds()))
}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> PkiError {
        PkiError::Signing(error)
    }
}

impl fmt::Display for PkiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PkiError::Files { path, .. } => write!(f, "development pki: cannot write {}", path.display()),
            PkiError::Unnamed { path } => write!(f, "development pki: {} names no directory", path.display()),
            PkiError::Occupied { path } => {
                write!(f, "development pki: {} is not of its making, move it away first", path.display())
            }
            PkiError::Signing(_) => f.write_str("development pki: cannot sign"),
            PkiError::Randomness => f.write_str("development pki: no randomness"),
        }
    }
}

impl std::error::Error for PkiError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            PkiError::Files { source, .. } => Some(source),
            PkiError::Signing(source) => Some(source),
            PkiError::Unnamed { .. } | PkiError::Occupied { .. } | PkiError::Randomness => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};
    use x509_parser::revocation_list::CertificateRevocationList;

    use super::*;

    const DAY_SECONDS: u64 = 24 * 60 * 60;

    fn now() -> Timestamp {
        Timestamp::parse("2026-03-01T09:00:00Z").unwrap()
    }

    fn days_later(days: u64) -> Timestamp {
        now().plus(Duration::from_secs(days * DAY_SECONDS))
    }

    fn made() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("deep/er/pki");
        assert_eq!(ensure(&dir, now()).unwrap(), Made::Fresh);
        (home, dir)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(dir: &Path) -> BTreeSet<String> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn certificate(dir: &Path, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(&fs::read(dir.join(certificate_file(name))).unwrap()).unwrap()
    }

    fn crl(dir: &Path) -> CertificateRevocationListDer<'static> {
        CertificateRevocationListDer::from_pem_slice(&fs::read(dir.join(CRL_FILE)).unwrap()).unwrap()
    }

    #[test]
    fn a_fresh_set_has_every_file_and_nothing_open_to_others() {
        let (home, dir) = made();
        let stems = "ca foreign-ca gateway icmr state-health travel-desk revoked expired foreign"
            .split(' ')
            .collect::<Vec<_>>();
        let mut expected = BTreeSet::from(["crl.pem".to_owned()]);
        expected.extend(stems.iter().flat_map(|stem| [format!("{stem}.pem"), format!("{stem}.key")]));
        assert_eq!(names(&dir), expected);
        for stem in stems {
            assert_eq!(mode(&dir.join(key_file(stem))), 0o600, "{stem}");
        }
        for made in ["deep", "deep/er", "deep/er/pki"] {
            assert_eq!(mode(&home.path().join(made)), 0o700, "{made}");
        }
        assert_eq!(
            names(&home.path().join("deep/er")),
            BTreeSet::from(["pki".to_owned()]),
            "no temporary directory stays"
        );
    }

    #[test]
    fn a_verifier_tells_the_good_from_the_impostors() {
        let (_home, dir) = made();
        let ca = certificate(&dir, "ca");
        let foreign_ca = certificate(&dir, "foreign-ca");
        let crl_der = crl(&dir);
        let crl = CertRevocationList::from(OwnedCertRevocationList::from_der(&crl_der).unwrap());
        let icmr = Holder::Partner("icmr");
        let check = |file: &str, holder, ca, at| {
            verify(&certificate(&dir, file), holder, ca, Some(&crl), unix_time(at)).map_err(|error| match error {
                webpki::Error::CertRevoked => "revoked",
                webpki::Error::CertExpired { .. } => "expired",
                webpki::Error::UnknownIssuer => "unknown issuer",
                webpki::Error::RequiredEkuNotFoundContext(_) => "wrong usage",
                webpki::Error::CrlExpired { .. } => "crl expired",
                _ => "something else",
            })
        };
        let table = [
            ("gateway", Holder::Gateway, &ca, now(), Ok(())),
            ("gateway", icmr, &ca, now(), Err("wrong usage")),
            ("icmr", icmr, &ca, now(), Ok(())),
            ("icmr", icmr, &ca, days_later(89), Ok(())),
            ("icmr", icmr, &ca, days_later(91), Err("expired")),
            ("icmr", Holder::Gateway, &ca, now(), Err("wrong usage")),
            ("icmr", icmr, &foreign_ca, now(), Err("unknown issuer")),
            ("state-health", icmr, &ca, now(), Ok(())),
            ("travel-desk", icmr, &ca, now(), Ok(())),
            ("revoked", icmr, &ca, now(), Err("revoked")),
            ("expired", icmr, &ca, now(), Err("expired")),
            ("foreign", icmr, &ca, now(), Err("unknown issuer")),
        ];
        for (file, holder, ca, at, expected) in table {
            assert_eq!(check(file, holder, ca, at), expected, "{file} at {at}");
        }
        let foreign = certificate(&dir, "foreign");
        assert_eq!(verify(&foreign, icmr, &foreign_ca, None, unix_time(now())), Ok(()));
    }

    #[test]
    fn certificates_say_what_the_notes_promise() {
        let (_home, dir) = made();
        let mut serials = BTreeSet::new();
        for authority in ["ca", "foreign-ca"] {
            let der = certificate(&dir, authority);
            let (_, ca) = X509Certificate::from_der(&der).unwrap();
            let organisation = ca.subject().iter_organization().next().unwrap().as_str().unwrap();
            assert!(is_development_ca(organisation), "{authority}");
            assert!(
                ca.subject().iter_common_name().next().unwrap().as_str().unwrap().starts_with("Dwarpal DEVELOPMENT")
            );
            let basic = ca.basic_constraints().unwrap().unwrap();
            assert!(basic.critical && basic.value.ca && basic.value.path_len_constraint == Some(0), "{authority}");
            let usage = ca.key_usage().unwrap().unwrap().value;
            assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature(), "{authority}");
            assert_eq!(ca.validity().not_after.timestamp() as u64, days_later(365).unix_seconds());
        }
        for leaf in &LEAVES {
            let der = certificate(&dir, leaf.file);
            let (_, parsed) = X509Certificate::from_der(&der).unwrap();
            let found: Vec<String> = parsed
                .subject_alternative_name()
                .unwrap()
                .unwrap()
                .value
                .general_names
                .iter()
                .map(|name| match name {
                    GeneralName::URI(uri) => format!("uri {uri}"),
                    GeneralName::DNSName(dns) => format!("dns {dns}"),
                    GeneralName::IPAddress(ip) => format!("ip {}", ip.len()),
                    other => format!("{other:?}"),
                })
                .collect();
            let (common_name, expected) = match leaf.holder {
                Holder::Gateway => {
                    ("gateway.dwarpal.test", vec!["dns localhost", "dns gateway.dwarpal.test", "ip 4", "ip 16"])
                }
                Holder::Partner("icmr") => ("icmr", vec!["uri spiffe://partners.dwarpal.test/icmr"]),
                Holder::Partner("state-health") => {
                    ("state-health", vec!["uri spiffe://partners.dwarpal.test/state-health"])
                }
                Holder::Partner(_) => ("travel-desk", vec!["uri spiffe://partners.dwarpal.test/travel-desk"]),
            };
            assert_eq!(found, expected, "{}", leaf.file);
            assert_eq!(parsed.subject().iter_common_name().next().unwrap().as_str().unwrap(), common_name);
            let has = |wanted: fn(&ParsedExtension<'_>) -> bool| {
                parsed.extensions().iter().any(|extension| wanted(extension.parsed_extension()))
            };
            assert!(has(|extension| matches!(extension, ParsedExtension::SubjectKeyIdentifier(_))), "{}", leaf.file);
            assert!(has(|extension| matches!(extension, ParsedExtension::AuthorityKeyIdentifier(_))), "{}", leaf.file);
            assert!(!parsed.is_ca(), "{}", leaf.file);
            assert!(parsed.raw_serial().len() == 16 && parsed.raw_serial()[0] & 0x80 == 0, "{}", leaf.file);
            serials.insert(parsed.raw_serial().to_vec());
        }
        assert_eq!(serials.len(), LEAVES.len());
        let gateway = certificate(&dir, "gateway");
        let gateway = EndEntityCert::try_from(&gateway).unwrap();
        for name in ["localhost", "gateway.dwarpal.test", "127.0.0.1", "::1"] {
            let name = ServerName::try_from(name).unwrap();
            assert_eq!(gateway.verify_is_valid_for_subject_name(&name), Ok(()));
        }
    }

    #[test]
    fn the_crl_lists_the_revoked_certificate_alone() {
        let (_home, dir) = made();
        let der = crl(&dir);
        let (_, crl) = CertificateRevocationList::from_der(&der).unwrap();
        let revoked = certificate(&dir, "revoked");
        let (_, revoked) = X509Certificate::from_der(&revoked).unwrap();
        let listed: Vec<&[u8]> = crl.iter_revoked_certificates().map(|entry| entry.raw_serial()).collect();
        assert_eq!(listed, [revoked.raw_serial()]);
        assert!(crl.crl_number().is_some());
        assert_eq!(crl.last_update().timestamp() as u64, now().unix_seconds() - 3600);
        assert_eq!(crl.next_update().unwrap().timestamp() as u64, days_later(90).unix_seconds());
    }

    #[test]
    fn a_whole_set_is_reused_until_seven_days_before_its_end() {
        let table = [(0, Made::Reused), (82, Made::Reused), (84, Made::Fresh), (400, Made::Fresh)];
        for (days, expected) in table {
            let (_home, dir) = made();
            let before = fs::read(dir.join("ca.pem")).unwrap();
            assert_eq!(ensure(&dir, days_later(days)).unwrap(), expected, "day {days}");
            assert_eq!(fs::read(dir.join("ca.pem")).unwrap() == before, expected == Made::Reused, "day {days}");
            assert_eq!(ensure(&dir, days_later(days)).unwrap(), Made::Reused, "day {days}");
        }
    }

    #[test]
    fn a_clock_before_the_set_was_made_makes_a_new_one() {
        let (_home, dir) = made();
        let earlier = Timestamp::from_unix_seconds(now().unix_seconds() - 2 * 3600);
        assert_eq!(ensure(&dir, earlier).unwrap(), Made::Fresh);
    }

    #[test]
    fn any_doubt_makes_a_new_set() {
        let copy = |from: &'static str, to: &'static str| {
            move |dir: &Path| fs::copy(dir.join(from), dir.join(to)).map(|_| ()).unwrap()
        };
        type Damage = Box<dyn Fn(&Path)>;
        let table: Vec<(&str, Damage)> = vec![
            ("file missing", Box::new(|dir| fs::remove_file(dir.join("travel-desk.key")).unwrap())),
            ("torn file", Box::new(|dir| fs::write(dir.join("crl.pem"), "-----BEGIN X509 CRL-----\n").unwrap())),
            ("another key", Box::new(copy("icmr.key", "gateway.key"))),
            ("another certificate for the ca", Box::new(copy("foreign-ca.pem", "ca.pem"))),
            (
                "another ca",
                Box::new(move |dir| {
                    copy("foreign-ca.pem", "ca.pem")(dir);
                    copy("foreign-ca.key", "ca.key")(dir);
                }),
            ),
            (
                "a good certificate as the revoked one",
                Box::new(move |dir| {
                    copy("icmr.pem", "revoked.pem")(dir);
                    copy("icmr.key", "revoked.key")(dir);
                }),
            ),
            (
                "an expired certificate of another ca",
                Box::new(move |dir| {
                    let other = dir.parent().unwrap().join("other");
                    make(&other, now()).unwrap();
                    fs::copy(other.join("expired.pem"), dir.join("expired.pem")).unwrap();
                    fs::copy(other.join("expired.key"), dir.join("expired.key")).unwrap();
                }),
            ),
            (
                "a key open to others",
                Box::new(|dir| fs::set_permissions(dir.join("ca.key"), Permissions::from_mode(0o640)).unwrap()),
            ),
        ];
        for (what, damage) in table {
            let (_home, dir) = made();
            damage(&dir);
            assert_eq!(ensure(&dir, now()).unwrap(), Made::Fresh, "{what}");
            assert_eq!(ensure(&dir, now()).unwrap(), Made::Reused, "{what}");
        }
    }

    #[test]
    fn a_directory_with_other_things_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("thesis.txt"), "years of work").unwrap();
        let error = make(home.path(), now()).unwrap_err();
        assert!(matches!(&error, PkiError::Occupied { path } if path.ends_with("thesis.txt")), "{error}");
        assert_eq!(names(home.path()), BTreeSet::from(["thesis.txt".to_owned()]));
        assert!(matches!(make(Path::new("/"), now()), Err(PkiError::Unnamed { .. })));
    }

    #[test]
    fn an_empty_directory_and_a_link_are_filled() {
        let home = tempfile::tempdir().unwrap();
        let (empty, link) = (home.path().join("empty"), home.path().join("link"));
        fs::create_dir(&empty).unwrap();
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        for dir in [&empty, &link] {
            make(dir, now()).unwrap();
            assert_eq!(ensure(&empty, now()).unwrap(), Made::Reused);
        }
        assert_eq!(names(home.path()), BTreeSet::from(["empty".to_owned(), "link".to_owned()]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn a_damaged_byte_costs_at_most_a_new_set(
            file in 0usize..19,
            position in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            let (_home, dir) = made();
            let path = dir.join(names(&dir).into_iter().nth(file).unwrap());
            let mut text = fs::read(&path).unwrap();
            let position = position.index(text.len());
            text[position] = byte;
            fs::write(&path, text).unwrap();
            let _first = ensure(&dir, now()).unwrap();
            prop_assert_eq!(ensure(&dir, now()).unwrap(), Made::Reused);
        }
    }
}
