//! What lies below HTTP on the way to a server: TCP, perhaps TLS, and a limit on what comes before an answer's head.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::Upstream;
use crate::clock::Clock;
use crate::config::settings::Protocol;
use crate::policy::reason::Reason;

/// A connection to a server, ready to speak HTTP.
pub enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// A TCP connection that can be looked at from beside the one who reads it. The lock is never waited for: one thread has
/// both. tokio's own reading has to be kept, since it saves a system call for each answer.
#[derive(Clone)]
pub struct Socket(Arc<Mutex<TcpStream>>);

/// Connects to one of a backend's servers: TCP and TLS under one deadline.
pub async fn dial(upstream: &Upstream, at: usize, clock: &Clock) -> Result<(Stream, Socket), Reason> {
    let dialled = timeout(upstream.settings.connect_timeout, async {
        let address = upstream.settings.servers[at];
        let socket = TcpStream::connect(address).await.map_err(|_| Reason::BackendUnreachable)?;
        // Without it, small requests wait for the acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
        let socket = Socket(Arc::new(Mutex::new(socket)));
        let Some(tls) = &upstream.tls else { return Ok((Stream::Plain(socket.clone()), socket)) };
        let connector = tls.connector(clock);
        let stream = connector.connect(tls.name.clone(), socket.clone()).await.map_err(|_| Reason::BackendTls)?;
        // A server that did not agree to HTTP/2 would be sent a preface that it cannot read.
        let agreed = stream.get_ref().1.alpn_protocol();
        if upstream.settings.protocol == Protocol::Http2 && agreed != Some(b"h2") {
            return Err(Reason::BackendTls);
        }
        Ok((Stream::Tls(Box::new(stream)), socket))
    });
    dialled.await.unwrap_or(Err(Reason::BackendConnectTimeout))
}

impl Socket {
    /// Nothing waits to be read, not even the end. What a server says on an idle connection was not asked for, and would
    /// be taken for the answer to the next request. The kernel is asked: the runtime hears of it only in its next round.
    pub fn is_quiet(&self) -> bool {
        self.peek().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The other side has closed, and everything that it said before was read.
    pub fn has_ended(&self) -> bool {
        match self.peek() {
            Ok(count) => count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    fn peek(&self) -> io::Result<usize> {
        let mut byte = [MaybeUninit::uninit()];
        SockRef::from(&*self.lock()).peek(&mut byte)
    }

    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => pin!(socket).poll_read(cx, buf),
            Stream::Tls(stream) => pin!(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(socket) => pin!(socket).poll_write(cx, buf),
            Stream::Tls(stream) => pin!(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(socket) => pin!(socket).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => pin!(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(socket) => socket.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => pin!(socket).poll_flush(cx),
            Stream::Tls(stream) => pin!(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(socket) => pin!(socket).poll_shutdown(cx),
            Stream::Tls(stream) => pin!(stream).poll_shutdown(cx),
        }
    }
}

/// How many bytes may be read before an answer's head is complete. hyper skips interim answers (1xx) without end, and a
/// server that sends nothing else would keep a worker busy until the request's time is over.
#[derive(Clone, Default)]
pub struct HeadAllowance(Rc<Cell<Option<usize>>>);

impl HeadAllowance {
    pub fn begin(&self, bytes_max: usize) {
        self.0.set(Some(bytes_max));
    }

    /// The head is there: what follows is a body, which has bounds of its own.
    pub fn end(&self) {
        self.0.set(None);
    }
}

/// An HTTP/1 connection under a [`HeadAllowance`].
pub struct Allowed {
    pub stream: Stream,
    pub allowance: HeadAllowance,
}

impl AsyncRead for Allowed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Some(left) = self.allowance.0.get() {
            let Some(left) = left.checked_sub(buf.filled().len() - before) else {
                buf.set_filled(before);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "no end of an answer's head")));
            };
            self.allowance.0.set(Some(left));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Allowed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The tasks of one HTTP/2 connection to a server: they end when they are told to, whatever the server still owes. hyper
/// has no other way to take a body back from a server that answered and does not read on.
#[derive(Clone, Default)]
pub struct Tasks(Rc<RefCell<JoinSet<()>>>);

impl Tasks {
    pub fn end(&self) {
        self.0.borrow_mut().abort_all();
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.borrow_mut();
        // What is over is forgotten, or a long connection would remember every request.
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(async move {
            let _ = task.await;
        });
    }
}

/// hyper's HTTP/2 tasks run on the worker's own thread.
#[derive(Clone)]
pub struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn what_waits_on_a_connection_is_seen_before_the_runtime_hears_of_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = Socket(Arc::new(Mutex::new(stream)));
        let (mut server, _) = listener.accept().unwrap();
        assert!(socket.is_quiet() && !socket.has_ended());
        // Nothing is awaited from here on.
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        assert!(!socket.is_quiet() && !socket.has_ended(), "a word");
        assert_eq!(socket.lock().try_read(&mut [0; 64]).unwrap_or(0), 0, "the runtime knows nothing yet");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let socket = Socket(Arc::new(Mutex::new(stream)));
        drop(listener.accept().unwrap());
        assert!(!socket.is_quiet() && socket.has_ended(), "the end");
    }
}
