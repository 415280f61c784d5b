"""An OCI image layout in which every byte follows from what is put in."""

import datetime
import gzip
import hashlib
import io
import json
import shutil
import struct
import tarfile

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"


class Layout:
    """A layout under construction; `epoch` is the one time that stands in it."""

    def __init__(self, directory, epoch):
        self.directory, self.epoch = directory, epoch
        self.created = datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.attached = []
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "blobs/sha256").mkdir(parents=True)

    def blob(self, media_type, data):
        """Stores `data`; gives its descriptor."""
        name = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs/sha256" / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}

    def layer(self, files):
        """Stores {path: (mode, bytes)} as a layer, all of it root's; the digest of the plain tar comes along."""
        plain = tar_of(files, self.epoch)
        layer = self.blob(LAYER, gzip.compress(plain, compresslevel=9, mtime=0))
        return layer | {"plain": f"sha256:{hashlib.sha256(plain).hexdigest()}"}

    def image(self, arch, layer, config, labels):
        """Stores an image of one layer; gives its descriptor."""
        layer = dict(layer)
        config = self.blob(CONFIG, json_of({
            "architecture": arch,
            "os": "linux",
            "created": self.created,
            "config": config | {"Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [layer.pop("plain")]},
            "history": [{"created": self.created, "created_by": "image/build"}],
        }))
        manifest = self.blob(MANIFEST, json_of({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
            "annotations": labels,
        }))
        return manifest | {"platform": {"architecture": arch, "os": "linux"}}

    def attach(self, image, kind, data):
        """Adds an artifact that says of itself that it belongs to `image`."""
        self.attached.append(self.blob(MANIFEST, json_of({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": kind,
            "config": self.blob(EMPTY, b"{}"),
            "layers": [self.blob(kind, data)],
            "subject": {key: image[key] for key in ("mediaType", "digest", "size")},
            "annotations": {"org.opencontainers.image.created": self.created},
        })) | {"artifactType": kind})

    def finish(self, name, tag, images):
        """Writes what makes it a layout; gives the digest of the index of all platforms."""
        index = self.blob(INDEX, json_of({"schemaVersion": 2, "mediaType": INDEX, "manifests": images}))
        named = index | {"annotations": {
            "io.containerd.image.name": f"{name}:{tag}",
            "org.opencontainers.image.ref.name": tag,
        }}
        top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named, *self.attached]}
        (self.directory / "index.json").write_bytes(json_of(top))
        (self.directory / "oci-layout").write_bytes(json_of({"imageLayoutVersion": "1.0.0"}))
        return index["digest"]

    def archive(self, path):
        """Writes the layout as one tar."""
        files = {str(file.relative_to(self.directory)): (0o644, file.read_bytes())
                 for file in self.directory.rglob("*") if file.is_file()}
        path.write_bytes(tar_of(files, self.epoch))


def json_of(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def tar_of(files, epoch):
    """A tar of {path: (mode, bytes)} and the directories above them: sorted, of user 0, of one time."""
    directories = {str(above) for path in files for above in _above(path)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(directories | files.keys()):
            entry = tarfile.TarInfo(path)
            entry.mtime = epoch
            if path in files:
                entry.mode, data = files[path]
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            else:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
    return buffer.getvalue()


def _above(path):
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n + 1]) for n in range(len(parts))]


MACHINES = {62: "amd64", 183: "arm64"}
PT_DYNAMIC, PT_INTERP, DT_NEEDED = 2, 3, 1


def not_static(elf, arch):
    """What keeps `elf` from running alone on a Linux of `arch`, or None."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return "is not a 64-bit little-endian ELF file"
    machine = MACHINES.get(struct.unpack_from("<H", elf, 18)[0], "another machine")
    if machine != arch:
        return f"is for {machine}, not {arch}"
    start, = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    for at in range(start, start + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, at)
        if kind == PT_INTERP:
            return "asks for a dynamic loader"
        tags = struct.iter_unpack("<qQ", elf[offset:offset + length]) if kind == PT_DYNAMIC else ()
        if any(tag == DT_NEEDED for tag, _ in tags):
            return "needs shared libraries"
    return None
