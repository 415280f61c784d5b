#!/usr/bin/env python3
"""check.py TOOLS [--bless]: everything about the chart. Ends with `charts: N passed, 0 failed`."""
import pathlib
import sys
import unittest

import helm
import kinds
import schemas

HERE = pathlib.Path(__file__).resolve().parent


class Result(unittest.TestResult):
    """Prints what failed, counts the rest."""

    passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        self.passed += error is None

    def report(self):
        for test, words in self.failures + self.errors:
            print(f"FAILED {test}\n{words}")
        for test, reason in self.skipped:
            print(f"left out: {test}: {reason}")


def main():
    helm.tools = pathlib.Path(sys.argv[1])
    kinds.bless = "--bless" in sys.argv
    lines = (HERE.parent / "tools" / "sources").read_text()
    kinds.schemas = helm.tools / f"schemas-{schemas.key(lines)}"
    schemas.write(lines, kinds.schemas)
    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    for name in ("switches", "refusals", "alerts", "kinds"):        # kinds last: it looks at what the others rendered
        suite.addTests(loader.loadTestsFromName(name))
    result = Result()
    suite.run(result)
    result.report()
    failed = len(result.failures) + len(result.errors)
    print(f"charts: {result.passed} passed, {failed} failed")
    sys.exit(1 if failed or not result.passed else 0)


main()
