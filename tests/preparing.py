"""What the tests of `densepred prepare` share: running it, and comparing folders."""

import argparse
from pathlib import Path

from densepred.commands import prepare


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    return prepare.run(parser.parse_args([str(word) for word in words]))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
