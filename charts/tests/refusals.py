"""What the chart refuses, and with which words."""
import unittest

from helm import refusal

ONE = {"name": "a", "namespaces": ["x"]}

SCHEMA = {
    "unknown value": ({"bogus": 1}, "additional properties 'bogus' not allowed"),
    "unknown value below": ({"azure": {"cloud": "x"}}, "at '/azure': additional properties 'cloud' not allowed"),
    "unknown cloud": ({"azure": {"cloudName": "Azure"}}, "at '/azure/cloudName': value must be one of 'AzurePublicCloud'"),
    "unknown vendor": ({"replaces": ["oracle"]}, "at '/replaces/0': value must be one of 'azure', 'vault', 'gcp', 'aws'"),
    "unknown vendor without a list": ({"replaces": "oracle"}, "at '/replaces': value must be one of '', 'azure', 'vault', 'gcp', 'aws'"),
    "relative directory": ({"socketDirs": ["run/p"]}, "at '/socketDirs/0': 'run/p' does not match pattern"),
    "no directory": ({"socketDirs": []}, "at '/socketDirs': minItems: got 0, want 1"),
    "directory too long for a socket": ({"socketDirs": ["/" + "d" * 95]}, "at '/socketDirs/0': maxLength"),
    "half a digest": ({"image": {"digest": "sha256:1"}}, "at '/image/digest': 'sha256:1' does not match pattern"),
    "time without unit": ({"limits": {"startMaxAge": "5"}}, "at '/limits/startMaxAge': '5' does not match pattern"),
    "time as number": ({"limits": {"repeatMaxAge": 5}}, "at '/limits/repeatMaxAge': maximum: got 5, want 0"),
    "argument without dashes": ({"extraArgs": ["tries=2"]}, "at '/extraArgs/0': 'tries=2' does not match pattern '^--'"),
    "bare IPv6": ({"metrics": {"address": "::"}}, "at '/metrics/address': '::' does not match pattern"),
    "rule without namespaces": ({"policy": {"rules": [{"name": "a"}]}}, "at '/policy/rules/0': missing property 'namespaces'"),
    "rule without name": ({"policy": {"rules": [{"namespaces": ["x"]}]}}, "at '/policy/rules/0': missing property 'name'"),
    "rule with a typo": ({"policy": {"rules": [{**ONE, "address": ["x"]}]}}, "at '/policy/rules/0': additional properties 'address' not allowed"),
    "rule for a backend that is not there": ({"policy": {"rules": [{**ONE, "backends": ["vault"]}]}}, "value must be one of 'azure', 'local'"),
    "namespace that is none": ({"policy": {"rules": [{"name": "a", "namespaces": ["Shop"]}]}}, "at '/policy/rules/0/namespaces/0': 'Shop' does not match"),
    "unknown action": ({"policy": {"admission": {"actions": ["Refuse"]}}}, "at '/policy/admission/actions/0': value must be one of 'Deny', 'Warn', 'Audit'"),
    "two volumes for the local store": (
        {"local": {"enabled": True, "source": {"secret": {"secretName": "s"}, "hostPath": {"path": "/p"}}}}, "at '/local/source': maxProperties: got 2, want 1",
    ),
    "surge that is no number": ({"updateStrategy": {"rollingUpdate": {"maxSurge": "all"}}}, "at '/updateStrategy/rollingUpdate/maxSurge': 'all' does not match"),
}
TEMPLATE = {
    **{
        f"replaces {vendor}": ({"replaces": [vendor]}, f'replaces: "{vendor}": this version of keyferry has no backend for it yet; it can replace: azure')
        for vendor in ("vault", "gcp", "aws")
    },
    "replaces vault without a list": ({"replaces": "vault"}, 'replaces: "vault": this version of keyferry has no backend for it yet'),
    "no backend": ({"azure": {"enabled": False}}, "no backend is switched on: set azure.enabled or local.enabled to true"),
    "local store without a volume": ({"local": {"enabled": True}}, "local.source has 0 volume sources; local.enabled needs exactly one, such as hostPath"),
    "one port for two": ({"metrics": {"port": 8990}}, "metrics.port and admin.port are both 8990; give them different ports"),
    "rule twice": ({"policy": {"rules": [ONE, ONE]}}, 'policy.rules: the name "a" is given twice; refusals name their rule, so each needs its own'),
    "admission without rules": ({"policy": {"admission": {"enabled": True}}}, "policy.admission.enabled needs policy.rules: without a rule everything is allowed"),
}


class Refusals(unittest.TestCase):
    def test_schema_names_the_place(self):
        for name, (values, words) in SCHEMA.items():
            with self.subTest(name):
                self.assertIn(words, refusal(values))

    def test_templates_say_what_to_do(self):
        for name, (values, words) in TEMPLATE.items():
            with self.subTest(name):
                self.assertIn(words, refusal(values))

    def test_admission_needs_kubernetes_1_30(self):
        words = refusal({"policy": {"rules": [ONE], "admission": {"enabled": True}}}, kubernetes="1.29.9")
        self.assertIn("policy.admission.enabled needs Kubernetes 1.30 or newer, this is v1.29.9; the server enforces policy.rules", words)

    def test_old_kubernetes(self):
        self.assertIn("chart requires kubeVersion: >=1.25.0-0", refusal({}, kubernetes="1.24.0"))
