//! Closes a connection so that its client learns of every call that was not served.
//!
//! A client may have sent a call when our last GOAWAY was on its way. Closing a Unix socket with unread
//! bytes resets it, and the client would take the call for one that may have run. So the end is told
//! first, and what still comes is read and dropped until the client closes, for a bounded time: GOAWAY
//! has told the client that those calls were not served and are safe to send elsewhere.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// Time that the client has to close its side.
const MOST: Duration = Duration::from_secs(1);

/// A stream whose shutdown ends with the client's.
pub struct Linger<S> {
    stream: S,
    told: bool,
    end: Option<Pin<Box<Sleep>>>,
}

impl<S> Linger<S> {
    /// Wraps a stream.
    pub fn new(stream: S) -> Self {
        Self { stream, told: false, end: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.told {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            this.told = true;
        }
        let end = this.end.get_or_insert_with(|| Box::pin(tokio::time::sleep(MOST)));
        let mut scratch = [0; 1024];
        loop {
            if end.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: Connected> Connected for Linger<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    #[tokio::test]
    async fn what_comes_late_does_not_reset_what_was_said() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut ours = Linger::new(ours);
        ours.write_all(b"goaway").await.unwrap();
        theirs.write_all(&[0; 5000]).await.unwrap();
        let closing = tokio::spawn(async move { ours.shutdown().await });
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"goaway");
        theirs.write_all(&[0; 5000]).await.unwrap();
        drop(theirs);
        closing.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_closes_is_left_after_a_time() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let start = tokio::time::Instant::now();
        Linger::new(ours).shutdown().await.unwrap();
        assert_eq!(start.elapsed(), MOST);
    }
}
