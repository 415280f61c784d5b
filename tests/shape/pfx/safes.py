"""Packs the bags of a PKCS#12 without encryption and MAC into another number of safes: 1 or 3."""
import sys


def items(data):
    at = 0
    while at < len(data):
        size, head = data[at + 1], 2
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(data[at + 2 : at + head], "big")
        yield data[at : at + head + size], data[at + head : at + head + size]
        at += head + size


def item(tag, content):
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def inside(data, *path):
    for number in path:
        data = list(items(data))[number][1]
    return data


DATA = bytes.fromhex("06092a864886f70d010701")
pfx = sys.stdin.buffer.read()
version = list(items(inside(pfx, 0)))[0][0]
safe = inside(pfx, 0, 1, 1, 0)
bags = []
for _, info in items(inside(safe, 0)):
    bags += [whole for whole, _ in items(inside(info, 1, 0, 0))]
groups = [bags] if sys.argv[1] == "1" else [bags[-1:], bags[:1], bags[1:-1]]


def data(content):
    return item(0x30, DATA + item(0xA0, item(0x04, content)))


safes = item(0x30, b"".join(data(item(0x30, b"".join(group))) for group in groups))
sys.stdout.buffer.write(item(0x30, version + data(safes)))
