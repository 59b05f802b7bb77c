//! The little HTTP and TLS that others need, over the crates of the live path.

pub mod client;
pub mod observe;
