"""The layout as a saved workspace of Weights & Biases."""

import json
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from densepred.errors import ConfigurationError
from densepred.reports.layout import Plot, layout

_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 6


def workspace(keys: Iterable[str], tasks: Iterable[str], stage: str = "val") -> dict[str, Any]:
    """A view of a project as Weights & Biases stores it (`spec` of a `project-view`): curves in sections, and pictures.

    Args:
        keys: Of the numbers that the runs log.
        tasks: Whose pictures to show.
        stage: Of the pictures.

    Reference:
        The models in `wandb_workspaces.workspaces.internal` (WorkspaceViewspec) and
        `wandb_workspaces.reports.v2.internal` (LinePlot, MediaBrowser) of the package wandb-workspaces.
    """
    sections = [
        _section(name, [_line_plot(plot) for plot in plots], name not in ("Machine", "Other"))
        for name, plots in layout(keys).items()
    ]
    kinds = {"panels": "Panels", "worst": "Worst images", "diagnostics": "Diagnostics"}
    for kind, title in kinds.items():
        sections.append(_section(title, [_media(f"{kind}/{stage}/{task}", 1) for task in tasks], True))
    return {
        "section": {
            "panelBankConfig": {
                "state": 1,
                "settings": {"autoOrganizePrefix": 2, "showEmptySections": False, "sortAlphabetically": False},
                "sections": sections,
            },
            "panelBankSectionConfig": {"name": "Report Panels", "isOpen": False, "panels": [], "type": "grid"},
            "customRunColors": {},
            "name": "",
            "settings": {
                "smoothingWeight": 0,
                "smoothingType": "none",
                "xAxis": "trainer/global_step",
                "shouldAutoGeneratePanels": False,
            },
            "openRunSet": 0,
            "openViz": True,
        },
        "vizExpanded": False,
        "libraryExpanded": True,
    }


def _section(name: str, panels: list[dict[str, Any]], is_open: bool) -> dict[str, Any]:
    for index, panel in enumerate(panels):
        row, column = divmod(index, _COLUMNS)
        panel["layout"] = {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
    return {"name": name, "isOpen": is_open, "type": "flow", "sorted": 0, "panels": panels}


def _line_plot(plot: Plot) -> dict[str, Any]:
    config = {"chartTitle": plot.title, "metrics": list(plot.keys), "xAxis": "trainer/global_step"}
    return {"viewType": "Run History Line Plot", "config": config}


def _media(key: str, columns: int) -> dict[str, Any]:
    return {"viewType": "Media Browser", "config": {"columnCount": columns, "mediaKeys": [key]}}


def save_workspace(project: str, spec: dict[str, Any], title: str = "densepred") -> None:
    """Adds the view to a project on the server, under a name of its own, with the package wandb-workspaces.

    Args:
        project: `entity/project`.
        spec: As `workspace` makes it; it is checked by the package before anything is sent.
        title: What it is called there.

    Raises:
        ConfigurationError: If the package is not installed, or `project` is not of that form.
    """
    entity, slash, name = project.partition("/")
    if not (entity and slash and name) or "/" in name:
        raise ConfigurationError(f"Expected the project as ENTITY/PROJECT; got {project!r}.")
    if find_spec("wandb_workspaces") is None:
        raise ConfigurationError(
            "Saving a workspace needs the package wandb-workspaces: pip install 'wandb[workspaces]'. The layout is "
            "written beside the page in any case."
        )
    internal = import_module("wandb_workspaces.workspaces.internal")
    checked = internal.WorkspaceViewspec.model_validate(json.loads(json.dumps(spec)))
    view = internal.View(
        entity=entity, project=name, display_name=title, name=internal._generate_view_name(), id="", spec=checked
    )
    internal.upsert_view2(view)
