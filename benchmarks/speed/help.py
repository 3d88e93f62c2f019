"""`his2lip --help` against `python -c pass`. Limit: 0.5 s more.

python benchmarks/speed/help.py [--quick] [--out benchmarks/results/help.json]
"""

from __future__ import annotations

import subprocess
import sys

from _pairs import Program, arguments, compare, write

LIMIT_S = 0.5


def _call(*command: str) -> None:
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    """Measures both commands as processes and writes the difference of the medians."""
    args = arguments("help", "his2lip --help against python -c pass")
    pair = compare(
        Program("python -c pass", lambda: _call("-c", "pass")),
        Program("his2lip --help", lambda: _call("-m", "his2lip", "--help")),
        repeats=args.repeats if args.quick else max(args.repeats, 11),
    )
    medians = {name: side["median_s"] for name, side in pair["programs"].items()}
    over = medians["his2lip --help"] - medians["python -c pass"]
    write(
        args, {"over_python_s": over, "limit_s": LIMIT_S, **pair}, limits={"over_python_s": over <= LIMIT_S}
    )


if __name__ == "__main__":
    main()
