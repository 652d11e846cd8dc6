"""Does every pinned package have a wheel elsewhere? pip resolves the lock for other platforms.

Nothing is installed and little is downloaded. What runs there is another question: only Linux on
x86-64 is tested.

    make platforms
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).with_name("cpu.lock")
LINUX = [f"manylinux_2_{minor}_aarch64" for minor in range(17, 36)]
PLATFORMS = {
    "Windows, x86-64": (["win_amd64"], ("win32", "nt", "AMD64", "Windows")),
    "macOS, ARM": (
        [
            f"macosx_{major}_0_{kind}"
            for major in (11, 12, 13, 14)
            for kind in ("arm64", "universal2")
        ],
        ("darwin", "posix", "arm64", "Darwin"),
    ),
    "Linux, ARM": (["manylinux2014_aarch64", *LINUX], ("linux", "posix", "aarch64", "Linux")),
}
VERSIONS = ("3.11", "3.13")


def missing(platforms: list[str], environment: dict[str, str]) -> list[str]:
    """Return the pinned packages without a wheel for a platform and a version of Python."""
    wanted = [Requirement(line) for line in LOCK.read_text().splitlines()]
    pins = [
        f"{r.name}{r.specifier}" for r in wanted if not r.marker or r.marker.evaluate(environment)
    ]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--dry-run", "--no-deps", "--only-binary=:all:", f"--target={folder}"]
        options.append("--ignore-requires-python")  # pip would ask for the one it runs on
        options += [f"--platform={name}" for name in platforms]
        options.append(f"--python-version={environment['python_full_version']}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", *options]
        return [] if _resolves(command, pins) else [p for p in pins if not _resolves(command, [p])]


def _resolves(command: list[str], pins: list[str]) -> bool:
    return subprocess.run([*command, *pins], capture_output=True, check=False).returncode == 0


def main() -> int:
    """Print a line for each platform and version; return 1 if a package is missing on any."""
    lacking = 0
    for name, (platforms, (system, family, machine, long_name)) in PLATFORMS.items():
        for version in VERSIONS:
            environment = {
                "sys_platform": system,
                "os_name": family,
                "platform_machine": machine,
                "platform_system": long_name,
                "python_version": version,
                "python_full_version": f"{version}.9",
                "implementation_name": "cpython",
                "platform_python_implementation": "CPython",
            }
            found = missing(platforms, environment)
            lacking += len(found)
            print(f"{name}, Python {version}: {', '.join(found) or 'complete'}", flush=True)
    return int(lacking > 0)


if __name__ == "__main__":
    raise SystemExit(main())
