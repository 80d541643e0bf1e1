"""A prepared view of an experiment in MLflow's pages: columns and a chart, as they are when a user has chosen and shared them.

MLflow 3 keeps a shared view as a tag of the experiment, `mlflow.sharedViewState.<key>`, with the state of its page as JSON; the address
`…/runs?viewStateShareKey=<key>` opens it. The names of the keys are those of the page's own code (docs/reference/libraries.md §3).
"""

import json

SHARE_KEY = "crux"
"""The key of crux's view in the address and in the tag."""

COLUMNS = (
    "params.`sparsity`",
    "metrics.`final/l0`",
    "metrics.`final/ce_increase`",
    "metrics.`final/alive_heldout`",
    "attributes.`Source`",
)
"""The columns next to the name and the time of a run."""


def view_state() -> dict[str, object]:
    """Return the state of the page: CE loss increase over L0 as a scatter plot, and the columns."""
    section = {"uuid": "crux-section", "name": "CE loss increase and L0", "display": True, "isReordered": True}
    chart = {
        "type": "SCATTER",
        "uuid": "crux-scatter",
        "metricSectionId": "crux-section",
        "deleted": False,
        "isGenerated": False,
        "displayName": "CE loss increase over L0",
        "runsCountToCompare": 100,
        "xaxis": {"key": "final/l0", "type": "METRIC"},
        "yaxis": {"key": "final/ce_increase", "type": "METRIC"},
    }
    return {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(COLUMNS),
        "compareRunCharts": [chart],
        "compareRunSections": [section],
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
    }


def view_tag() -> dict[str, str]:
    """Return the tag of an experiment that holds the view."""
    return {f"mlflow.sharedViewState.{SHARE_KEY}": json.dumps(view_state())}


def view_address(server: str, experiment_id: str) -> str:
    """Return the address of the view.

    Args:
        server: address of the server, such as http://127.0.0.1:5000.
    """
    return (
        f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={SHARE_KEY}"
    )
