from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MODULE = '''
"""
>>> print("not run")  # doctest: +SKIP
"""
import pytest

def one():
    """
    >>> undefined  # doctest: +SKIP
    >>> 1 + 1
    2
    """

@pytest.mark.skipif(True, reason="no browser here")
def test_by_mark(): ...

def test_by_call():
    pytest.skip("no cluster here")

@pytest.mark.xfail
def test_expected_to_fail():
    raise ValueError

def test_runs(): ...
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    hooks = ["pytest_collection_modifyitems", "pytest_make_collect_report", "pytest_runtest_makereport"]
    (tmp_path / "conftest.py").write_text(f"from no_skips import {', '.join(hooks)}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --doctest-modules\n")
    (tmp_path / "test_some.py").write_text(MODULE)
    return tmp_path


def run(project: Path, ci: str) -> subprocess.CompletedProcess[str]:
    alone = {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = {**os.environ, **alone, "CI": ci}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_developer_may_skip(project: Path) -> None:
    done = run(project, "")
    assert done.returncode == 0
    assert "2 passed, 2 skipped, 1 xfailed" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere some tests have to be skipped")
def test_under_ci_a_skip_fails_and_says_why(project: Path) -> None:
    (project / "test_module.py").write_text('import pytest\npytest.importorskip("no_such_module")\n')
    done = run(project, "true")
    assert done.returncode == 2  # the module that could not be collected
    assert "could not import 'no_such_module'" in done.stdout
    (project / "test_module.py").unlink()
    done = run(project, "true")
    assert done.returncode == 1
    assert "1 failed, 2 passed, 1 xfailed, 1 error" in done.stdout
    for reason in ("no browser here", "no cluster here", "CI=true: every test must run"):
        assert reason in done.stdout
