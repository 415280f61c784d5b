//! Lets clients in whose `:authority` is not a valid one.
//!
//! Drivers up to 1.5, the kubelet (plugin registration) and gRPC's C core send the socket's path as
//! `:authority`, raw or percent-encoded. The HTTP/2 library below tonic refuses such a value by
//! resetting the stream, and has no option to accept it. [`AnyAuthority`] sits between the accepted
//! stream and the server and replaces the value by `x` in the bytes read.
//!
//! Neither a Huffman decoder nor a copy of the dynamic table is needed: a replaced entry keeps its
//! place in the table and is never larger than the one the client believes it inserted, so the
//! server drops entries at the same time as the client or later, and every index the client sends
//! still means the same entry. An empty value is the exception: the server's entry is one byte larger,
//! so with a table filled to the last byte it may drop one that the client still uses. That is rare,
//! costs a connection that the client makes anew, and without it no such client would be served at all.
//!
//! Not covered: a client that names `:authority` by a dynamic table index (none is known), and a
//! value that reaches into a CONTINUATION frame. Both are refused as they would be without this.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Length of the client preface, `PRI * HTTP/2.0` and so on.
const PREFACE: usize = 24;
/// Length of a frame's header.
const HEADER: usize = 9;
/// Largest payload held back: the largest frame the server accepts. A longer one it refuses itself.
const MAX_HELD: usize = 16_384;
/// Bytes asked of the stream at a time.
const CHUNK: usize = 8_192;

const TYPE_HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x08;
const FLAG_PRIORITY: u8 = 0x20;

/// Static table index of `:authority`.
const AUTHORITY_INDEX: usize = 1;
/// `:authority` as a raw string.
const AUTHORITY_RAW: &[u8] = b":authority";
/// `:authority`, Huffman-coded.
const AUTHORITY_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// The string put in place: length 1, `x`.
const REPLACEMENT: &[u8] = &[0x01, b'x'];
/// A literal that enters no table, named by the static index of `:authority`.
const AUTHORITY_LITERAL: u8 = 0x01;

/// Accepted stream whose `:authority` values reach the server as `x`.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    stream: S,
    rewriter: Rewriter,
    chunk: Box<[u8]>,
    ready: Vec<u8>,
    given: usize,
}

impl<S> AnyAuthority<S> {
    /// Wraps a stream of which nothing has been read yet.
    pub fn new(stream: S) -> Self {
        let chunk = vec![0; CHUNK].into_boxed_slice();
        Self { stream, rewriter: Rewriter::default(), chunk, ready: Vec::new(), given: 0 }
    }

    /// Hands out bytes that are ready; false if there are none.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let waiting = self.ready.get(self.given..).unwrap_or_default();
        let Some((part, _)) = waiting.split_at_checked(waiting.len().min(buffer.remaining())) else {
            return false;
        };
        buffer.put_slice(part);
        self.given += part.len();
        !part.is_empty()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // A read may yield nothing to hand out yet (part of a HEADERS frame), which must not look
        // like the end of the stream.
        while !this.give(buffer) {
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.given = 0;
            this.rewriter.push(chunk.filled(), &mut this.ready);
        }
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

/// The change itself, free of input and output: takes what a client sent in pieces of any size.
///
/// Holds back at most one frame header or one HEADERS frame; everything else is copied at once.
#[derive(Debug)]
pub struct Rewriter {
    /// Bytes still to be copied as they are: of the preface or of a frame's payload.
    copy: usize,
    /// Start of a frame, complete when it has `wanted` bytes.
    held: Vec<u8>,
    wanted: usize,
}

impl Default for Rewriter {
    fn default() -> Self {
        Self { copy: PREFACE, held: Vec::new(), wanted: HEADER }
    }
}

impl Rewriter {
    /// Appends to `output` what the server shall see of `input` and of what was held back.
    pub fn push(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while !input.is_empty() {
            let missing = if self.copy > 0 { self.copy } else { self.wanted - self.held.len() };
            let (part, rest) = input.split_at(missing.min(input.len()));
            input = rest;
            if self.copy > 0 {
                output.extend_from_slice(part);
                self.copy -= part.len();
                continue;
            }
            self.held.extend_from_slice(part);
            if self.held.len() == self.wanted {
                self.complete(output);
            }
        }
    }

    /// Deals with a complete frame header or a complete HEADERS frame.
    fn complete(&mut self, output: &mut Vec<u8>) {
        if let [high, middle, low, kind, _, _, _, _, _] = *self.held.as_slice() {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if kind == TYPE_HEADERS && (1..=MAX_HELD).contains(&length) {
                self.wanted = HEADER + length;
                return;
            }
            self.copy = length;
            output.append(&mut self.held);
        } else {
            rewrite_frame(&self.held, output);
            self.held.clear();
        }
        self.wanted = HEADER;
    }
}

/// Appends a complete HEADERS frame, changed where needed; a malformed one as it is.
fn rewrite_frame(frame: &[u8], output: &mut Vec<u8>) {
    let Some((before, block, padding)) = split_frame(frame) else {
        output.extend_from_slice(frame);
        return;
    };
    let start = output.len();
    output.extend_from_slice(before);
    rewrite_block(block, output);
    output.extend_from_slice(padding);
    // Two bytes longer than it was at most, so the length fits into its three bytes.
    let length = (output.len() - start).saturating_sub(HEADER);
    if let (Some(field), [_, .., high, middle, low]) =
        (output.get_mut(start..start + 3), length.to_be_bytes())
    {
        field.copy_from_slice(&[high, middle, low]);
    }
}

/// Splits a HEADERS frame into what precedes the header block, the block, and the padding.
fn split_frame(frame: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let flags = *frame.get(4)?;
    let mut start = HEADER;
    let mut padding = 0;
    if flags & FLAG_PADDED != 0 {
        padding = usize::from(*frame.get(start)?);
        start += 1;
    }
    if flags & FLAG_PRIORITY != 0 {
        start += 5;
    }
    let end = frame.len().checked_sub(padding)?;
    Some((frame.get(..start)?, frame.get(start..end)?, frame.get(end..)?))
}

/// Appends a header block with the values of `:authority` replaced; of empty ones only the first, as a
/// request has one and the block must not grow.
fn rewrite_block(mut block: &[u8], output: &mut Vec<u8>) {
    let mut grown = false;
    while let Some(item) = Item::first(block)
        && let Some((bytes, rest)) = block.split_at_checked(item.length)
    {
        let name = match item.authority {
            Some(Authority::Value { at, empty }) if !(empty && grown) => {
                grown |= empty;
                bytes.get(..at)
            }
            Some(Authority::Static) if !grown => {
                grown = true;
                Some(&[AUTHORITY_LITERAL][..])
            }
            _ => None,
        };
        match name {
            Some(name) => {
                output.extend_from_slice(name);
                output.extend_from_slice(REPLACEMENT);
            }
            None => output.extend_from_slice(bytes),
        }
        block = rest;
    }
    // Nothing, or an item cut off by the end of the block.
    output.extend_from_slice(block);
}

/// One item of a header block.
struct Item {
    length: usize,
    authority: Option<Authority>,
}

/// How an item says `:authority`.
#[derive(Clone, Copy)]
enum Authority {
    /// As a literal, whose value string starts there.
    Value { at: usize, empty: bool },
    /// By the entry of the static table, whose value is empty.
    Static,
}

impl Item {
    /// Reads the first item of `block`; none if it is not complete.
    fn first(block: &[u8]) -> Option<Self> {
        let prefix = match *block.first()? {
            0x80.. => {
                let (index, length) = integer(block, 7)?;
                let authority = (index == AUTHORITY_INDEX).then_some(Authority::Static);
                return Some(Self { length, authority });
            }
            0x40.. => 6,
            // A table size update.
            0x20.. => return Some(Self { length: integer(block, 5)?.1, authority: None }),
            _ => 4,
        };
        let (index, mut length) = integer(block, prefix)?;
        let mut is_authority = index == AUTHORITY_INDEX;
        if index == 0 {
            let name = Text::first(block.get(length..)?)?;
            is_authority = name.is_authority();
            length += name.length;
        }
        let value = Text::first(block.get(length..)?)?;
        let empty = value.content.is_empty();
        let authority = is_authority.then_some(Authority::Value { at: length, empty });
        Some(Self { length: length + value.length, authority })
    }
}

/// A string as it stands in a header block.
struct Text<'a> {
    huffman: bool,
    content: &'a [u8],
    /// Bytes taken, with those that tell the content's length.
    length: usize,
}

impl<'a> Text<'a> {
    /// Reads the string at the start of `bytes`; none if it is not complete.
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let huffman = bytes.first()? & 0x80 != 0;
        let (size, start) = integer(bytes, 7)?;
        let length = start.checked_add(size)?;
        Some(Self { huffman, content: bytes.get(start..length)?, length })
    }

    fn is_authority(&self) -> bool {
        self.content == if self.huffman { AUTHORITY_HUFFMAN } else { AUTHORITY_RAW }
    }
}

/// Reads the integer with a prefix of that many bits at the start of `bytes`: its value and the
/// bytes it takes. None if cut off, or longer than the five bytes the server accepts.
fn integer(bytes: &[u8], prefix: u32) -> Option<(usize, usize)> {
    let (first, more) = bytes.split_first()?;
    let limit = (1 << prefix) - 1;
    let mut value = usize::from(*first) & limit;
    if value < limit {
        return Some((value, 1));
    }
    for (position, byte) in more.iter().take(4).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Some((value, position + 2));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::transport::Server;

    use super::*;

    const PREFACE_BYTES: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const END_HEADERS: u8 = 4;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    }

    fn headers(block: &[u8]) -> Vec<u8> {
        frame(TYPE_HEADERS, END_HEADERS, block)
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE_BYTES, &frames.concat()].concat()
    }

    fn rewritten(input: &[u8], piece: usize) -> Vec<u8> {
        let (mut rewriter, mut output) = (Rewriter::default(), Vec::new());
        input.chunks(piece).for_each(|part| rewriter.push(part, &mut output));
        output
    }

    /// Checks the output, fed whole and in pieces of several sizes.
    #[track_caller]
    fn check(input: &[Vec<u8>], expected: &[Vec<u8>]) {
        let (input, expected) = (connection(input), connection(expected));
        for piece in [input.len(), 1, 2, 3, 7, 10] {
            assert_eq!(rewritten(&input, piece), expected, "in pieces of {piece}");
        }
    }

    /// `before`, the replacement and the rest of a request come from a block with this value.
    #[track_caller]
    fn check_value(name: &[u8], value: &[u8]) {
        let block = |value| [&[0x83, 0x86], name, value, b"\x5f\x01a\x84"].concat();
        check(&[headers(&block(value))], &[headers(&block(REPLACEMENT))]);
    }

    fn text(content: &[u8]) -> Vec<u8> {
        [&[u8::try_from(content.len()).unwrap()], content].concat()
    }

    #[test]
    fn every_literal_form_with_an_indexed_name() {
        for first in [0x41, 0x01, 0x11] {
            check_value(&[first], &text(b"/run/x.sock"));
            check_value(&[first], b"\x86\xa0\xe4\x1d\x13\x9d\x09");
            check_value(&[first], b"\x01y");
        }
    }

    #[test]
    fn every_literal_form_with_a_literal_name() {
        let huffman = [&[0x88], AUTHORITY_HUFFMAN].concat();
        for first in [0x40, 0x00, 0x10] {
            for name in [&text(AUTHORITY_RAW), &huffman] {
                check_value(&[&[first], name.as_slice()].concat(), &text(b"x%2Frs.sock"));
            }
        }
    }

    #[test]
    fn value_with_a_length_of_several_bytes() {
        check_value(&[0x41], &[&[0x7f, 0x80, 0x01], [b'/'; 255].as_slice()].concat());
    }

    #[test]
    fn table_size_update_first() {
        let block = |value: &[u8]| [b"\x3f\xe1\x1f\x41", value].concat();
        check(&[headers(&block(b"\x02/a"))], &[headers(&block(REPLACEMENT))]);
    }

    #[test]
    fn other_names_are_left_alone() {
        let other = b"\x40\x02te\x02/a\x40\x8a:authority\x02/a\x42\x02/a\x7e\x02/a\x0f\x02\x02/a";
        check(&[headers(other)], &[headers(other)]);
    }

    #[test]
    fn t33_an_empty_value_is_replaced_once() {
        check(&[headers(b"\x83\x41\x00\x84")], &[headers(b"\x83\x41\x01x\x84")]);
        check(&[headers(b"\x83\x81\x84")], &[headers(b"\x83\x01\x01x\x84")]);
        check(&[headers(b"\x81\x81\x41\x00")], &[headers(b"\x01\x01x\x81\x41\x00")]);
    }

    #[test]
    fn second_request_with_a_dynamic_index_is_untouched() {
        let second = headers(b"\x83\x86\xc4\xc3\xff\x80\x01");
        check(&[headers(b"\x41\x02/a"), second.clone()], &[headers(b"\x41\x01x"), second]);
    }

    #[test]
    fn padding_and_priority() {
        let cases: [(u8, &[u8], &[u8]); 4] = [
            (0, b"", b""),
            (FLAG_PADDED, b"\x03", b"\x41\x02/"),
            (FLAG_PRIORITY, b"\x41\x03abc", b""),
            (FLAG_PADDED | FLAG_PRIORITY, b"\x03\x41\x03abc", b"\x41\x02/"),
        ];
        for (flags, before, after) in cases {
            let with =
                |block: &[u8]| frame(TYPE_HEADERS, END_HEADERS | flags, &[before, block, after].concat());
            check(&[with(b"\x83\x41\x02/a")], &[with(b"\x83\x41\x01x")]);
        }
    }

    #[test]
    fn malformed_frames_are_left_alone() {
        let frames = [
            headers(b""),
            frame(TYPE_HEADERS, FLAG_PADDED, b"\xff\x41\x02/a"),
            frame(TYPE_HEADERS, FLAG_PADDED | FLAG_PRIORITY, b"\x03\x41\x02/a"),
            frame(TYPE_HEADERS, FLAG_PRIORITY, b"\x41\x02/a"),
            headers(b"\x41\x7f\xff\xff\xff\xff\xff\x01"),
        ];
        check(&frames, &frames);
    }

    #[test]
    fn other_frames_are_copied() {
        let frames = [
            frame(4, 0, b""),
            frame(0, 0, b"\x41\x02/a"),
            frame(9, END_HEADERS, b"\x41\x02/a"),
            frame(0, 0, &[1; 20_000]),
        ];
        check(&frames, &frames);
    }

    #[test]
    fn continuation_follows() {
        let rest = frame(9, END_HEADERS, b"bc\x84");
        check(
            &[frame(TYPE_HEADERS, 0, b"\x41\x02/a\x44\x03a"), rest.clone()],
            &[frame(TYPE_HEADERS, 0, b"\x41\x01x\x44\x03a"), rest],
        );
    }

    #[test]
    fn item_cut_off_is_copied() {
        let item = b"\x40\x0a:authority\x03/ab";
        for end in 1..item.len() {
            let cut = frame(TYPE_HEADERS, 0, &item[..end]);
            check(std::slice::from_ref(&cut), std::slice::from_ref(&cut));
        }
    }

    #[test]
    fn only_headers_over_the_limit_are_not_held_back() {
        let of = |value: &[u8], length: usize| {
            let mut block = [b"\x41", value].concat();
            block.resize(length, 0x84);
            headers(&block)
        };
        let next = headers(b"\x41\x01x");
        let large = of(b"\x02/a", MAX_HELD);
        check(&[large, next.clone()], &[of(b"\x01x", MAX_HELD - 1), next.clone()]);
        let oversize = of(b"\x02/a", MAX_HELD + 1);
        check(&[oversize.clone(), next.clone()], &[oversize.clone(), next]);

        let mut output = Vec::new();
        let start = &connection(&[oversize])[..PREFACE + HEADER + 5];
        Rewriter::default().push(start, &mut output);
        assert_eq!(output, start);
    }

    /// Frames that are nearly right, so that the inner parts are reached too.
    fn hostile_frame() -> impl Strategy<Value = Vec<u8>> {
        let item = prop_oneof![
            vec(any::<u8>(), 0..8),
            Just(b"\x41\x02/a".to_vec()),
            Just(b"\x40\x0a:authority\x83abc".to_vec()),
        ];
        (0_u8..3, any::<u8>(), vec(item, 0..6))
            .prop_map(|(kind, flags, items)| frame(kind, flags, &items.concat()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn hostile_bytes_in_any_pieces(
            frames in vec(hostile_frame(), 0..6),
            tail in vec(any::<u8>(), 0..64),
            sizes in vec(1_usize..40, 1..20),
        ) {
            let input = [connection(&frames), tail].concat();
            let whole = rewritten(&input, input.len());
            // Each frame grows by two bytes at most; the tail has room for seven.
            prop_assert!(whole.len() <= input.len() + 2 * (frames.len() + 7));
            let (mut rewriter, mut output, mut rest) = (Rewriter::default(), Vec::new(), input.as_slice());
            for size in sizes.iter().cycle() {
                let (part, more) = rest.split_at(rest.len().min(*size));
                rewriter.push(part, &mut output);
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(output, whole);
        }
    }

    #[tokio::test]
    async fn reads_into_small_buffers_and_sees_the_end() {
        let (mut client, server) = tokio::io::duplex(5);
        let input = connection(&[headers(b"\x41\x02/a"), frame(0, 0, &[7; 300])]);
        let expected = rewritten(&input, input.len());
        let writer = tokio::spawn(async move { client.write_all(&input).await });
        let (mut server, mut seen, mut small) = (AnyAuthority::new(server), Vec::new(), [0; 3]);
        loop {
            match server.read(&mut small).await.unwrap() {
                0 => break,
                count => seen.extend_from_slice(&small[..count]),
            }
        }
        writer.await.unwrap().unwrap();
        assert_eq!(seen, expected);
    }

    /// Type of the first frame of the answer to a health check with this authority.
    async fn answer(wrap: bool, authority: &[u8]) -> u8 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let incoming = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
        let server = Server::builder().add_service(tonic_health::server::health_reporter().1);
        let task = if wrap {
            let incoming = incoming.map(|stream| stream.map(AnyAuthority::new));
            tokio::spawn(server_with(server, incoming))
        } else {
            tokio::spawn(server_with(server, incoming))
        };
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(&health_check(authority)).await.unwrap();
        let kind = tokio::time::timeout(Duration::from_secs(10), first_on_stream(&mut client)).await.unwrap();
        task.abort();
        kind
    }

    async fn server_with<S, I>(server: tonic::transport::server::Router, incoming: I)
    where
        S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        I: futures_util::Stream<Item = io::Result<S>>,
    {
        server.serve_with_incoming(incoming).await.unwrap();
    }

    fn health_check(authority: &[u8]) -> Vec<u8> {
        let block = [
            b"\x83\x86\x44".as_slice(),
            &text(b"/grpc.health.v1.Health/Check"),
            b"\x41",
            authority,
            b"\x5f",
            &text(b"application/grpc"),
            b"\x40\x02te\x08trailers",
        ]
        .concat();
        let mut settings = frame(4, 0, b"");
        settings[8] = 0;
        connection(&[settings, headers(&block), frame(0, 1, &[0; 5])])
    }

    async fn first_on_stream(client: &mut UnixStream) -> u8 {
        loop {
            let mut header = [0; HEADER];
            client.read_exact(&mut header).await.unwrap();
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            client.read_exact(&mut vec![0; length as usize]).await.unwrap();
            if header[8] == 1 && [TYPE_HEADERS, 3].contains(&header[3]) {
                return header[3];
            }
        }
    }

    #[tokio::test]
    async fn t33_server_answers_what_it_would_reset() {
        const RST_STREAM: u8 = 3;
        for bad in [text(b"/run/x.sock"), text(b"run%2Fx.sock")] {
            assert_eq!(answer(false, &bad).await, RST_STREAM);
            assert_eq!(answer(true, &bad).await, TYPE_HEADERS);
        }
        let huffman = b"\x86\xa0\xe4\x1d\x13\x9d\x09";
        assert_eq!(answer(false, huffman).await, TYPE_HEADERS);
        assert_eq!(answer(true, huffman).await, TYPE_HEADERS);
        assert_eq!(answer(false, b"\x00").await, RST_STREAM);
        assert_eq!(answer(true, b"\x00").await, TYPE_HEADERS);
    }
}
