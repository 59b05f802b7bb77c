//! The evidence: a log that is written before anybody gets an answer, and that strangers can verify.

pub mod event;
