"""on_api_server.py TOOLS SCHEMAS RENDERINGS: what only an API server can tell, with KUBECONFIG and KUBECTL of a fresh one.

Every rendering is accepted; both Helms install, upgrade, roll back and remove without a trace; the admission rules hold.
"""
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
CHART = HERE.parent / "keyferry"
KUBECTL = os.environ["KUBECTL"]
OURS = ["daemonsets", "serviceaccounts", "configmaps", "networkpolicies", "podmonitors", "prometheusrules"]
CLUSTER = ["validatingadmissionpolicies", "validatingadmissionpolicybindings", "clusterroles", "clusterrolebindings"]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def installed():
    """Names of what carries our label, with the label's version."""
    found = []
    for kinds, scope in ((OURS + ["roles", "rolebindings"], ["-n", "kube-system"]), (CLUSTER, [])):
        answer = run(KUBECTL, "get", ",".join(kinds), *scope, "-l", "app.kubernetes.io/name=keyferry", "-o", "json")
        found += sorted((one["kind"], one["metadata"]["name"]) for one in json.loads(answer)["items"])
    return found


def accepts(renderings):
    for file in renderings:
        run(KUBECTL, "apply", "--dry-run=server", "-f", file)
    return len(renderings)


def lives(helm):
    """One release from its beginning to its end."""
    values = HERE / "values"
    release = ["keyferry", CHART, "-n", "kube-system"]
    default = [("DaemonSet", "keyferry"), ("ServiceAccount", "keyferry")]
    run(helm, "install", *release)
    assert installed() == default, installed()
    run(helm, "upgrade", *release, "-f", values / "everything.yaml")
    kinds = [kind for kind, _ in installed()]
    assert kinds.count("ConfigMap") == 3 and kinds.count("ValidatingAdmissionPolicy") == 2, kinds
    run(helm, "upgrade", *release, "--reset-values", "-f", values / "host-network.yaml")
    run(helm, "rollback", "keyferry", "1", "-n", "kube-system")
    assert installed() == default, installed()
    run(helm, "uninstall", "keyferry", "-n", "kube-system")
    assert installed() == [], installed()


def main():
    tools, schemas, renderings = map(pathlib.Path, sys.argv[1:4])
    for crd in sorted(schemas.glob("*.yaml")):
        run(KUBECTL, "apply", "--server-side", "-f", crd)
        run(KUBECTL, "wait", "--for=condition=Established", "--timeout=60s", "-f", crd)
    run(KUBECTL, "create", "namespace", "ours")      # of the rendering with namespaceOverride
    print(f"accepted: {accepts(sorted(renderings.glob('[0-9]*.yaml')))} renderings")
    for number in (3, 4):
        lives(tools / f"helm{number}")
        print(f"helm {number}: installed, upgraded, rolled back, removed")
    crds = schemas / "secrets-store.csi.x-k8s.io_secretproviderclasses.yaml"
    print(run(sys.executable, HERE / "admission/run", renderings / "admission", crds))


main()
