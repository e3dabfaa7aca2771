"""Makes the environment of a job's requirements and prints its interpreter's path: what a supervisor waits for.

A process of its own, as it may take minutes of `pip` and must end with the attempt; one environment for each text.

Usage: python -m macadam.adapters.job_environment DIRECTORY REQUIREMENTS_FILE
"""

import sys
from pathlib import Path

from macadam.adapters.subprocess_runner import SubprocessRunner
from macadam.errors import MacadamError


def main(directory: Path, requirements: Path) -> int:
    try:
        python = SubprocessRunner(directory).python(requirements.read_text(), _complain)
    except MacadamError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{python}\n")
    return 0


def _complain(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
