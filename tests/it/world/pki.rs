//! Who issued the certificates? Authorities made by the `openssl` command line, none of it by the gateway's own code.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use super::process::{Ran, run};

/// What every test needs; made once a run, P-256 throughout.
pub struct Pki {
    pub directory: PathBuf,
    pub partners: Authority,
    pub alpha: Leaf,
    pub beta: Leaf,
    pub gamma: Leaf,
    /// Of the right authority, but nobody's.
    pub stranger: Leaf,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A certificate authority with its database, as `openssl ca` keeps it.
pub struct Authority {
    pub directory: PathBuf,
    /// `openssl ca` does not lock its database.
    database: Mutex<()>,
}

/// What a certificate is to say, besides its name.
pub struct Profile<'a> {
    pub extensions: &'a str,
    pub from: &'a str,
    pub until: &'a str,
}

pub const LONG_AGO: &str = "20200101000000Z";
pub const NOT_SO_LONG_AGO: &str = "20210101000000Z";
pub const FAR_AWAY: &str = "20900101000000Z";
pub const FARTHER_AWAY: &str = "20990101000000Z";

const CLIENT: &str = "basicConstraints = CA:FALSE\nkeyUsage = digitalSignature\nextendedKeyUsage = clientAuth\n";

pub fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let directory = fresh_directory();
        let partners = Authority::root(&directory, "partners");
        let server = "extendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost, IP:127.0.0.1\n";
        let gateway = partners.issue("gateway", &Profile { extensions: server, ..client("") });
        std::fs::copy(&gateway.certificate, directory.join("gateway.pem")).expect("copy");
        std::fs::copy(&gateway.key, directory.join("gateway.key")).expect("copy");
        let alpha = partners.client("alpha", "URI:spiffe://partners.test/alpha");
        let beta = partners.client("beta", "DNS:beta.partners.test");
        let gamma = partners.issue("gamma", &client(CLIENT));
        let stranger = partners.client("stranger", "URI:spiffe://partners.test/stranger");
        partners.list("current", LONG_AGO, FARTHER_AWAY);
        Pki { directory, partners, alpha, beta, gamma, stranger }
    })
}

/// Extensions of a certificate that is valid now.
pub fn client(extensions: &str) -> Profile<'_> {
    Profile { extensions, from: LONG_AGO, until: FAR_AWAY }
}

/// Extensions of a client with these alternative names.
pub fn named(names: &str) -> String {
    format!("{CLIENT}subjectAltName = {names}\n")
}

/// Nothing outlives the process but this directory: those of earlier runs are removed here.
fn fresh_directory() -> PathBuf {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let gone = name.strip_prefix("pki-").is_some_and(|process| !Path::new("/proc").join(process).exists());
        if gone {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let directory = parent.join(format!("pki-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("directory");
    directory
}

impl Authority {
    pub fn root(parent: &Path, name: &str) -> Authority {
        let authority = Authority::begin(parent, name);
        let request = ["req", "-x509", "-days", "3650", "-extensions", "authority", "-out", "ca.pem"];
        authority.openssl(&[&request[..], &NEW_KEY, &["-keyout", "ca.key", "-subj", &subject(name)]].concat());
        authority
    }

    /// An authority under this one.
    pub fn intermediate(&self, name: &str) -> Authority {
        let below = Authority::begin(&self.directory, name);
        let extensions = "basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n";
        let leaf = self.issue(name, &client(extensions));
        std::fs::copy(&leaf.certificate, below.directory.join("ca.pem")).expect("copy");
        std::fs::copy(&leaf.key, below.directory.join("ca.key")).expect("copy");
        below
    }

    fn begin(parent: &Path, name: &str) -> Authority {
        let directory = parent.join(name);
        std::fs::create_dir_all(&directory).expect("directory");
        let write = |file: &str, text: &str| std::fs::write(directory.join(file), text).expect("write");
        write("index.txt", "");
        write("index.txt.attr", "unique_subject = no\n");
        write("crlnumber", "01\n");
        write(
            "openssl.cnf",
            "[ca]\ndefault_ca = here\n[here]\ndir = .\ndatabase = index.txt\nnew_certs_dir = .\nrand_serial = yes\n\
             crlnumber = crlnumber\ncertificate = ca.pem\nprivate_key = ca.key\ndefault_md = sha256\npolicy = any\n\
             [any]\norganizationName = optional\ncommonName = supplied\n\
             [req]\ndistinguished_name = name\n[name]\n\
             [authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n",
        );
        Authority { directory, database: Mutex::new(()) }
    }

    /// A client's certificate that is valid now, with these alternative names.
    pub fn client(&self, name: &str, names: &str) -> Leaf {
        self.issue(name, &client(&named(names)))
    }

    pub fn issue(&self, name: &str, profile: &Profile) -> Leaf {
        let [request, certificate, key, extensions] =
            ["csr", "pem", "key", "ext"].map(|suffix| format!("{name}.{suffix}"));
        let text = format!("[leaf]\n{}", profile.extensions);
        std::fs::write(self.directory.join(&extensions), text).expect("write");
        let subject = subject(name);
        self.openssl(
            &[&["req", "-new", "-out", &request][..], &NEW_KEY, &["-keyout", &key, "-subj", &subject]].concat(),
        );
        let _one_at_a_time = self.database.lock().expect("database");
        let sign = ["ca", "-batch", "-notext", "-preserveDN", "-in", &request, "-out", &certificate];
        let period = ["-startdate", profile.from, "-enddate", profile.until];
        self.openssl(&[&sign[..], &period, &["-extfile", &extensions, "-extensions", "leaf"]].concat());
        Leaf { certificate: self.directory.join(&certificate), key: self.directory.join(&key) }
    }

    pub fn revoke(&self, leaf: &Leaf) {
        let _one_at_a_time = self.database.lock().expect("database");
        self.openssl(&["ca", "-revoke", &leaf.certificate.display().to_string()]);
    }

    /// Takes every revocation back, so that the next list is empty again.
    pub fn forget_revocations(&self) {
        let _one_at_a_time = self.database.lock().expect("database");
        std::fs::write(self.directory.join("index.txt"), "").expect("write");
    }

    /// A list of what is revoked by now.
    pub fn list(&self, name: &str, from: &str, until: &str) -> PathBuf {
        let file = format!("{name}.crl");
        let _one_at_a_time = self.database.lock().expect("database");
        self.openssl(&["ca", "-gencrl", "-crl_lastupdate", from, "-crl_nextupdate", until, "-out", &file]);
        self.directory.join(file)
    }

    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new("openssl");
        command.args(&arguments[..1]).args(["-config", "openssl.cnf"]).args(&arguments[1..]);
        let Ran { code, stderr, .. } = run(command.current_dir(&self.directory), b"");
        assert_eq!(code, Some(0), "openssl {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    }
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

fn subject(name: &str) -> String {
    format!("/O=Test/CN={name}")
}

impl Leaf {
    /// The certificate with those of its chain behind it.
    pub fn chained(&self, chain: &[&Authority]) -> Leaf {
        let mut text = std::fs::read(&self.certificate).expect("certificate");
        for authority in chain {
            text.extend(std::fs::read(authority.certificate()).expect("certificate"));
        }
        let certificate = self.certificate.with_extension("chain.pem");
        std::fs::write(&certificate, text).expect("write");
        Leaf { certificate, key: self.key.clone() }
    }

    /// A certificate that nobody but its own key vouches for.
    pub fn self_signed(authority: &Authority, names: &str) -> Leaf {
        let names = format!("subjectAltName={names}");
        let request = ["req", "-x509", "-subj", "/CN=self", "-out", "self.pem", "-keyout", "self.key"];
        let extensions = ["-addext", &names, "-addext", "extendedKeyUsage=clientAuth"];
        authority.openssl(&[&request[..], &extensions, &NEW_KEY].concat());
        let [certificate, key] = ["self.pem", "self.key"].map(|file| authority.directory.join(file));
        Leaf { certificate, key }
    }

    pub fn der(&self) -> Vec<u8> {
        self.x509(&["-outform", "DER"])
    }

    /// Serial number in hexadecimal.
    pub fn serial(&self) -> String {
        let text = String::from_utf8(self.x509(&["-noout", "-serial"])).expect("text");
        text.trim().trim_start_matches("serial=").to_owned()
    }

    /// SHA-256 of the public key in base64, computed by openssl.
    pub fn pin(&self) -> String {
        let command = "openssl x509 -in \"$0\" -noout -pubkey | openssl pkey -pubin -outform DER \
                       | openssl dgst -sha256 -binary | openssl base64";
        let ran = run(Command::new("sh").args(["-c", command]).arg(&self.certificate), b"");
        String::from_utf8(ran.stdout).expect("text").trim().to_owned()
    }

    fn x509(&self, arguments: &[&str]) -> Vec<u8> {
        let ran = run(Command::new("openssl").args(["x509", "-in"]).arg(&self.certificate).args(arguments), b"");
        assert_eq!(ran.code, Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
        ran.stdout
    }
}
