"""How long a person waits before anything happens: `upcycle --help` and `import upcycle`, whole processes.

Run from the repository's root: `python -m benchmarks.startup`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.common import alternate, record


def main() -> None:
    """Time, print and record."""
    commands = {
        "upcycle --help": [str(Path(sys.executable).parent / "upcycle"), "--help"],
        "import upcycle": [sys.executable, "-c", "import upcycle"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    runs = {name: lambda words=words: subprocess.run(words, check=True, capture_output=True)
            for name, words in commands.items()}  # fmt: skip
    seconds = {name: round(min(times), 4) for name, times in alternate(runs, 9).items()}
    print(seconds)
    print(record("startup", {"seconds": seconds}, repetitions=9))


if __name__ == "__main__":
    main()
