"""The reference pages, built from the docstrings: every module has one, and nothing warns."""

import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

import densepred

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    pytest.importorskip("pdoc", reason="pdoc is in the dev extra")
    folder = tmp_path_factory.mktemp("pages")
    built = [sys.executable, str(ROOT / ".docs" / "build.py"), str(folder)]
    run = subprocess.run(built, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 warnings" in run.stdout
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_module_has_a_page_without_warnings_and_exported_names_lead_to_theirs(pages):
    package = Path(densepred.__file__).parent
    files = [path.relative_to(package.parent) for path in package.rglob("*.py") if not path.stem.startswith("_")]
    missing = [path for path in files if not (pages / path.with_suffix(".html")).is_file()]
    assert missing == []
    decoders = unescape((pages / "densepred" / "decoders.html").read_text())
    assert 'href="decoders/unet.html#UNetDecoder"' in decoders
    assert "Arguments:" in unescape((pages / "densepred" / "decoders" / "unet.html").read_text())
