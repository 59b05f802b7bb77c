//! Everything that `dwarpal demo` needs and a real deployment brings itself: synthetic backends and a development PKI.

pub mod backend;
pub mod certificate;
pub mod pki;
pub mod registry;
pub mod stock;
pub mod tour;
