//! placeholder
pub const EPOCH_KEY: &str = "epoch.key";
