//! The DICOMweb gateway: WADO-RS and QIDO-RS (PS3.18 8 to 10) over the tables that memory holds.
//!
//! A worker is one thread with a runtime of its own that accepts connections on the shared address. It answers
//! from memory (tier 1) and from the files (tier 3) by itself; what only the index knows (tier 2, searches) it
//! asks of Python threads by a bounded queue ([`jobs`]). Python is never called from here.
//!
//! ```text
//!   server ── http ── service ─┬─ routes       what is asked
//!   workers   1.1, 2           ├─ access       who asks
//!                              ├─ files        which file holds a UID; open files and objects
//!                              ├─ jobs         what only the index knows
//!                              ├─ wado         frames, instances, headers, in the form that is taken
//!                              └─ telemetry    the access log, counters
//! ```

pub mod access;
pub mod files;
pub mod http;
pub mod jobs;
pub mod routes;
pub mod server;
pub mod service;
pub mod telemetry;
pub mod wado;
