"""What no run of the tests may pass over: `conftest.py` hands these hooks to pytest.

A skipped test looks like a passed one in the last line of a run.
On a developer's machine it may well stand for something that is not installed there.
Under ``CI=true`` on Linux, where everything can be installed, it is a failure.
On other systems the tests that need fork, named pipes or names that are no UTF-8 are skipped as ever.
"""

from __future__ import annotations

import doctest
import os
import sys
from collections.abc import Generator

import pytest


def everything_must_run() -> bool:
    return os.environ.get("CI") == "true" and sys.platform == "linux"


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that says why; an expected failure (xfail) is none."""
    if report.skipped and not hasattr(report, "wasxfail") and everything_must_run():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}\nCI=true: every test must run. Install what is missing here."


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_if_skipped(report)  # importorskip at the top of a module
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Examples of which no line is to run are prose, not tests that were skipped."""
    items[:] = [item for item in items if not is_prose(item)]


def is_prose(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.DoctestItem):
        return False
    return all(example.options.get(doctest.SKIP, False) for example in item.dtest.examples)
