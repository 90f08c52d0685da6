//! HTTP/1.1 with keep-alive: one connection, requests one after another (RFC 9112).
//!
//! hyper owns its socket, so that a large frame could not go from the page cache to the socket by `sendfile`,
//! and costs about half of a small request. Requests have no bodies here, which leaves little of HTTP/1.1.

use std::io::{self, IoSlice, Write as _};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::parts::Piece;
use super::request::Request;
use super::response::{Body, Response, reason};
use crate::gateway::service::Worker;

/// Longest request target in bytes.
const LONGEST_TARGET: usize = 8 << 10;
/// Longest head of a request in bytes: request line and header lines.
const LONGEST_HEAD: usize = LONGEST_TARGET + (16 << 10);
/// Most header lines.
const MOST_HEADERS: usize = 100;
/// Time for the head of a request, from its first byte.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time between two requests.
const IDLE_TIME: Duration = Duration::from_secs(75);
/// Time in which a client must take some of what is sent.
const STALL_TIME: Duration = Duration::from_secs(30);

/// Serves a connection until the client, a time limit or the gateway's stop ends it.
pub async fn serve(stream: TcpStream, worker: &Worker) -> io::Result<()> {
    let mut connection = Connection { stream, buffer: Vec::with_capacity(2048), consumed: 0 };
    loop {
        connection.drop_consumed();
        let length = match connection.read_head(worker).await? {
            Head::Complete(length) => length,
            Head::Ended => return Ok(()),
            Head::Refused(response) => {
                connection.send(response, false).await?;
                return connection.close_slowly().await;
            }
        };
        connection.consumed = length;
        let head = connection.buffer.get(..length).unwrap_or_default().to_vec();
        let (response, keep) = answer(&head, worker).await;
        let keep = keep && !worker.is_stopping();
        connection.send(response, keep).await?;
        if !keep {
            return connection.close_slowly().await;
        }
    }
}

/// Answers the request whose head is complete; also tells whether the connection may stay.
async fn answer(head: &[u8], worker: &Worker) -> (Response, bool) {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let complete = parsed.parse(head);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
        (complete, parsed.method, parsed.path)
    else {
        return match complete {
            Err(httparse::Error::TooManyHeaders) => (too_many_headers(), false),
            _ => (Response::refusal(400, "bad_request", "this is no HTTP/1.1 request"), false),
        };
    };
    if target.len() > LONGEST_TARGET {
        return (target_too_long(), false);
    }
    let request = Request::new(method, target, parsed.headers);
    let has_body = request.header("content-length").is_some_and(|length| length.trim() != "0")
        || request.header("transfer-encoding").is_some();
    if has_body {
        return (Response::refusal(413, "request_body", "requests have no body here"), false);
    }
    let connection = request.header("connection").unwrap_or_default();
    let keep = match parsed.version {
        Some(0) => connection.eq_ignore_ascii_case("keep-alive"),
        _ => !connection.eq_ignore_ascii_case("close"),
    };
    (worker.respond(&request).await, keep)
}

fn too_many_headers() -> Response {
    Response::refusal(431, "header_too_large", "at most 100 header lines of 16 KiB")
}

fn target_too_long() -> Response {
    Response::refusal(414, "uri_too_long", "a request target has at most 8 KiB: ask for fewer frames")
}

enum Head {
    Complete(usize),
    Ended,
    Refused(Response),
}

struct Connection {
    stream: TcpStream,
    /// Bytes that were received; the first `consumed` of them are requests that were answered.
    buffer: Vec<u8>,
    consumed: usize,
}

impl Connection {
    fn drop_consumed(&mut self) {
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
    }

    /// Reads until the head of a request is complete.
    async fn read_head(&mut self, worker: &Worker) -> io::Result<Head> {
        let mut searched = 0;
        let mut deadline = None;
        loop {
            if let Some(length) = end_of_head(&self.buffer, &mut searched) {
                let is_short = length <= LONGEST_HEAD;
                return Ok(if is_short { Head::Complete(length) } else { Head::Refused(too_many_headers()) });
            }
            if self.buffer.len() >= LONGEST_HEAD {
                let line = self.buffer.iter().take(LONGEST_TARGET).position(|&byte| byte == b'\n');
                return Ok(Head::Refused(if line.is_none() {
                    target_too_long()
                } else {
                    too_many_headers()
                }));
            }
            if !self.buffer.is_empty() && deadline.is_none() {
                deadline = Some(tokio::time::Instant::now() + HEAD_TIME);
            }
            let readable = async {
                match deadline {
                    Some(deadline) => tokio::time::timeout_at(deadline, self.stream.readable()).await,
                    None => timeout(IDLE_TIME, self.stream.readable()).await,
                }
            };
            let ready = tokio::select! {
                ready = readable => ready,
                () = worker.stopping(), if self.buffer.is_empty() => return Ok(Head::Ended),
            };
            match ready {
                Ok(ready) => ready?,
                Err(_) if self.buffer.is_empty() => return Ok(Head::Ended),
                Err(_) => {
                    let detail = "the request's header took longer than 10 s";
                    return Ok(Head::Refused(Response::refusal(408, "request_timeout", detail)));
                }
            }
            self.buffer.reserve(2048);
            match self.stream.try_read_buf(&mut self.buffer) {
                Ok(0) => return Ok(Head::Ended),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn send(&mut self, response: Response, keep: bool) -> io::Result<()> {
        let mut head = Vec::with_capacity(640);
        let is_chunked = matches!(response.body, Body::Blocks(_));
        write_head(&mut head, &response, keep, is_chunked)?;
        match response.body {
            Body::Empty => self.write_all(&head, &[]).await,
            Body::Full(bytes) => self.write_all(&head, &bytes).await,
            Body::Parts(mut parts) => {
                parts.may_send_file = true;
                while let Some(piece) = parts.next_piece().await.map_err(io::Error::other)? {
                    match piece {
                        Piece::Bytes(bytes) => {
                            self.write_all(&head, &bytes).await?;
                            head.clear();
                        }
                        Piece::InFile { offset, length } => {
                            self.write_more(&head).await?;
                            head.clear();
                            self.send_file(parts.file(), offset, length).await?;
                        }
                    }
                }
                self.write_all(&head, &[]).await
            }
            Body::Blocks(mut blocks) => {
                while let Some(block) = blocks.recv().await {
                    let block = block.map_err(io::Error::other)?;
                    if block.is_empty() {
                        continue; // a chunk of no bytes would end the body
                    }
                    write!(head, "{:x}\r\n", block.len())?;
                    self.write_all(&head, &block).await?;
                    head.clear();
                    head.extend(b"\r\n");
                }
                head.extend(b"0\r\n\r\n");
                self.write_all(&head, &[]).await
            }
        }
    }

    /// Writes two slices by as few calls as the socket allows.
    async fn write_all(&self, first: &[u8], second: &[u8]) -> io::Result<()> {
        let total = first.len() + second.len();
        let mut written = 0;
        while written < total {
            let slices = [
                IoSlice::new(first.get(written..).unwrap_or_default()),
                IoSlice::new(second.get(written.saturating_sub(first.len())..).unwrap_or_default()),
            ];
            match self.stream.try_write_vectored(&slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn writable(&self) -> io::Result<()> {
        timeout(STALL_TIME, self.stream.writable()).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Writes bytes which others follow at once: the kernel sends them in one packet.
    async fn write_more(&self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let send = || Ok(rustix::net::send(&self.stream, rest, rustix::net::SendFlags::MORE)?);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends bytes of a file from the page cache, without copying them.
    async fn send_file(
        &self,
        file: std::os::fd::BorrowedFd<'_>,
        mut offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut left = usize::try_from(length).map_err(io::Error::other)?;
        while left > 0 {
            let send = || Ok(rustix::fs::sendfile(&self.stream, file, Some(&mut offset), left)?);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()), // the file was cut meanwhile
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the sending side and takes what the client still sends: closing at once would reset the
    /// connection, and the client might lose the response (RFC 9112 9.6).
    async fn close_slowly(&mut self) -> io::Result<()> {
        socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write)?;
        let drain = async {
            loop {
                self.buffer.clear();
                self.stream.readable().await?;
                match self.stream.try_read_buf(&mut self.buffer) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        timeout(Duration::from_secs(1), drain).await.unwrap_or(Ok(()))
    }
}

/// Length of a complete head; searches on where the last call stopped.
fn end_of_head(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    let start = searched.saturating_sub(3);
    let rest = bytes.get(start..).unwrap_or_default();
    *searched = bytes.len();
    // httparse takes a bare line feed as an end of line too.
    let found = rest.windows(2).enumerate().find_map(|(at, pair)| match pair {
        [b'\n', b'\n'] => Some(at + 2),
        [b'\n', b'\r'] if rest.get(at + 2) == Some(&b'\n') => Some(at + 3),
        _ => None,
    })?;
    Some(start + found)
}

fn write_head(out: &mut Vec<u8>, response: &Response, keep: bool, is_chunked: bool) -> io::Result<()> {
    write!(out, "HTTP/1.1 {} {}\r\n", response.status, reason(response.status))?;
    for (name, value) in &response.headers {
        write!(out, "{name}: {value}\r\n")?;
    }
    if is_chunked {
        out.extend(b"Transfer-Encoding: chunked\r\n");
    } else if let Some(length) = response.length {
        write!(out, "Content-Length: {length}\r\n")?;
    } else if !matches!(response.status, 200 | 204 | 304) {
        out.extend(b"Content-Length: 0\r\n");
    }
    if !keep {
        out.extend(b"Connection: close\r\n");
    }
    out.extend(b"\r\n");
    Ok(())
}
