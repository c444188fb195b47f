"""The house: which file may import which, and that importing densepred costs nothing."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import densepred

PACKAGE = Path(densepred.__file__).parent

# each room may import the rooms in the lines above its own (and, where listed, its own)
FLOORS = [
    {"errors", "lazy", "__init__"},
    {
        "features",
        "sample",
        "recipe",
        "blocks",
        "geometry",
        "largest",
        "plane_fit",
        "codewords",
        "manhattan",
        "palettes",
        "half_precision",
        "penalties",
        "schedules",
        "initialisers",
        "dense_block",
        "recomputation",
        "reports",
        "vouched",
        "yaml_text",
    },
    {"codebook", "losses", "metrics", "encoders", "decoders", "refine", "resume", "random_states", "parameter_groups"},
    {"tasks", "network", "balance"},
    {"module", "rays", "resuming", "hyperparameters", "torchvision_weights", "starting_weights", "anatomy"},
    {"callbacks", "inference", "evaluation", "loggers"},
    {"commands", "tuning", "checking"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
DATA_MAY_IMPORT = {"sample", "geometry", "errors", "lazy", "recipe", "palettes", "data"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Rooms that a file imports at run time, wherever in the file it does so; `if TYPE_CHECKING:` does not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    names = [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node not in skipped
    ]
    return {name.split(".")[1] for name in names if name.startswith("densepred.")}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward_only(path):
    here = room(path)
    if here == "data":
        assert imports(path) <= DATA_MAY_IMPORT
        return
    upward = {name for name in imports(path) if name != "data" and FLOOR[name] > FLOOR[here]}
    may_read = {"inference"}  # pictures of users
    sideways = {
        name for name in imports(path) if name == "data" and FLOOR[here] < FLOOR["commands"] and here not in may_read
    }
    assert upward | sideways == set()


def test_importing_densepred_and_the_front_of_the_command_line_imports_nothing_heavy():
    code = "import sys, densepred.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "pytorch_lightning", "numpy", "cv2", "albumentations", "torchvision", "wandb", "jsonargparse"}
    assert heavy & set(loaded) == set()


@pytest.mark.parametrize("code", ["import densepred", "from densepred.cli import main; main(['--help'])"])
def test_importing_densepred_and_its_help_take_at_most_150_ms_of_cpu(code: str):
    def cpu() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu() for _ in range(5)) <= 0.15  # the least: other processes only add


def test_no_room_is_a_drawer():
    drawers = {"utils", "util", "common", "helpers", "misc", "manager"}
    assert {path.stem for path in FILES} & drawers == set()
