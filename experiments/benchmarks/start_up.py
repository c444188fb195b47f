"""How long `densepred` takes to start: wall time of fresh processes, beside Python and PyTorch Lightning themselves.

    python experiments/benchmarks/start_up.py [--rounds 10] [--quick]

Processes take turns, so that what else the machine does hits all alike; the first round, which fills the file system's
cache, is not counted. Printed are the median, the lowest and the highest, and how many times as long as
`import pytorch_lightning` each takes: the median of the ratios within a round, and their range.
"""

import argparse
import statistics
import subprocess
import sys
import time

LIGHTNING = "import pytorch_lightning"
COMMANDS: dict[str, list[str]] = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    LIGHTNING: ["-c", LIGHTNING],
    "densepred --help": ["-m", "densepred", "--help"],
    "densepred predict --help": ["-m", "densepred", "predict", "--help"],
    "densepred fit --help": ["-m", "densepred", "fit", "--help"],
    "import densepred": ["-c", "import densepred"],
    "import densepred.inference": ["-c", "import densepred.inference"],
    "its Predictor": ["-c", "from densepred.inference import Predictor"],
}
"""What follows the interpreter; `python -m densepred` is what the command `densepred` runs."""


def seconds(arguments: list[str]) -> float:
    """Of a process of its own, which must end well."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds in every round, by command."""
    measured: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            taken = seconds(arguments)
            measured[name] += [taken] if turn else []
    return measured


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it runs")
    arguments = parser.parse_args()
    measured = measure(1 if arguments.quick else arguments.rounds)
    print(f"| process | seconds | times {LIGHTNING} |\n|---|---|---|")
    for name, taken in measured.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, measured[LIGHTNING], strict=True)]
        print(f"| `{name}` | {spread(taken)} | {spread(ratios)} |")


if __name__ == "__main__":
    main()
