"""Alerts and dashboard: promtool's judgement, and that no name in them is invented."""
import json
import pathlib
import re
import subprocess
import unittest

import helm
import yaml
from helm import CHART

HERE = pathlib.Path(__file__).resolve().parent
METRICS = HERE.parent.parent / "docs/reference/metrics.md"


def promtool(*args):
    return subprocess.run([helm.tools / "promtool", *args], capture_output=True, text=True)


def alerts():
    return yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"][0]["rules"]


def panels():
    return json.loads((CHART / "files/dashboard.json").read_text())["panels"]


def expressions():
    yield from (rule["expr"] for rule in alerts())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


def documented():
    """Metrics of the reference, with the series that a histogram has."""
    names = set()
    for line in METRICS.read_text().splitlines():
        if line.startswith("| `keyferry_"):
            first, _, what = line.strip("| ").split("|")[0], None, line
            for name in re.findall(r"`(keyferry_\w+)`", first):
                names.add(name)
                if "istogram" in what:
                    names |= {f"{name}_{suffix}" for suffix in ("bucket", "sum", "count")}
    return names


class Alerts(unittest.TestCase):
    def test_promtool_accepts_the_alerts(self):
        done = promtool("check", "rules", CHART / "files/alerts.yaml")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_each_alert_fires_and_rests_as_its_cases_say(self):
        done = promtool("test", "rules", HERE / "alerts.yaml")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_each_alert_has_a_case_that_fires_and_one_that_does_not(self):
        cases = [case for test in yaml.safe_load((HERE / "alerts.yaml").read_text())["tests"] for case in test["alert_rule_test"]]
        firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
        self.assertEqual(firing, {rule["alert"] for rule in alerts()})

    def test_each_alert_says_what_to_do(self):
        for rule in alerts():
            self.assertIn(rule["labels"]["severity"], ("critical", "warning", "info"), rule["alert"])
            self.assertEqual(set(rule["annotations"]), {"summary", "description"}, rule["alert"])


class Names(unittest.TestCase):
    def test_every_metric_of_alerts_and_dashboard_is_in_the_reference(self):
        known = documented()
        used = {name for expression in expressions() for name in re.findall(r"\bkeyferry_\w+", expression)}
        self.assertGreater(len(used), 10)
        self.assertEqual(used - known, set())

    def test_every_metric_of_the_reference_is_on_the_dashboard(self):
        shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
        plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in documented()}
        self.assertEqual({name for name in plain if name not in shown}, set())


class Dashboard(unittest.TestCase):
    def test_its_queries_are_promql(self):
        rules = []
        for panel in panels():
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$backend", ".*")
                self.assertNotIn("$", expression)
                rules.append({"record": "dashboard:query", "expr": expression, "labels": {"panel": f"{panel['id']}{target['refId']}"}})
        file = helm.kept / "dashboard-rules"
        file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
        done = promtool("check", "rules", file)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_panels_are_explained_and_do_not_overlap(self):
        self.assertEqual(len({panel["id"] for panel in panels()}), len(panels()))
        taken = set()
        for panel in panels():
            self.assertTrue(panel["title"] and panel["description"])
            place = panel["gridPos"]
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(place["x"] + place["w"], 24)
            taken |= cells
