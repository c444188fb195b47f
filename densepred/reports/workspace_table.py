"""A panel of Weights & Biases that shows a logged table: the query `runs.summary[key]`, with the types it carries."""

from typing import Any

Type = dict[str, Any]


def _record(**properties: str | Type) -> Type:
    return {"type": "typedDict", "propertyTypes": properties}


def _tagged(tag: Type, value: str | Type) -> Type:
    return {"type": "tagged", "tag": tag, "value": value}


_PROJECT = _tagged(
    _record(entityName="string", projectName="string"), _record(project="project", filter="string", order="string")
)
_TABLE: Type = {"type": "file", "extension": "json", "wbObjectType": {"type": "table", "columnTypes": {}}}
_INTERNAL = _record(runtime="number")
_SUMMARIES = [
    _record(_wandb=_INTERNAL),
    _record(_step="number", table=_TABLE, _wandb=_INTERNAL, _runtime="number", _timestamp="number"),
]


def _of_runs(value: str | Type) -> Type:
    """A value for each of the project's runs."""
    return _tagged(_PROJECT, {"type": "list", "objectType": value, "maxLength": 50})


def _of_each_run(*members: str | Type) -> Type:
    return _of_runs(_tagged(_record(run="run"), {"type": "union", "members": list(members)}))


def table_config(key: str) -> Type:
    """The `config` of a panel of type Weave.

    Args:
        key: Of the table.

    Reference:
        WeavePanelSummaryTable of `wandb_workspaces.reports.v2` (the package wandb-workspaces).
    """
    runs = {"nodeType": "var", "type": _of_runs("run"), "varName": "runs"}
    summary = {
        "nodeType": "output",
        "type": _of_each_run(*_SUMMARIES),
        "fromOp": {"name": "run-summary", "inputs": {"run": runs}},
    }
    picked = {
        "nodeType": "output",
        "type": _of_each_run(_TABLE, "none"),
        "fromOp": {
            "name": "pick",
            "inputs": {"obj": summary, "key": {"nodeType": "const", "type": "string", "val": key}},
        },
    }
    return {"panel2Config": {"exp": {**picked, "__userInput": True}}}
