//! How does a receiver know that a message is ours? HMAC-SHA-256 over id, time and body, as Standard Webhooks has it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A secret that one receiver shares with this gateway.
pub struct Secret(hmac::Key);

const PREFIX: &str = "whsec_";
const FILE_BYTES_MAX: u64 = 1024;

impl Secret {
    /// From a file of one line, `whsec_` and 24 to 64 bytes in base64, that is its owner's alone. Read anew for each message, so
    /// that it can be changed at any time. Says what to do about it; never shows what the file holds.
    pub fn load(path: &Path) -> Result<Secret, String> {
        let unreadable = |error| format!("{}: {error}; the secret is a file of its own", path.display());
        // Asked before opening, because opening a pipe waits for a writer.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(format!("{}: it is not a regular file; name a file", path.display()));
        }
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o7777;
        if mode & barred(path, std::env::var_os("CREDENTIALS_DIRECTORY").as_deref().map(Path::new)) != 0 {
            return Err(format!(
                "{path}: it has mode {mode:04o}, so others than its owner may use it; run chmod 600 {path} and make a new secret",
                path = path.display()
            ));
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
        let form = || {
            format!(
                "{path}: it is no secret; make one with (printf {PREFIX}; head -c 32 /dev/urandom | base64) > {path}",
                path = path.display()
            )
        };
        let bytes = text.trim_end().strip_prefix(PREFIX).and_then(|encoded| STANDARD.decode(encoded).ok());
        let bytes = bytes.filter(|bytes| (24..=64).contains(&bytes.len())).ok_or_else(form)?;
        Ok(Secret(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// What stands in `webhook-signature`.
    pub fn sign(&self, id: &str, unix_seconds: u64, body: &str) -> String {
        let tag = hmac::sign(&self.0, format!("{id}.{unix_seconds}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(tag))
    }
}

/// The permissions that no such file may give. In the service manager's directory of credentials the group's bits are the mask
/// of the list that lets this process read, and say nothing of a group.
fn barred(path: &Path, credentials: Option<&Path>) -> u32 {
    if credentials.is_some_and(|directory| path.starts_with(directory)) { 0o037 } else { 0o077 }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, mode: u32) -> Result<Secret, String> {
        let home = tempfile::TempDir::new().expect("directory");
        let path = home.path().join("secret");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
        Secret::load(&path)
    }

    /// The example of the specification's own libraries.
    #[test]
    fn a_signature_is_what_other_libraries_make() {
        let secret = written("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", 0o600).expect("a secret");
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "{\"test\": 2432232314}");
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn a_credentials_group_bits_are_no_group() {
        let (given, own) = (Path::new("/run/credentials/x.service/secret"), Path::new("/etc/dwarpal/secret"));
        let credentials = Some(Path::new("/run/credentials/x.service"));
        let refuses = |path, credentials, mode| barred(path, credentials) & mode != 0;
        assert!(!refuses(given, credentials, 0o440) && !refuses(own, credentials, 0o600));
        assert!(refuses(given, credentials, 0o444) && refuses(given, credentials, 0o460));
        assert!(refuses(own, credentials, 0o440) && refuses(given, None, 0o440));
    }

    #[test]
    fn what_is_exposed_or_no_secret_is_told_and_not_shown() {
        let good = format!("whsec_{}", STANDARD.encode([7; 32]));
        assert!(written(&good, 0o400).is_ok());
        let short = format!("whsec_{}", STANDARD.encode([7; 23]));
        for (text, mode, told) in [
            (&*good, 0o640, "chmod 600"),
            (&*good, 0o604, "chmod 600"),
            ("", 0o600, "no secret"),
            ("hunter2", 0o600, "no secret"),
            ("whsec_hunter2", 0o600, "no secret"),
            (&*short, 0o600, "no secret"),
        ] {
            let error = written(text, mode).expect_err(text);
            assert!(error.contains(told) && !error.contains("hunter2"), "{error}");
        }
        assert!(Secret::load(Path::new("/dev/null")).expect_err("a device").contains("regular file"));
    }
}
