"""Renders the chart with both Helms, and keeps every rendering for kubeconform."""
import copy
import json
import pathlib
import subprocess
import tempfile

import yaml

CHART = pathlib.Path(__file__).resolve().parent.parent / "keyferry"
VERSION = "1.35.4"
tools = None                    # set by check.py
kept = pathlib.Path(tempfile.mkdtemp())
touched = set()                 # paths of values that some test has set
_seen = {}


class Refused(Exception):
    """Both Helms refused, with these words."""


def _paths(values, prefix=()):
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _paths(value, (*prefix, key))
    yield prefix


def _helm(number, values, kubernetes):
    file = kept / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = [tools / f"helm{number}", "template", "keyferry", CHART, "--namespace", "kube-system", "--kube-version", kubernetes, "-f", file]
    return subprocess.run(command, capture_output=True, text=True)


def text(values=None, kubernetes=VERSION):
    """What Helm 3 renders."""
    done = _helm(3, values or {}, kubernetes)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


class Objects:
    """The rendered objects, by kind and name."""

    def __init__(self, rendered):
        self.by_name = {}
        for one in yaml.safe_load_all(rendered):
            if one is not None:
                key = (one["kind"], one["metadata"]["name"])
                assert key not in self.by_name, f"{key} is rendered twice"
                self.by_name[key] = one

    def kinds(self):
        return sorted(kind for kind, _ in self.by_name)

    def one(self, kind, name="keyferry"):
        return self.by_name[(kind, name)]

    @property
    def pod(self):
        return self.one("DaemonSet")["spec"]["template"]["spec"]

    @property
    def container(self):
        (container,) = self.pod["containers"]
        return container

    @property
    def args(self):
        return self.container["args"]

    def arg(self, name):
        """Values of a flag, in order."""
        return [arg.split("=", 1)[1] for arg in self.args if arg.startswith(f"--{name}=")]

    def mount(self, name):
        (mount,) = [mount for mount in self.container["volumeMounts"] if mount["name"] == name]
        return mount

    def volume(self, name):
        (volume,) = [volume for volume in self.pod["volumes"] if volume["name"] == name]
        return {key: value for key, value in volume.items() if key != "name"}


def render(values=None, kubernetes=VERSION):
    """Objects as both Helms render them; fails if they differ."""
    values = values or {}
    touched.update(_paths(values))
    key = json.dumps([values, kubernetes], sort_keys=True)
    if key not in _seen:
        three, four = _helm(3, values, kubernetes), _helm(4, values, kubernetes)
        if three.returncode != 0 or four.returncode != 0:
            assert three.returncode != 0 and four.returncode != 0, "only one Helm refuses: " + three.stderr + four.stderr
            raise Refused(three.stderr)
        assert Objects(three.stdout).by_name == Objects(four.stdout).by_name, "Helm 3 and 4 render different objects"
        (kept / f"{len(_seen)}.yaml").write_text(three.stdout)
        _seen[key] = three.stdout
    return Objects(_seen[key])


def refusal(values, kubernetes=VERSION):
    """The words with which the chart refuses values."""
    try:
        render(copy.deepcopy(values), kubernetes)
    except Refused as refused:
        return str(refused)
    raise AssertionError(f"accepted: {values}")
