"""The chart as a whole: lint, every rendering against Kubernetes' schemas, values files, deploy/, the API server."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import helm
import yaml
from helm import CHART, render

HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
VALUES = sorted((HERE / "values").glob("*.yaml"))
MANIFEST = REPOSITORY / "deploy/keyferry.yaml"
schemas = None      # set by check.py
bless = False


def run(*command, **more):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)


def notes(values):
    """The notes; Helm shows them only with a cluster, so a copy of the chart renders them into an object."""
    with tempfile.TemporaryDirectory() as directory:
        chart = shutil.copytree(CHART, f"{directory}/keyferry")
        text = pathlib.Path(chart, "templates/NOTES.txt").rename(f"{chart}/files/NOTES.txt").name
        template = '{"apiVersion": "v1", "kind": "Notes", "metadata": {"name": "n"}, "text": {{ tpl (.Files.Get "files/%s") . | toJson }}}'
        pathlib.Path(chart, "templates/notes.yaml").write_text(template % text)
        file = pathlib.Path(directory, "values")
        file.write_text(yaml.safe_dump(values))
        done = run(helm.tools / "helm3", "template", "keyferry", chart, "--kube-version", helm.VERSION, "-s", "templates/notes.yaml", "-f", file)
        assert done.returncode == 0, done.stderr
        return yaml.safe_load(done.stdout)["text"]


def manifest():
    """The default rendering, without what only Helm wants."""
    text = helm.text({})
    lines = [line for line in text.splitlines() if "managed-by: Helm" not in line and "helm.sh/chart:" not in line and not line.startswith("# Source:")]
    lines = [line for line in lines if "app.kubernetes.io/instance" not in line]
    return "# Made from charts/keyferry with its default values: charts/check --bless\n" + "\n".join(lines) + "\n"


class A_Values(unittest.TestCase):
    def test_lint_with_each_values_file(self):
        for file in VALUES:
            for number in (3, 4):
                with self.subTest(f"helm {number}, {file.name}"):
                    done = run(helm.tools / f"helm{number}", "lint", "--strict", "--kube-version", helm.VERSION, "-f", file, CHART)
                    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_render_with_each_values_file(self):
        for file in VALUES:
            with self.subTest(file.name):
                self.assertIn("DaemonSet", render(yaml.safe_load(file.read_text()) or {}).kinds())

    def test_oldest_kubernetes_renders(self):
        self.assertEqual(render({}, kubernetes="1.25.0").kinds(), ["DaemonSet", "ServiceAccount"])

    def test_notes(self):
        self.assertIn("A node's page:", notes({}))
        self.assertIn("No policy: every namespace may use every store", notes({}))
        self.assertIn("waits up to 600 s for the sockets of azure", notes({"replaces": ["azure"]}))
        self.assertIn("with hostNetwork the NetworkPolicy has no effect", notes({"hostNetwork": True, "networkPolicy": {"enabled": True}}))
        self.assertNotIn("tokenRequests", notes({"azure": {"enabled": False}, "local": {"enabled": True, "source": {"emptyDir": {}}}}))


class B_Whole(unittest.TestCase):
    def test_every_value_has_a_test_that_sets_it(self):
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        untested = [".".join(path) for path in leaves(defaults) if path not in helm.touched]
        self.assertEqual(untested, [])

    def test_every_value_is_in_the_schema_and_none_else(self):
        schema = json.loads((CHART / "values.schema.json").read_text())
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        self.assertEqual(set(schema["properties"]) - {"global", "enabled"}, set(defaults))
        self.assertIs(schema["additionalProperties"], False)

    def test_versions_are_those_of_the_program(self):
        version = re.search(r'^version = "(.+)"', (REPOSITORY / "Cargo.toml").read_text(), re.M).group(1)
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((chart["version"], chart["appVersion"]), (version, version))

    def test_deploy_is_the_default_rendering(self):
        if bless:
            MANIFEST.parent.mkdir(exist_ok=True)
            MANIFEST.write_text(manifest())
        self.assertEqual(MANIFEST.read_text(), manifest(), "charts/check --bless writes it anew")


class C_Schemas(unittest.TestCase):
    def conform(self, *files):
        return run(helm.tools / "kubeconform", "-strict", "-schema-location", f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", *files)

    def test_kubeconform_accepts_every_rendering(self):
        files = sorted(helm.kept.glob("[0-9]*.yaml"))
        self.assertGreater(len(files), 40)
        classes = sorted(REPOSITORY.glob("examples/*/class.yaml"))
        done = self.conform(*files, *classes, MANIFEST)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_kubeconform_would_see_a_mistake(self):
        wrong = helm.kept / "wrong.yaml"
        for old, new in (("hostPath:", "hostpath:"), ("minReadySeconds: 5", "minReadySeconds: five"), ("dnsPolicy: ClusterFirst", "dnsPolicy: 1")):
            self.assertIn(old, MANIFEST.read_text())
            wrong.write_text(MANIFEST.read_text().replace(old, new))
            self.assertNotEqual(self.conform(wrong).returncode, 0, new)


class D_ApiServer(unittest.TestCase):
    def test_api_server_accepts_all_and_enforces_the_rules(self):
        directory = os.environ.get("KEYFERRY_KUBE")
        if not directory:
            self.skipTest("no etcd, kube-apiserver and kubectl: e2e/build makes them")
        (helm.kept / "admission").write_text(helm.text(yaml.safe_load((HERE / "admission/values.yaml").read_text())))
        script = [sys.executable, HERE / "on_api_server.py", helm.tools, schemas, helm.kept]
        environment = {**os.environ, "KUBECTL": f"{directory}/kubectl", "HELM_CACHE_HOME": str(helm.kept), "HELM_CONFIG_HOME": str(helm.kept)}
        done = run(HERE / "admission/with-api-server", directory, *script, env=environment)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        print(done.stdout.strip())


def leaves(values, prefix=()):
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("requests", "limits") and prefix + (key,) not in (("affinity",), ("nodeSelector",)):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)
