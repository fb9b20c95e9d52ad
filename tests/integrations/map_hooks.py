"""Hooks for the analyzer that write what they were called with; this module loads quickly in worker processes."""

import os
from pathlib import Path


def init(thread_id, names, types, dtypes, save_path, worker_id):  # noqa: PLR0917  # DeepSpeed's arguments
    return {"path": Path(save_path) / f"{worker_id}-{thread_id}.txt", "rows": [], "given": [*names, *types]}


def update(batch, types, dtypes, functions, results, first_row):  # noqa: PLR0917  # DeepSpeed's arguments
    results["rows"].append((first_row, functions[0](batch).tolist()))


def finalize(types, dtypes, results):
    results["path"].write_text(repr((results["rows"], results["given"], [str(dtype) for dtype in dtypes])))


def die(*_):
    os._exit(3)


HOOKS = {"custom_map_init": init, "custom_map_update": update, "custom_map_finalize": finalize}
