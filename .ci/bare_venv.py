"""Make a virtual environment with what installing the package alone would bring: the wheel must do without extras.

    python -m build --wheel --outdir DIST && PYTHONPATH=. python .ci/bare_venv.py FOLDER DIST/*.whl

The packages it needs are links to those of the Python that runs this, so it takes seconds and nothing is fetched; the
wheel itself is installed.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path, PurePosixPath

from benchmarks.install import PACKAGE, brought_by


def main() -> None:
    """Make FOLDER from the wheel."""
    folder, wheel = Path(sys.argv[1]), Path(sys.argv[2])
    venv.EnvBuilder(symlinks=True).create(folder)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
    link_packages(target)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    subprocess.run([*pip, "check"], check=True)


def link_packages(target: Path) -> None:
    """Link whatever lies at the top of site-packages for each package that ours needs."""
    for name, package in brought_by(PACKAGE).items():
        if name == PACKAGE:
            continue
        tops = {PurePosixPath(str(file)).parts[0] for file in package.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (target / top).exists():  # nvidia/ is that of several packages
                (target / top).symlink_to(Path(str(package.locate_file(top))))


if __name__ == "__main__":
    if sysconfig.get_platform().startswith("win"):
        sys.exit("not for Windows: links need rights there")
    main()
