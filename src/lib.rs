//! Dwarpal: a whitelisted partner-API gateway. Modules in reading order.

pub mod admin;
pub mod alerts;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod detect;
pub mod epochs;
pub mod explain;
pub mod gateway;
pub mod log;
pub mod metrics;
pub mod net;
pub mod policy;
pub mod pressure;
pub mod proxy;
pub mod reload;
pub mod replay;
pub mod sandbox;
pub mod service;
pub mod snapshot;
pub mod state;
pub mod subject;
