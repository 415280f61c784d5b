"""Calls servers through C-core gRPC with its default authority (tracker T33, T47)."""

import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import grpc


def field(number, payload):
    """One length-delimited field of a protobuf message."""
    size, length = len(payload), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def request(root):
    attributes = {
        "objects": "- name: canary\n",
        "secretProviderClass": "c",
        "csi.storage.k8s.io/pod.name": "p",
        "csi.storage.k8s.io/pod.namespace": "n",
        "csi.storage.k8s.io/pod.uid": "u",
    }
    parts = [json.dumps(attributes), "null", f"{root}/u/mount", "420"]
    return b"".join(field(i + 1, text.encode()) for i, text in enumerate(parts))


def serve(binary, root, name):
    """Starts a server at the sockets in `root` and waits until it is ready."""
    log = root / name
    server = subprocess.Popen(
        [binary, "serve", "--backends", "local", "--local-root", root / "secrets", "--socket-dir", root, "--admin-addr", "127.0.0.1:0"],
        stderr=log.open("w"),
    )
    deadline = time.monotonic() + 20
    while " ready " not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    return server


def upgrade(binary, root):
    """Calls all the time over one channel while one server relieves another (tracker T47)."""
    servers = [serve(binary, root, "old")]
    failures, mounted, stop = [], [0], threading.Event()

    def calls():
        with grpc.insecure_channel(f"unix:{root}/local.sock") as channel:
            mount = channel.unary_unary("/v1alpha1.CSIDriverProvider/Mount")
            while not stop.is_set():
                try:
                    assert b"marker-value" in mount(request(root), timeout=30)
                    mounted[0] += 1
                except grpc.RpcError as error:
                    failures.append(error)

    def more(count):
        want, deadline = mounted[0] + count, time.monotonic() + 30
        while mounted[0] < want and time.monotonic() < deadline:
            time.sleep(0.01)

    caller = threading.Thread(target=calls)
    caller.start()
    try:
        for turn in range(3):
            more(100)
            servers.append(serve(binary, root, f"new-{turn}"))
            more(100)
            servers[-2].terminate()
            assert servers[-2].wait(20) == 0
        more(100)
    finally:
        stop.set()
        caller.join()
        for server in servers:
            server.terminate()
            server.wait(20)
    assert not failures and mounted[0] >= 700, (mounted, failures)
    return mounted[0]


def main(binary):
    passed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "secrets").mkdir()
        (root / "secrets/canary").write_text("marker-value")
        print(f"{upgrade(binary, root)} mounts during three upgrades, none failed")
        passed += 1
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        (root / "secrets").mkdir()
        (root / "secrets/canary").write_text("marker-value")
        server = subprocess.Popen(
            [binary, "serve", "--local-root", root / "secrets", "--socket-dir", root, "--admin-addr", "127.0.0.1:0"],
            stderr=(root / "log").open("w"),
        )
        try:
            deadline = time.monotonic() + 20
            while not (root / "local.sock").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            with grpc.insecure_channel(f"unix:{root}/local.sock") as channel:
                mount = channel.unary_unary("/v1alpha1.CSIDriverProvider/Mount")
                version = channel.unary_unary("/v1alpha1.CSIDriverProvider/Version")
                assert b"keyferry" in version(field(1, b"v1alpha1"), timeout=5)
                passed += 1
                # A new timeout and metadata key each time, so that the header table evicts.
                for turn in range(300):
                    metadata = [(f"x-turn-{turn % 90}", "v" * (turn % 600))]
                    answer = mount(request(root), timeout=30 + turn / 7, metadata=metadata)
                    assert b"marker-value" in answer, turn
                passed += 1
                try:
                    mount(field(1, b"rubbish"), timeout=5)
                    raise AssertionError("rubbish was accepted")
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
                passed += 1
        finally:
            server.terminate()
            server.wait(20)
        assert server.returncode == 0, server.returncode
        assert not (root / "local.sock").exists(), "the socket is left behind"
        assert "marker-value" not in (root / "log").read_text()
        passed += 1
    print(f"{passed} passed, 0 failed")


if __name__ == "__main__":
    main(sys.argv[1])
