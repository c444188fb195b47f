"""The layout as a saved workspace of Weights & Biases."""

import json
import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from densepred.errors import ConfigurationError
from densepred.reports.layout import Plot, layout
from densepred.reports.workspace_table import table_config

_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 6


def workspace(keys: Iterable[str], tasks: Iterable[str], stage: str = "val") -> dict[str, Any]:
    """A view of a project as Weights & Biases stores it (`spec` of a `project-view`).

    The curves stand in the sections of `layout`; panels, worst images, the table of IoU by class, the histogram of
    angles and the charts of `Diagnostics` follow the tasks' own, before the optimiser's and the machine's.

    Args:
        keys: Of the numbers that the runs log.
        tasks: Whose pictures to show.
        stage: Of the pictures.

    Reference:
        The models in `wandb_workspaces.workspaces.internal` (WorkspaceViewspec) and
        `wandb_workspaces.reports.v2.internal` (LinePlot, MediaBrowser) of the package wandb-workspaces.
    """
    keys, tasks = list(keys), list(tasks)
    curves = {name: [_line_plot(plot) for plot in plots] for name, plots in layout(keys).items()}
    last = {name: curves.pop(name) for name in ("Optimiser", "Balance", "Machine", "Other") if name in curves}
    pictures = {
        "Panels": [_media(f"panels/{stage}/{task}") for task in tasks],
        "Worst images": [_media(f"worst/{stage}/{task}") for task in tasks],
        "Diagnostics": _diagnostics(set(keys), tasks, stage),
    }
    every = curves | pictures | last
    sections = [
        _section(name, panels, name not in ("Balance", "Machine", "Other")) for name, panels in every.items() if panels
    ]
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


def _media(key: str) -> dict[str, Any]:
    return {"viewType": "Media Browser", "config": {"columnCount": 1, "mediaKeys": [key]}}


def _diagnostics(keys: set[str], tasks: Sequence[str], stage: str) -> list[dict[str, Any]]:
    """What `send_diagnostics` sends of each kind of task, told by the metrics that it logs."""
    panels = []
    for task in tasks:
        labels, angles, depth = (f"{stage}/{task}/{key}" in keys for key in ("miou", "mean_angle", "abs_rel"))
        if labels:
            panels.append({"viewType": "Weave", "config": table_config(f"iou/{stage}/{task}")})
        if angles:
            # a histogram over the steps: where the angles were, and where they went
            panels.append(_line_plot(Plot(f"{task}: angles", (f"angles/{stage}/{task}",))))
        if labels or angles or depth:
            panels.append(_media(f"diagnostics/{stage}/{task}"))
    return panels


def save_workspace(project: str, spec: dict[str, Any], title: str = "densepred") -> str:
    """Adds the view to a project on the server, under a name of its own, with the package wandb-workspaces.

    Args:
        project: `entity/project`.
        spec: As `workspace` makes it; it is checked by the package before anything is sent.
        title: What it is called there.

    Returns:
        The address at which the project opens with this view.

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
    try:
        internal.upsert_view2(view)
    except Exception as error:  # the package lets through whatever its client raises
        raise ConfigurationError(
            f"The workspace could not be saved in {project}: {error}. Log in (wandb login) and use a project that has "
            "a run already; the layout is written beside the page in any case."
        ) from error
    host = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("//api.", "//").rstrip("/")
    return f"{host}/{entity}/{name}?nw={internal._internal_name_to_url_query_str(view.name)}"
