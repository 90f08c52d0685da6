//! A socket whose small writes leave together: HTTP/2 writes every frame by a call of its own, and a packet for each
//! costs more than the rest of the answer.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Most bytes that wait: a connection whose client takes nothing keeps as many.
const MOST_WAITING: usize = 32 << 10;
/// Vectors of that length that a thread keeps: idle connections have none.
const MOST_SPARE: usize = 8;
/// Bytes that are received at once.
const BLOCK: usize = 8 << 10;

/// A handle of the socket: hyper owns one, and who polls hyper another, to send what it wrote.
#[derive(Clone)]
pub struct Buffered(Rc<RefCell<Socket>>);

struct Socket {
    stream: TcpStream,
    /// Bytes that the socket has not taken, behind the first `sent`.
    waiting: Vec<u8>,
    sent: usize,
}

impl Buffered {
    /// A socket with nothing to send.
    pub fn new(stream: TcpStream) -> Self {
        Self(Rc::new(RefCell::new(Socket { stream, waiting: Vec::new(), sent: 0 })))
    }

    /// Sends what was written. To be called whenever hyper was polled: its flushes do nothing.
    pub fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(context)
    }
}

impl Socket {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        self.sent = 0;
        if self.waiting.capacity() > 0 {
            give_back(std::mem::take(&mut self.waiting));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if self.waiting.len() + length > MOST_WAITING {
            ready!(self.poll_send(context))?;
            if length > MOST_WAITING {
                return Pin::new(&mut self.stream).poll_write_vectored(context, slices);
            }
        }
        if self.waiting.capacity() == 0 {
            self.waiting =
                SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(MOST_WAITING));
        }
        slices.iter().for_each(|slice| self.waiting.extend_from_slice(slice));
        Poll::Ready(Ok(length))
    }
}

thread_local! {
    /// Memory that no connection of this thread needs now.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn give_back(mut waiting: Vec<u8>) {
    waiting.clear();
    // A thread that ends has no list any more.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < MOST_SPARE {
            spare.push(waiting);
        }
    });
}

impl Read for Buffered {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut block = [const { MaybeUninit::uninit() }; BLOCK];
        let room = out.remaining().min(BLOCK);
        let mut read = ReadBuf::uninit(block.get_mut(..room).unwrap_or_default());
        ready!(Pin::new(&mut self.0.borrow_mut().stream).poll_read(context, &mut read))?;
        out.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for Buffered {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.0.borrow_mut();
        ready!(socket.poll_send(context))?;
        Pin::new(&mut socket.stream).poll_shutdown(context)
    }
}
