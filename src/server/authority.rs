//! Accepts any `:authority`.
//!
//! Drivers up to 1.5.6 send the socket's path, C-core clients its percent-encoded form; the HTTP/2
//! library refuses both and resets the stream (cluster.md 6). [`AnyAuthority`] rewrites the value in
//! HEADERS frames to `x` before the library sees it. The new value is never longer than the old one,
//! so the library's header table never evicts earlier than the client believes, and all later
//! references stay right (cluster.md 6.3). An empty value is left alone.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Largest frame that the library accepts by default; larger ones it shall refuse itself.
const MOST_FRAME: usize = 16384;
/// Bytes asked from the stream at once.
const READ: usize = 16 << 10;

/// Literal name, raw and as HPACK's Huffman code.
const NAME: &[u8] = b":authority";
const NAME_HUFFMAN: [u8; 8] = [0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// Where the walk through the bytes is.
enum State {
    /// So many bytes pass unchanged.
    Pass(usize),
    /// The header of a frame is being gathered.
    Header,
    /// A HEADERS frame of this length is being gathered.
    Block(usize),
}

/// The walk itself, apart from any stream.
struct Rewriter {
    state: State,
    gathered: Vec<u8>,
}

impl Rewriter {
    fn new() -> Self {
        Self { state: State::Pass(PREFACE), gathered: Vec::new() }
    }

    /// Takes bytes as they come and appends what the library shall see.
    fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            match self.state {
                State::Pass(left) => {
                    let (now, rest) = input.split_at(left.min(input.len()));
                    out.extend_from_slice(now);
                    input = rest;
                    self.state =
                        if left == now.len() { State::Header } else { State::Pass(left - now.len()) };
                }
                State::Header => {
                    if self.gather(&mut input, FRAME_HEADER) {
                        self.frame(out);
                    }
                }
                State::Block(length) => {
                    if self.gather(&mut input, FRAME_HEADER + length) {
                        rewrite(&self.gathered, out);
                        self.gathered.clear();
                        self.state = State::Header;
                    }
                }
            }
        }
    }

    /// Moves bytes from `input` until `wanted` are gathered; says whether they are.
    fn gather(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let more = wanted.saturating_sub(self.gathered.len()).min(input.len());
        let (now, rest) = input.split_at(more);
        self.gathered.extend_from_slice(now);
        *input = rest;
        self.gathered.len() >= wanted
    }

    fn frame(&mut self, out: &mut Vec<u8>) {
        let length = frame_length(&self.gathered);
        if self.gathered[3] == HEADERS && length > 0 && length <= MOST_FRAME {
            self.state = State::Block(length);
            return;
        }
        out.append(&mut self.gathered);
        self.state = if length == 0 { State::Header } else { State::Pass(length) };
    }
}

fn frame_length(header: &[u8]) -> usize {
    usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2])
}

/// Copies a HEADERS frame with its authority replaced; one that cannot be read is copied as it is.
fn rewrite(frame: &[u8], out: &mut Vec<u8>) {
    let Some(value) = authority(frame) else {
        out.extend_from_slice(frame);
        return;
    };
    let removed = value.len() - 2;
    let length = frame.len() - FRAME_HEADER - removed;
    let start = out.len();
    out.extend_from_slice(&frame[..value.start]);
    out.extend_from_slice(&[1, b'x']);
    out.extend_from_slice(&frame[value.end..]);
    // The length fits, it only shrank.
    let bytes = u32::try_from(length).unwrap_or(0).to_be_bytes();
    out[start..start + 3].copy_from_slice(&bytes[1..]);
}

/// Range of the value string of `:authority` in the frame, with its length byte.
fn authority(frame: &[u8]) -> Option<std::ops::Range<usize>> {
    let flags = frame[4];
    let (mut at, mut end) = (FRAME_HEADER, frame.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(at)?))?;
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += 5;
    }
    let block = frame.get(..end)?;
    while at < end {
        let first = block[at];
        if first & 0x80 != 0 {
            at = integer(block, at, 7)?.1;
            continue;
        }
        if first & 0xe0 == 0x20 {
            at = integer(block, at, 5)?.1;
            continue;
        }
        let (index, next) = integer(block, at, if first & 0x40 != 0 { 6 } else { 4 })?;
        let (ours, value) = if index == 0 {
            let (name, after) = string(block, next)?;
            (block[name.clone()] == *NAME || block[name] == NAME_HUFFMAN, after)
        } else {
            (index == 1, next)
        };
        let (text, after) = string(block, value)?;
        if ours {
            return (!text.is_empty()).then_some(value..after);
        }
        at = after;
    }
    None
}

/// An HPACK integer at `at` with a prefix of `bits`: its value and what follows.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & most;
    let mut next = at + 1;
    if value < most {
        return Some((value, next));
    }
    for shift in (0..28).step_by(7) {
        let byte = *block.get(next)?;
        next += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, next));
        }
    }
    None
}

/// An HPACK string at `at`: the range of its bytes and what follows.
fn string(block: &[u8], at: usize) -> Option<(std::ops::Range<usize>, usize)> {
    let (length, start) = integer(block, at, 7)?;
    let end = start.checked_add(length).filter(|end| *end <= block.len())?;
    Some((start..end, end))
}

/// A stream whose authorities the library accepts.
pub struct AnyAuthority<S> {
    stream: S,
    rewriter: Rewriter,
    ready: Vec<u8>,
    given: usize,
}

impl<S> AnyAuthority<S> {
    /// Wraps a freshly accepted stream.
    pub fn new(stream: S) -> Self {
        Self { stream, rewriter: Rewriter::new(), ready: Vec::new(), given: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.given == this.ready.len() {
            this.ready.clear();
            this.given = 0;
            let mut space = [0_u8; READ];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.push(read.filled(), &mut this.ready);
        }
        let rest = &this.ready[this.given..];
        let now = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..now]);
        this.given += now;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
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
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: Connected> Connected for AnyAuthority<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn run(frames: &[Vec<u8>]) -> Vec<u8> {
        let input = [vec![b'p'; PREFACE], frames.concat()].concat();
        let mut out = Vec::new();
        Rewriter::new().push(&input, &mut out);
        let mut slow = Vec::new();
        let mut rewriter = Rewriter::new();
        input.iter().for_each(|byte| rewriter.push(&[*byte], &mut slow));
        assert_eq!(out, slow, "chunks do not matter");
        out.split_off(PREFACE)
    }

    const PATH: &[u8] = b"\x41\x06/a/b/c";

    #[test]
    fn t33_a_path_becomes_x() {
        let block = [b"\x83\x86", PATH, b"\x5f\x01y"].concat();
        let want = frame(1, 4, b"\x83\x86\x41\x01x\x5f\x01y");
        assert_eq!(run(&[frame(1, 4, &block)]), want);
    }

    #[test]
    fn t33_literal_names_are_found_raw_and_huffman_coded() {
        let raw = [b"\x40\x0a:authority\x03%2F".as_slice(), b"\x82"].concat();
        assert_eq!(run(&[frame(1, 4, &raw)]), frame(1, 4, b"\x40\x0a:authority\x01x\x82"));
        let coded = [&[0x40, 0x88], &NAME_HUFFMAN[..], b"\x83abc"].concat();
        let want = [&[0x40, 0x88], &NAME_HUFFMAN[..], b"\x01x"].concat();
        assert_eq!(run(&[frame(1, 4, &coded)]), frame(1, 4, &want));
    }

    #[test]
    fn t33_all_literal_forms_are_rewritten() {
        for first in [0x41_u8, 0x01, 0x11] {
            let block = [&[first, 0x83], b"abc".as_slice()].concat();
            assert_eq!(run(&[frame(1, 4, &block)]), frame(1, 4, &[first, 1, b'x']));
        }
    }

    #[test]
    fn t33_padding_and_priority_are_skipped() {
        let padded = [b"\x02", PATH, b"\0\0"].concat();
        assert_eq!(run(&[frame(1, 0xc, &padded)]), frame(1, 0xc, b"\x02\x41\x01x\0\0"));
        let priority = [b"\0\0\0\0\x10", PATH].concat();
        assert_eq!(run(&[frame(1, 0x24, &priority)]), frame(1, 0x24, b"\0\0\0\0\x10\x41\x01x"));
        let both = [b"\x01\0\0\0\0\x10", PATH, b"\0"].concat();
        assert_eq!(run(&[frame(1, 0x2c, &both)]), frame(1, 0x2c, b"\x01\0\0\0\0\x10\x41\x01x\0"));
    }

    #[test]
    fn t33_continuations_and_cut_blocks_pass() {
        let cut = b"\x83\x44\x20abc";
        let frames = [frame(1, 0, cut), frame(9, 4, b"rest")];
        assert_eq!(run(&frames), frames.concat());
        let before = [PATH, b"\x44\x20abc"].concat();
        assert_eq!(run(&[frame(1, 0, &before)]), frame(1, 0, b"\x41\x01x\x44\x20abc"));
    }

    #[test]
    fn t33_what_needs_no_cure_passes() {
        let frames = [
            frame(4, 0, b""),
            frame(1, 4, b"\x83\xc4"),
            frame(1, 4, b"\x41\x00\x83"),
            frame(1, 4, b"\x3f\xe1\x1f\x83"),
            frame(0, 1, PATH),
            frame(1, 4, &[b'a'; MOST_FRAME + 1]),
            frame(1, 0xc, b"\xff\x41\x01/"),
        ];
        assert_eq!(run(&frames), frames.concat());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_pass_in_any_chunks(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0_usize..400) {
            let input = [vec![0; PREFACE], bytes].concat();
            let (mut whole, mut parts) = (Vec::new(), Vec::new());
            Rewriter::new().push(&input, &mut whole);
            let (a, b) = input.split_at(at.min(input.len()));
            let mut rewriter = Rewriter::new();
            rewriter.push(a, &mut parts);
            rewriter.push(b, &mut parts);
            prop_assert_eq!(whole, parts);
        }
    }
}
