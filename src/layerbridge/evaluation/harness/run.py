"""A run and task names -> lm_eval's results, with where they came from."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerbridge.atomic import replace_text
from layerbridge.config import EvaluationConfig
from layerbridge.errors import ConfigError, DataError
from layerbridge.evaluation.harness.tasks import build_tasks, split_names
from layerbridge.evaluation.predict import base_origin
from layerbridge.evaluation.run_folder import Run, find_run
from layerbridge.results import config_sha256

if TYPE_CHECKING:
    from layerbridge.data.tasks import Task
    from layerbridge.evaluation.harness.model import BridgeLM
    from layerbridge.model.bridge import Bridge

FORMAT = "layerbridge-harness"
FORMAT_VERSION = 1
FEWSHOT_SEED = 1234
"""lm_eval's own."""


def run_harness(
    run_or_checkpoint: str | Path,
    tasks: Sequence[str],
    *,
    data: str | None = None,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    include_path: str | None = None,
    include_defaults: bool = False,
    **load_options: Any,
) -> dict[str, Any]:
    """Evaluate a run with lm-evaluation-harness and return lm_eval's results, with our origin under `layerbridge`.

    Names and rows are checked before the models are loaded.

    Args:
        run_or_checkpoint: a run folder, its checkpoint folder, or a checkpoint on its own.
        tasks: our benchmarks (`sib200`), single languages of them (`sib200_si`), or names that lm_eval knows.
        data: folder with the rows of our benchmarks, or with a folder for each, named as they are. By default the
            run's own data for its own task, and the hub.
        languages: of our benchmarks asked for as a whole: these alone.
        limit: documents a task, the first ones.
        batch_size: texts a forward pass, at most; by default the recipe's.
        batch_tokens: encoder tokens a forward pass, padding included; by default the recipe's.
        include_path: folder with lm_eval task files of one's own.
        include_defaults: whether lm_eval's own tasks may be named; finding them takes it some seconds.
        load_options: of `load_bridge`: device, encoder, llm, trust_remote_code.

    Raises:
        ConfigError: lm_eval is not installed, no such run, or an unknown task or language.
        DataError: rows that are missing or wrong, or prompts that a bridge cannot read.
        CheckpointError: a checkpoint that cannot be loaded.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    run = find_run(run_or_checkpoint)
    config = run.recipe.evaluation if run.recipe else EvaluationConfig()
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; wanted at least 1 document a task.")
    if not run.checkpoint.is_dir():
        raise ConfigError(f"Run {run.name!r} has no checkpoint at {run.checkpoint}. Finish its training first.")
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"include_path {include_path!r} is no folder. Give the folder that holds the task files.")
    looks_further = include_defaults or include_path is not None
    manager = TaskManager(include_path=include_path, include_defaults=include_defaults)
    asked, foreign = split_names(tasks, languages, manager.all_tasks if looks_further else None)
    ours = build_tasks(asked, lambda name: _task(run, name, data))
    try:
        loaded = manager.load([*ours, *foreign])
    except (OSError, ValueError) as error:  # ours are built: it is about the others, their data or their names
        raise DataError(f"lm_eval could not load {', '.join(map(repr, foreign))}: {error}") from error

    from layerbridge.evaluation.harness.model import BridgeLM
    from layerbridge.model.checkpoint import load_bridge

    bridge = load_bridge(run.checkpoint, **load_options)
    model = BridgeLM(
        bridge,
        batch_size=batch_size or config.batch_size,
        batch_tokens=batch_tokens or config.batch_tokens,
        max_source_tokens=config.max_source_tokens,
        max_gen_toks=config.max_new_tokens,
    )
    results = _evaluate(model, loaded, limit)
    return results | {"layerbridge": _origin(run, bridge, model, limit)}


def require_lm_eval() -> None:
    """Raise a ConfigError that says what to install, if lm-evaluation-harness is not there."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise ConfigError(
            "lm-evaluation-harness is not installed. Install it: pip install 'layerbridge[eval]'"
        ) from None


def _task(run: Run, benchmark: str, data: str | None) -> "Task":
    from layerbridge.data.tasks import build_task

    if data is not None and (Path(data) / benchmark).is_dir():
        data = str(Path(data) / benchmark)
    return build_task(run.choose_task(benchmark, data))


def _evaluate(model: "BridgeLM", loaded: Any, limit: int | None) -> dict[str, Any]:
    """Run lm_eval; its `simple_evaluate` would also spend seconds on describing the machine."""
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    results = evaluate(lm=model, task_dict=loaded, limit=limit, log_samples=False)
    assert results is not None  # one process
    return dict(results)


def _origin(run: Run, bridge: "Bridge", model: "BridgeLM", limit: int | None) -> dict[str, Any]:
    packages = ("layerbridge", "lm_eval", "torch", "transformers")
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "created": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "run": run.name,
        "fusion": bridge.config.fusion.name,
        "seed": run.seed,
        "languages_seen": run.languages_seen,
        "checkpoint_sha256": bridge.fingerprint(),
        "config_sha256": config_sha256(bridge.config),
        "bases": {side: base_origin(base).model_dump(mode="json") for side, base in bridge.bases.items()},
        "limit": limit,
        "max_source_tokens": model.max_source_tokens,
        "max_new_tokens": model.max_gen_toks,
        "truncated": dict(model.truncated),
        "versions": {package: version(package) for package in packages},
    }


def to_table(results: dict[str, Any]) -> str:
    """Return lm_eval's own table (Markdown), and its table of groups below it if there are any."""
    from lm_eval.utils import make_table

    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(tables)


def write_json(results: dict[str, Any], path: Path) -> None:
    """Write results as JSON, in one step; a number that is not finite becomes null, what JSON lacks becomes text."""
    from lm_eval.utils import handle_non_serializable

    plain = json.loads(json.dumps(results, default=handle_non_serializable, ensure_ascii=False))
    replace_text(path, json.dumps(_finite(plain), ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
