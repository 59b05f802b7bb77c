//! What holds of the whole? One integration binary; these modules are its table of contents.

/// The shipped configuration, and what a mistaken one is told.
mod configuration;
/// Random policies and requests against a straight-line oracle of the rules.
mod properties;
/// The edges of the house: who may import what, and what every file owes its reader.
mod tidy;
