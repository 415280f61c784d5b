"""Public validators judge what `keyferry check` and `keyferry schema` print.

Arguments: the binary, and the JSON schema of SARIF 2.1.0.
"""

import json
import pathlib
import subprocess
import sys

import jsonschema
import yaml

keyferry, sarif_schema = sys.argv[1:]
root = pathlib.Path(__file__).resolve().parents[2]


def run(*arguments, code=0):
    done = subprocess.run([keyferry, *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == code, (arguments, done.returncode, done.stderr)
    return done.stdout


def validator(schema):
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def documents(path):
    return [d for d in yaml.safe_load_all((root / path).read_text("utf-8-sig")) if d]


# SARIF: of many findings, of none, and of what cannot be read.
sarif = validator(json.loads(pathlib.Path(sarif_schema).read_text()))
results = 0
for arguments, code in [
    (["tests/cases/check"], 2),
    (["examples"], 0),
    (["examples", "no-such-file.yaml"], 1),
]:
    report = json.loads(run("check", "--output", "sarif", *arguments, code=code))
    sarif.validate(report)
    results += len(report["runs"][0]["results"])
assert results > 100, results

# The schemas: right classes pass, broken ones do not, and both for the reason that is meant.
classes = validator(json.loads(run("schema", "secretproviderclass")))
good = documents("examples/azure/class.yaml") + documents("examples/local/class.yaml")
for document in good:
    classes.validate(document)
for name, words in {
    "02-client-id-missing-vault": "keyvaultname",
    "16-parameters-no-texts": "True is not of type 'string'",
    "17-no-parameters": "'parameters' is a required property",
    "18-no-provider": "secretObject",
    "20-api-version-and-name": "secrets-store.csi.x-k8s.io/v2",
    "23-secret-types": "are valid under the given schema",
    "24-secret-form": "'type' is a required property",
}.items():
    path = f"tests/cases/check/{name}.yaml"
    errors = [e for document in documents(path) for e in classes.iter_errors(document)]
    heard = "\n".join(error.message for error in errors)
    assert words in heard, (name, heard)

azure, local = (validator(json.loads(run("schema", f"{name}-objects"))) for name in ("azure", "local"))
for document, judge in zip(good, (azure, local)):
    judge.validate(yaml.safe_load(document["spec"]["parameters"]["objects"]))
azure.validate(yaml.safe_load("[{objectName: a, objectType: secret, filePermission: 0644}]"))
for wrong in ("array: []", "[{objectName: a}]", "[{objectName: a, objectType: Secret}]", "- {objectname: a}"):
    assert not azure.is_valid(yaml.safe_load(wrong)), wrong
assert not local.is_valid([{"name": "a", "kye": "b"}])
print(f"SARIF: {results} results valid; schemas judge {len(good)} right and 7 broken files of classes")
