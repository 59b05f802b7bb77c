//! Whose is this certificate? From what a verified client certificate proves to the partner, on every request.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::reason::Reason;
use super::route::Place;
use super::{Partner, PartnerId};
use crate::clock::Timestamp;

/// What a client certificate proved in the handshake. The chain was verified; whose it is, is decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Configured name of the issuer whose anchor the chain ended in.
    pub issuer: Arc<str>,
    /// Subject alternative names of type URI, as they stand.
    pub uris: Vec<String>,
    /// Subject alternative names of type DNS, lower case.
    pub dns_names: Vec<String>,
    /// SHA-256 of the subject public key info.
    pub spki: [u8; 32],
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    pub not_after: Timestamp,
}

/// A way to know a partner. A name alone is never enough: any CA of the bundle could mint it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    Uri {
        issuer: Arc<str>,
        uri: String,
    },
    Dns {
        issuer: Arc<str>,
        name: String,
    },
    /// `issuer` narrows the pin to chains of one issuer.
    Spki {
        digest: [u8; 32],
        issuer: Option<Arc<str>>,
    },
}

#[derive(Debug)]
pub struct Identity {
    pub proof: Proof,
    pub place: Place,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proof::Uri { issuer, uri } => write!(f, "{uri} under issuer {issuer}"),
            Proof::Dns { issuer, name } => write!(f, "DNS name {name} under issuer {issuer}"),
            Proof::Spki { digest, issuer } => {
                write!(f, "public key sha256:{}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, digest))?;
                issuer.as_ref().map_or(Ok(()), |issuer| write!(f, " under issuer {issuer}"))
            }
        }
    }
}

/// Finds the partner of a credential.
#[derive(Debug, Default)]
pub struct Identities {
    owners: HashMap<Proof, (PartnerId, u16)>,
}

impl Identities {
    /// The error holds the second of two claims to the same proof.
    pub fn build(partners: &[Partner]) -> Result<Identities, Vec<(PartnerId, u16)>> {
        let mut owners = HashMap::new();
        let mut rivals = Vec::new();
        for (at, partner) in partners.iter().enumerate() {
            for (which, identity) in partner.identities.iter().enumerate() {
                let claim = (PartnerId(at as u16), which as u16);
                if owners.insert(identity.proof.clone(), claim).is_some() {
                    rivals.push(claim);
                }
            }
        }
        if rivals.is_empty() { Ok(Identities { owners }) } else { Err(rivals) }
    }

    /// The one partner that any of the credential's proofs belongs to. Two partners in one certificate are nobody.
    pub fn find(&self, credential: &Credential, now: Timestamp) -> Result<(PartnerId, u16), Reason> {
        if credential.not_after < now {
            return Err(Reason::CertificateExpired);
        }
        let issuer = &credential.issuer;
        let uris = credential.uris.iter().map(|uri| Proof::Uri { issuer: issuer.clone(), uri: uri.clone() });
        let names = credential.dns_names.iter().map(|name| Proof::Dns { issuer: issuer.clone(), name: name.clone() });
        let digest = credential.spki;
        let pins = [Some(issuer.clone()), None].map(|issuer| Proof::Spki { digest, issuer });
        let mut found: Option<(PartnerId, u16)> = None;
        for owner in uris.chain(names).chain(pins).filter_map(|proof| self.owners.get(&proof)) {
            match found {
                Some(other) if other.0 != owner.0 => return Err(Reason::IdentityAmbiguous),
                Some(_) => {}
                None => found = Some(*owner),
            }
        }
        found.ok_or(Reason::IdentityUnknown)
    }
}
