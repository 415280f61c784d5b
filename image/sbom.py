"""Bill of materials of the binary in the image: CycloneDX 1.6.

Own code and not cargo-cyclonedx, because that lists what Cargo.lock resolves: macros, and features that only tests
switch on. `cargo tree` knows what is linked. It also cannot know of the C library and Rust's own, which are
linked in as well, nor of the authorities beside the binary.
"""

import datetime
import hashlib
import json
import pathlib
import re
import subprocess
import tomllib
import uuid

MEDIA_TYPE = "application/vnd.cyclonedx+json"
AUTHORITIES = "webpki-root-certs"


def make(root, target, cc, elf, epoch):
    """The document for the binary `elf`, made from the clone at `root` with the C compiler `cc`."""
    version_of = tomllib.loads((root / "Cargo.toml").read_text())["package"]["version"]
    sums = {(p["name"], p["version"]): p.get("checksum") for p in
            tomllib.loads((root / "Cargo.lock").read_text())["package"]}
    metadata = json.loads(run(root, "cargo", "metadata", "--locked", "--format-version=1",
                              f"--filter-platform={target}"))
    linked = linked_crates(root, target)
    packages = {p["id"]: p for p in metadata["packages"] if (p["name"], p["version"]) in linked}
    data = [p for p in metadata["packages"] if p["name"] == AUTHORITIES]
    own = next(p for p in packages.values() if (p["name"], p["version"]) == ("keyferry", version_of))
    crates = [crate(p, sums) for p in packages.values() if p is not own]
    libraries = [c_library(cc), c_runtime(cc), rust_library()]
    authorities = [crate(p, sums) | {"type": "data"} for p in data]
    components = sorted(crates + libraries + authorities, key=lambda c: c["bom-ref"])
    edges = {ref(packages[n["id"]]): sorted(ref(packages[d]) for d in n["dependencies"] if d in packages)
             for n in metadata["resolve"]["nodes"] if n["id"] in packages}
    edges[ref(own)] = sorted(edges[ref(own)] + [c["bom-ref"] for c in libraries + authorities])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": crate(own, sums) | {
                "type": "application",
                "hashes": [sha256(hashlib.sha256(elf).hexdigest())],
            },
            "properties": [{"name": "keyferry:target", "value": target}],
        },
        "components": components,
        "dependencies": [{"ref": name, "dependsOn": to} for name, to in sorted(edges.items())],
    }
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(content.encode()).digest()[:16], version=4)}"
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def linked_crates(root, target):
    """Name and version of all crates whose code goes into the binary."""
    lines = run(root, "cargo", "tree", "--locked", "--package=keyferry", "--edges=normal,no-proc-macro",
                f"--target={target}", "--prefix=none", "--format={p}").splitlines()
    return {(name, version.removeprefix("v")) for name, version in (line.split()[:2] for line in lines)}


def crate(package, sums):
    found = {
        "type": "library",
        "bom-ref": ref(package),
        "name": package["name"],
        "version": package["version"],
        "purl": ref(package),
        # The slash is an old spelling of OR.
        "licenses": [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}],
    }
    if checksum := sums[package["name"], package["version"]]:
        found["hashes"] = [sha256(checksum)]
    return found


def ref(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def sha256(content):
    return {"alg": "SHA-256", "content": content}


def c_library(cc):
    """The C library that `cc` links, as its archive says of itself."""
    archive = pathlib.Path(run(None, cc, "-print-file-name=libc.a").strip()).read_bytes()
    about, version = re.search(rb"GNU C Library \(([^)]*)\) [a-z]+ release version ([\d.]+\d)", archive).groups()
    maker, _, package = about.decode().rpartition(" ")
    if maker == "Debian GLIBC":
        return library(f"pkg:deb/debian/glibc@{package}?arch=source", "LGPL-2.1-or-later")
    return library(f"pkg:generic/glibc@{version.decode()}", "LGPL-2.1-or-later")


def c_runtime(cc):
    """What unwinds the stack: part of the C compiler."""
    version = run(None, cc, "-dumpfullversion").strip()
    return library(f"pkg:generic/libgcc@{version}", "GPL-3.0-or-later WITH GCC-exception-3.1")


def rust_library():
    version = run(None, "rustc", "--version").split()[1]
    return library(f"pkg:generic/rust-std@{version}", "MIT OR Apache-2.0")


def library(purl, license):
    name, version = purl.partition("?")[0].rsplit("/", 1)[1].split("@")
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
            "licenses": [{"expression": license}]}


def run(cwd, *command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout
