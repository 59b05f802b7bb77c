//! Reads where the audit's checkpoints are copied to, and which witnesses sign them.

use std::net::IpAddr;
use std::path::Path;

use super::gateway::name;
use super::reader::Reader;
use super::settings::{AuditCopies, Endpoint, Witness};
use crate::audit::note::{Algorithm, Vkey};

/// Each gets a line of every checkpoint: more than anybody reads.
const WITNESSES_MAX: usize = 32;

/// From the table of the audit.
pub fn copies(table: &Reader, directory: &Path) -> Option<AuditCopies> {
    let files = table.texts("checkpoint_files", |text| match directory.join(text) {
        path if text.is_empty() || path.file_name().is_none() => Err("each is a file to append to".to_owned()),
        path => Ok(path),
    });
    let urls = table.texts("checkpoint_urls", endpoint);
    let ca = table.want_text("checkpoint_ca").map(|ca| ca.map(|ca| directory.join(ca)));
    let witnesses = table.tables("witness", |table| witness(table, directory));
    for (at, one) in witnesses.iter().enumerate() {
        if witnesses[..at].iter().any(|other| other.name == one.name || other.vkey == one.vkey) {
            table.problem("witness", format!("{} is there twice", one.name), "name each witness once");
        }
    }
    if witnesses.len() > WITNESSES_MAX {
        table.problem("witness", "too many witnesses", format!("name {WITNESSES_MAX} at the most"));
    }
    let (files, urls, ca) = (files?, urls?, ca?);
    if ca.is_none() && urls.iter().any(|url| url.tls) {
        let hint = "name the CA certificates that may vouch for these servers in checkpoint_ca";
        table.problem("checkpoint_urls", "https without a CA: no server could be believed", hint);
        return None;
    }
    Some(AuditCopies { files, urls, ca, witnesses })
}

fn witness(table: &Reader, directory: &Path) -> Option<Witness> {
    let name = table.need("name", name);
    let vkey = table.need("vkey", |text| match Vkey::parse(text) {
        Ok(vkey) if vkey.algorithm() == Algorithm::CosignatureV1 => Ok(vkey),
        Ok(_) => Err("it is the key of a log; a witness's signs cosignatures".to_owned()),
        Err(flaw) => Err(format!("{flaw}; the witness publishes it as NAME+ID+BASE64")),
    });
    let url = table.need("url", endpoint);
    let ca = table.want_text("ca").map(|ca| ca.map(|ca| directory.join(ca)));
    let (url, ca) = (url?, ca?);
    if ca.is_none() && url.tls {
        let hint = "name the CA certificates that may vouch for the witness's server";
        table.problem("ca", "missing, and url is https", hint);
        return None;
    }
    Some(Witness { name: name?.into(), vkey: vkey?, url, ca })
}

/// `https://HOST[:PORT][/PATH]`; plain text stays on this machine.
pub fn endpoint(text: &str) -> Result<Endpoint, String> {
    let wrong = || "it is https://HOST[:PORT]/PATH; http:// only to a loopback address".to_owned();
    let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err(wrong()),
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
    if !graphic || path.contains(['?', '#']) || authority.contains(['@', '?', '#']) {
        return Err(wrong());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (host, port)
        }
        None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?,
        None if port.is_empty() => {
            if tls {
                443
            } else {
                80
            }
        }
        None => return Err(wrong()),
    };
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if host.is_empty() || !(tls || is_loopback) {
        return Err(wrong());
    }
    let path = path.trim_end_matches('/').to_owned();
    Ok(Endpoint { url: text.into(), tls, host: host.to_owned(), port, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_https_or_on_this_machine() {
        let read = |text: &str| endpoint(text).ok().map(|at| (at.tls, at.host, at.port, at.path));
        let found = |tls, host: &str, port, path: &str| Some((tls, host.to_owned(), port, path.to_owned()));
        for (text, expected) in [
            ("https://witness.example", found(true, "witness.example", 443, "")),
            ("https://witness.example/a/b/", found(true, "witness.example", 443, "/a/b")),
            ("https://10.0.0.9:8443/", found(true, "10.0.0.9", 8443, "")),
            ("https://[2001:db8::1]:8443/w", found(true, "2001:db8::1", 8443, "/w")),
            ("https://[2001:db8::1]", found(true, "2001:db8::1", 443, "")),
            ("http://127.0.0.1:9000/copy", found(false, "127.0.0.1", 9000, "/copy")),
            ("http://[::1]", found(false, "::1", 80, "")),
            ("http://10.0.0.9/copy", None),
            ("http://localhost/copy", None),
            ("http://127.0.0.1.example/", None),
            ("ftp://127.0.0.1/", None),
            ("https://", None),
            ("https:///path", None),
            ("https://user@host/", None),
            ("https://host:0/", None),
            ("https://host:99999/", None),
            ("https://host:x/", None),
            ("https://[::1/", None),
            ("https://[host]/", None),
            ("https://[::1]x/", None),
            ("https://host/a?b", None),
            ("https://host/a b", None),
            ("https://host/a\r\nx: y", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
