"""JSON schemas for kubeconform, made from the sources that Kubernetes, the driver and the Prometheus operator publish as Go modules."""
import copy
import hashlib
import json
import os
import pathlib
import subprocess

import yaml

KINDS = {"ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "NetworkPolicy", "ServiceAccount", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
CRDS = [
    ("prometheus-operator", "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml"),
    ("prometheus-operator", "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"),
    ("secrets-store-csi-driver", "deploy/secrets-store.csi.x-k8s.io_secretproviderclasses.yaml"),
]


def key(lines):
    """Changes with the sources and with this file."""
    return hashlib.sha256(lines.encode() + pathlib.Path(__file__).read_bytes()).hexdigest()[:16]


def sources(lines):
    """Directories of the pinned modules, downloaded by the Go tool and compared with their hashes."""
    found = {}
    for line in lines.split("\n"):
        if not line:
            continue
        module, version, want = line.split()
        answer = subprocess.run(
            ["go", "mod", "download", "-json", f"{module}@{version}"],
            env={**os.environ, "GOTOOLCHAIN": "local"}, cwd="/", capture_output=True, text=True,
        )
        facts = json.loads(answer.stdout or "{}")
        if facts.get("Sum") != want:
            raise SystemExit(f"{module}@{version}: hash is {facts.get('Sum')}, not {want}: {facts.get('Error', answer.stderr)}")
        found[module.rsplit("/", 1)[1]] = pathlib.Path(facts["Dir"])
    return found


def strict(schema):
    """Unknown members are errors; numbers with units and ports by name are texts or numbers."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return {"type": ["string", "integer"]}
    schema = {key: value for key, value in schema.items() if key not in ("description", "format")}
    for key, value in schema.items():
        names = key in ("properties", "patternProperties") and isinstance(value, dict)
        schema[key] = {name: strict(one) for name, one in value.items()} if names else strict(value)
    if "properties" in schema and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    return schema


def of_kubernetes(swagger):
    """(kind, group, version, schema) of each kind that the chart renders."""
    definitions = json.loads(swagger.read_text())["definitions"]
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"]}
    for name, definition in definitions.items():
        gvks = definition.get("x-kubernetes-group-version-kind", [])
        if len(gvks) != 1 or gvks[0]["kind"] not in KINDS:
            continue
        needed, todo = {}, [name]
        while todo:
            one = todo.pop()
            if one not in needed:
                needed[one] = strict(copy.deepcopy(definitions[one]))
                todo += references(definitions[one])
        gvk = gvks[0]
        yield gvk["kind"], gvk["group"], gvk["version"], {"definitions": needed, "$ref": f"#/definitions/{name}"}


def references(schema):
    if isinstance(schema, list):
        return [name for one in schema for name in references(one)]
    if not isinstance(schema, dict):
        return []
    own = schema.get("$ref")
    found = [own.removeprefix("#/definitions/")] if isinstance(own, str) else []
    return found + [name for value in schema.values() for name in references(value)]


def of_crd(path):
    crd = yaml.safe_load(path.read_text())["spec"]
    for version in crd["versions"]:
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        yield crd["names"]["kind"], crd["group"], version["name"], schema


def write(lines, directory):
    """Writes one file a kind, as kubeconform looks for them, unless that was done before."""
    done = directory / "complete"
    if done.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    modules = sources(lines)
    kinds = list(of_kubernetes(modules["kubernetes"] / "api/openapi-spec/swagger.json"))
    for module, path in CRDS:
        kinds += of_crd(modules[module] / path)
        (directory / pathlib.Path(path).name).write_text((modules[module] / path).read_text())
    for kind, group, version, schema in kinds:
        parts = [kind.lower(), *([group.split(".")[0]] if group else []), version]
        (directory / ("-".join(parts) + ".json")).write_text(json.dumps(schema))
    done.touch()
