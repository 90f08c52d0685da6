//! The DICOMweb gateway: WADO-RS and QIDO-RS (PS3.18 8 to 10) over the tables that memory holds.
//!
//! A worker is one thread with a runtime of its own that accepts connections on the shared address. It answers
//! from memory (tier 1) and from the files (tier 3) by itself; what only the index knows (tier 2, searches) it
//! asks of Python threads by a bounded queue ([`jobs`]). Python is never called from here.
//!
//! ```text
//!   server ── http ── service ─┬─ routes, accept      what is asked, which form is taken
//!   workers   1.1, 2           ├─ catalogue ─ jobs    which file holds a UID
//!                              ├─ files               open files, and the UIDs in them
//!                              └─ wado                frames, instances, headers
//! ```

pub mod accept;
pub mod catalogue;
pub mod files;
pub mod http;
pub mod jobs;
pub mod metrics;
pub mod routes;
pub mod server;
pub mod service;
pub mod wado;
