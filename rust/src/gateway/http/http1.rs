//! HTTP/1.1 with keep-alive: one connection, requests one after another (RFC 9112).
//!
//! hyper owns its socket, so that a large frame could not go from the page cache to the socket by `sendfile`,
//! and costs about half of a small request. Requests have no bodies here, which leaves little of HTTP/1.1.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memchr::memchr_iter;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::parts::{FileParts, Piece, Way};
use super::request::{Method, Request};
use super::response::{Body, Response, reason};
use crate::base::kernel;
use crate::gateway::service::Worker;

/// Longest request target in bytes.
const LONGEST_TARGET: usize = 8 << 10;
/// Longest head of a request in bytes: request line and header lines.
const LONGEST_HEAD: usize = LONGEST_TARGET + (16 << 10);
/// Most header lines.
const MOST_HEADERS: usize = 100;
/// Time for the head of a request, from its first byte.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time in which a client must take some of what is sent.
const STALL_TIME: Duration = Duration::from_secs(30);
/// Time in which a client that was refused must send more, or end, and for all that it still sends.
const REST_TIME: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Bytes a second that a client must take on average behind the first [`STALL_TIME`].
const SLOWEST: u64 = 8 << 10;

/// Serves a connection until the client, a time limit or the gateway's stop ends it.
pub async fn serve(stream: TcpStream, worker: &Worker) -> io::Result<()> {
    let mut connection =
        Connection { stream, buffer: Vec::with_capacity(2048), head: Vec::with_capacity(640) };
    let mut stopping = pin!(worker.stopping());
    // Set again when it rings too early: to set it at each request would cost more than to read the clock.
    let mut alarm = pin!(sleep(worker.idle_time()));
    loop {
        let length = match connection.read_head(worker, stopping.as_mut(), alarm.as_mut()).await? {
            Head::Complete(length) => length,
            Head::Ended => return Ok(()),
            Head::Refused(response) => {
                connection.send(response, true, false).await?;
                return connection.close_slowly().await;
            }
        };
        let mut received = std::mem::take(&mut connection.buffer);
        let (response, then) = answer(received.get(..length).unwrap_or_default(), worker).await;
        received.drain(..length);
        connection.buffer = received;
        let keep = then.keep && !worker.is_stopping();
        connection.send(response, then.may_chunk, keep).await?;
        if !keep {
            return connection.close_slowly().await;
        }
    }
}

/// How a response is sent.
struct Then {
    /// Whether in chunks where its length is not known; HTTP/1.0 knows none (RFC 9112 6.1).
    may_chunk: bool,
    /// Whether the connection may stay.
    keep: bool,
}

const CLOSE: Then = Then { may_chunk: true, keep: false };

/// Answers the request whose head is complete.
async fn answer(head: &[u8], worker: &Worker) -> (Response, Then) {
    let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let complete = parsed.parse_with_uninit_headers(head, &mut headers);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
        (complete, parsed.method, parsed.path)
    else {
        return match complete {
            Err(httparse::Error::TooManyHeaders) => (too_many_headers(), CLOSE),
            _ => (Response::refusal(400, "bad_request", "this is no HTTP/1.1 request"), CLOSE),
        };
    };
    if target.len() > LONGEST_TARGET {
        return (target_too_long(), CLOSE);
    }
    let request = Request::new(method, origin_form(target), parsed.headers);
    let may_chunk = parsed.version != Some(0);
    let (mut hosts, mut has_body) = (0, false);
    for header in parsed.headers.iter() {
        hosts += usize::from(header.name.eq_ignore_ascii_case("host"));
        has_body |= header.name.eq_ignore_ascii_case("transfer-encoding")
            || header.name.eq_ignore_ascii_case("content-length") && header.value.trim_ascii() != b"0";
    }
    // Of a method that is not served the body does not matter: 413 would read as a limit of its length.
    if has_body && request.method != Method::Other {
        return (Response::refusal(413, "request_body", "requests have no body here"), CLOSE);
    }
    // A proxy before may have taken the other one (RFC 9112 3.2).
    if hosts > 1 || hosts == 0 && may_chunk {
        return (Response::refusal(400, "bad_request", "a request of HTTP/1.1 has one Host line"), CLOSE);
    }
    let says = |option: &str| {
        let mut options = request.header_lines("connection").flat_map(|line| line.split(','));
        options.any(|each| each.trim().eq_ignore_ascii_case(option))
    };
    let keep = !has_body && !says("close") && (may_chunk || says("keep-alive"));
    let response = worker.respond(&request).await;
    // Without chunks, the end of the connection is the end of the body.
    let keep = keep && (may_chunk || !response.is_streamed());
    (response, Then { may_chunk, keep })
}

/// The path and query of a target that a client wrote as for a proxy (RFC 9112 3.2.2).
fn origin_form(target: &str) -> &str {
    let scheme = |name: &str| target.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name));
    let Some(scheme) = ["http://", "https://"].into_iter().find(|name| scheme(name)) else { return target };
    let behind = target.get(scheme.len()..).unwrap_or_default();
    behind.find('/').and_then(|path| behind.get(path..)).unwrap_or("/")
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
    /// Bytes of requests that are not answered yet.
    buffer: Vec<u8>,
    /// Memory for the head of the next response.
    head: Vec<u8>,
}

impl Connection {
    /// Reads until the head of a request is complete.
    async fn read_head(
        &mut self,
        worker: &Worker,
        mut stopping: Pin<&mut impl Future<Output = ()>>,
        mut alarm: Pin<&mut Sleep>,
    ) -> io::Result<Head> {
        let mut searched = 0;
        let mut deadline = Instant::now() + worker.idle_time();
        let mut is_begun = false;
        loop {
            if searched == 0 {
                // Empty lines before a request are passed over (RFC 9112 2.2).
                let is_blank = |byte: &&u8| matches!(**byte, b'\r' | b'\n');
                let blank = self.buffer.iter().take_while(is_blank).count();
                self.buffer.drain(..blank);
            }
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
            if !self.buffer.is_empty() && !is_begun {
                is_begun = true;
                deadline = Instant::now() + HEAD_TIME;
            }
            if alarm.deadline() > deadline {
                alarm.as_mut().reset(deadline);
            }
            let received = tokio::select! {
                biased;
                received = receive(&mut self.stream, &mut self.buffer) => Some(received?),
                () = stopping.as_mut(), if !is_begun => return Ok(Head::Ended),
                () = alarm.as_mut() => None,
            };
            match received {
                Some(0) => return Ok(Head::Ended),
                Some(_) => {}
                None if Instant::now() < deadline => alarm.as_mut().reset(deadline),
                None if is_begun => {
                    let detail = "the request's header took longer than 10 s";
                    return Ok(Head::Refused(Response::refusal(408, "request_timeout", detail)));
                }
                None => return Ok(Head::Ended),
            }
        }
    }

    async fn send(&mut self, response: Response, may_chunk: bool, keep: bool) -> io::Result<()> {
        let head = &mut self.head;
        head.clear();
        let is_chunked = may_chunk && response.is_streamed();
        write_head(head, &response, keep, is_chunked)?;
        let mut sending = Sending::new(&self.stream);
        match response.body {
            Body::Empty => sending.write_all(head, &[]).await,
            Body::Full(bytes) => sending.write_all(head, &bytes).await,
            Body::Parts(parts) => {
                sending.write_parts(head, *parts).await?;
                sending.write_all(head, &[]).await
            }
            Body::Files(mut files) => {
                while let Some(parts) = files.next_parts().await.map_err(io::Error::other)? {
                    if is_chunked {
                        write!(head, "{:x}\r\n", parts.length())?;
                    }
                    sending.write_parts(head, parts).await?;
                    if is_chunked {
                        head.extend(b"\r\n");
                    }
                }
                if is_chunked {
                    head.extend(b"0\r\n\r\n");
                }
                sending.write_all(head, &[]).await
            }
            Body::Blocks(mut blocks) => {
                while let Some(block) = blocks.recv().await {
                    let block = block.map_err(io::Error::other)?;
                    if block.is_empty() {
                        continue; // a chunk of no bytes would end the body
                    }
                    if is_chunked {
                        write!(head, "{:x}\r\n", block.len())?;
                    }
                    sending.write_all(head, &block).await?;
                    head.clear();
                    if is_chunked {
                        head.extend(b"\r\n");
                    }
                }
                if is_chunked {
                    head.extend(b"0\r\n\r\n");
                }
                sending.write_all(head, &[]).await
            }
        }
    }

    /// Ends the sending side and takes what the client still sends: closing at once would reset the
    /// connection, and the client might lose the response (RFC 9112 9.6).
    async fn close_slowly(&mut self) -> io::Result<()> {
        socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write)?;
        let drain = async {
            loop {
                self.buffer.clear();
                timeout(REST_TIME.0, self.stream.readable()).await??;
                match self.stream.try_read_buf(&mut self.buffer) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        };
        timeout(REST_TIME.1, drain).await.unwrap_or(Ok(()))
    }
}

/// One response on its way.
struct Sending<'a> {
    stream: &'a TcpStream,
    /// When the client first had no room; most answers never read the clock.
    waited: Option<Instant>,
    /// Bytes that the socket has taken.
    written: u64,
}

impl<'a> Sending<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        Self { stream, waited: None, written: 0 }
    }

    /// Writes the pieces of a file behind `head`, which is empty then; it stays where there is no piece.
    async fn write_parts(&mut self, head: &mut Vec<u8>, mut parts: FileParts) -> io::Result<()> {
        while let Some(piece) = parts.next_piece(&Way::Socket).await.map_err(io::Error::other)? {
            match piece {
                Piece::Bytes(bytes) => self.write_all(head, &bytes).await?,
                Piece::InFile { offset, length } => {
                    self.write_more(head).await?;
                    if let Some(file) = parts.file() {
                        self.send_file(file, offset, length).await?;
                    }
                }
            }
            head.clear();
        }
        Ok(())
    }

    /// Writes two slices by as few calls as the socket allows.
    async fn write_all(&mut self, first: &[u8], second: &[u8]) -> io::Result<()> {
        let total = first.len() + second.len();
        let mut written = 0;
        while written < total {
            let (begin, end) = (
                first.get(written..).unwrap_or_default(),
                second.get(written.saturating_sub(first.len())..).unwrap_or_default(),
            );
            // A call for several slices costs more, which an answer without a body would feel.
            let done = match (begin, end) {
                (one, []) | ([], one) => self.stream.try_write(one),
                _ => self.stream.try_write_vectored(&[IoSlice::new(begin), IoSlice::new(end)]),
            };
            match done {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += self.note(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn note(&mut self, count: usize) -> usize {
        self.written += count as u64;
        count
    }

    /// Waits until the client has made room. One that takes bytes too slowly would hold its part of the memory
    /// for as long as it likes.
    async fn writable(&mut self) -> io::Result<()> {
        let allowed = STALL_TIME + Duration::from_secs(self.written / SLOWEST);
        let waited = self.waited.get_or_insert_with(Instant::now).elapsed();
        let left = allowed.saturating_sub(waited).min(STALL_TIME);
        timeout(left, self.stream.writable()).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Writes bytes which others follow at once: the kernel sends them in one packet.
    async fn write_more(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let send = || Ok(rustix::net::send(self.stream, rest, kernel::MORE)?);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Ok(count) => written += self.note(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends bytes of a file from the page cache, without copying them.
    async fn send_file(
        &mut self,
        file: std::os::fd::BorrowedFd<'_>,
        mut offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mut left = usize::try_from(length).map_err(io::Error::other)?;
        while left > 0 {
            let send = || kernel::send_file(self.stream, file, &mut offset, left);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()), // the file was cut meanwhile
                Ok(count) => left = left.saturating_sub(self.note(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Appends what a socket has received, at most 4 KiB; returns the number of bytes, 0 at the end. A read that does
/// not fill its buffer has emptied the socket, and tokio then waits without asking once more.
async fn receive(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|context| {
        let mut block = [const { MaybeUninit::uninit() }; 4096];
        let mut read = ReadBuf::uninit(&mut block);
        std::task::ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
        buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
    .await
}

/// Length of a complete head; searches on where the last call stopped.
fn end_of_head(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    let start = searched.saturating_sub(3);
    let rest = bytes.get(start..).unwrap_or_default();
    *searched = bytes.len();
    // httparse takes a bare line feed as an end of line too.
    let found = memchr_iter(b'\n', rest).find_map(|at| match rest.get(at + 1..) {
        Some([b'\n', ..]) => Some(at + 2),
        Some([b'\r', b'\n', ..]) => Some(at + 3),
        _ => None,
    })?;
    Some(start + found)
}

fn write_head(out: &mut Vec<u8>, response: &Response, keep: bool, is_chunked: bool) -> io::Result<()> {
    write!(out, "HTTP/1.1 {} {}\r\nDate: ", response.status, reason(response.status))?;
    push_date(out);
    out.extend(b"\r\n");
    for (name, value) in &response.headers {
        for part in [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
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

/// Appends the present time (RFC 9110 6.6.1), written anew once a second.
fn push_date(out: &mut Vec<u8>) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(written, text)| {
        if *written != second {
            (*written, *text) = (second, httpdate::fmt_http_date(now));
        }
        out.extend_from_slice(text.as_bytes());
    });
}
