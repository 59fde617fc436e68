"""docs/security.md promises nothing that no test holds."""

import ast
import re

from support.repository import ROOT


def test_every_promise_names_tests_that_are_there():
    promised = (
        (ROOT / "docs" / "security.md").read_text().partition("## What is promised")[2].partition("## What is not")[0]
    )
    promises = re.findall(r"^- .*?(?=^- |^\n|\Z)", promised, re.M | re.S)
    assert len(promises) > 10
    trees = (ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))
    tests = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for promise in promises:
        named = re.findall(r"test_\w+", promise)
        assert named, promise
        assert set(named) <= tests, set(named) - tests
