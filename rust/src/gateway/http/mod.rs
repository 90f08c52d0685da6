//! HTTP: requests in, responses out, over HTTP/1.1 and HTTP/2 without TLS.

pub mod budget;
pub mod buffered;
pub mod http1;
pub mod http2;
pub mod parts;
pub mod request;
pub mod response;
pub mod sequence;
pub mod static_files;
