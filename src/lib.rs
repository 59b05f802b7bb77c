//! Dwarpal: a whitelisted partner-API gateway. Modules in reading order.

pub mod clock;
