"""Calls a server through C-core gRPC with its default authority (tracker T33)."""

import json
import pathlib
import subprocess
import sys
import tempfile
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


def main(binary):
    passed = 0
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
