//! What operators see of the gateway: the access log, counters.

pub mod log;
pub mod metrics;
