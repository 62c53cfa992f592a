"""The runs of a study and their evaluations as two tables, in CSV and Parquet."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_pg_ext.bases.atomic_file import atomic_write
from sb3_pg_ext.experiments.results import Evaluation, Kind, Record

# Column -> its type in Parquet.
RUN_COLUMNS = {
    **dict.fromkeys(("key", "settings", "label", "algo", "policy", "env", "env_kwargs", "wrappers"), "string"),
    **{"normalize": "string", "frame_stack": "int64", "n_envs": "int64", "vec_env": "string", "replicate": "int64"},
    **dict.fromkeys(("train_seed", "evaluation_seed", "test_seed", "total_steps"), "int64"),
    **dict.fromkeys(("evaluation_frequency", "evaluation_episodes", "test_episodes"), "int64"),
    **{"deterministic": "bool", "hyperparameters": "string", "versions": "string", "threads": "int64"},
    **{"status": "string", "step": "int64", "deaths": "int64", "error": "string", "final_return": "double"},
    **dict.fromkeys(("wall_seconds", "cpu_seconds", "train_seconds", "steps_per_second"), "double"),
    **dict.fromkeys(("imported_from", "git", "python", "system", "host", "cpu", "command"), "string"),
}
EVALUATION_COLUMNS = {
    **{"key": "string", "label": "string", "env": "string", "replicate": "int64", "kind": "string", "step": "int64"},
    **{"episodes": "int64", "mean_return": "double", "std_return": "double", "mean_length": "double"},
    **{"seconds": "double", "train_seconds": "double", "returns": "list<double>", "lengths": "list<int64>"},
}


@dataclass(frozen=True)
class Table:
    """A table.

    :param name: of its file
    :param columns: name -> type in Parquet; values may be missing
    :param rows: with a value for each column
    """

    name: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]


def runs_table(records: Iterable[Record]) -> Table:
    """One row for each run, finished or not; nested settings as JSON."""
    return Table("runs", RUN_COLUMNS, [_run_row(record) for record in records])


def evaluations_table(records: Iterable[Record]) -> Table:
    """One row for each evaluation, in training and the test after it, with the returns of its episodes."""
    rows = []
    for record in records:
        rows += [_evaluation_row(record, "training", evaluation) for evaluation in record.evaluations]
        rows += [_evaluation_row(record, "test", record.test)] if record.test else []
    return Table("evaluations", EVALUATION_COLUMNS, rows)


def _run_row(record: Record) -> dict[str, Any]:
    spec, environment, protocol = record.spec, record.spec.environment, record.spec.protocol
    seeds, outcome, found = spec.seeds, record.outcome, record.provenance or {}
    return {
        "key": spec.key,
        "settings": spec.settings_key,
        "label": spec.label,
        "algo": spec.algo,
        "policy": spec.policy,
        "env": environment.id,
        "env_kwargs": _json(environment.kwargs),
        "wrappers": _json(environment.wrappers),
        "normalize": None if environment.normalize is None else _json(environment.normalize),
        "frame_stack": environment.frame_stack,
        "n_envs": environment.n_envs,
        "vec_env": environment.vec_env,
        "replicate": spec.replicate,
        "train_seed": _known(seeds.train),
        "evaluation_seed": _known(seeds.evaluation),
        "test_seed": _known(seeds.test),
        "total_steps": spec.total_steps,
        "evaluation_frequency": protocol.every,
        "evaluation_episodes": protocol.episodes,
        "test_episodes": protocol.test_episodes,
        "deterministic": protocol.deterministic,
        "hyperparameters": _json(spec.hyperparameters),
        "versions": _json(spec.versions),
        "threads": spec.threads,
        "status": record.status,
        "step": record.step,
        "deaths": record.deaths,
        "error": record.error,
        "final_return": record.final_return if record.status == "finished" else None,
        "wall_seconds": outcome and outcome.wall_seconds,
        "cpu_seconds": outcome and outcome.cpu_seconds,
        "train_seconds": outcome and outcome.train_seconds,
        "steps_per_second": outcome and outcome.steps_per_second,
        **{name: found.get(name) for name in ("imported_from", "git", "python", "system", "host", "cpu", "command")},
    }


def _known(seed: int) -> int | None:
    return None if seed < 0 else seed


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _evaluation_row(record: Record, kind: Kind, evaluation: Evaluation) -> dict[str, Any]:
    spec = record.spec
    return {
        "key": spec.key,
        "label": spec.label,
        "env": spec.environment.id,
        "replicate": spec.replicate,
        "kind": kind,
        "step": evaluation.step,
        "episodes": len(evaluation.returns),
        "mean_return": evaluation.mean_return,
        "std_return": statistics.pstdev(evaluation.returns),
        "mean_length": statistics.fmean(evaluation.lengths),
        "seconds": evaluation.seconds,
        "train_seconds": evaluation.train_seconds,
        "returns": list(evaluation.returns),
        "lengths": list(evaluation.lengths),
    }


def _write_csv(table: Table, path: Path) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
            for row in table.rows
        )


def _write_parquet(table: Table, path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ModuleNotFoundError(
            'Parquet files need pyarrow: pip install "sb3_pg_ext[report]", or take --format csv'
        ) from None

    lists = {"list<double>": pyarrow.list_(pyarrow.float64()), "list<int64>": pyarrow.list_(pyarrow.int64())}
    types = ((name, lists.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in table.columns.items())
    content = pyarrow.Table.from_pylist(list(table.rows), schema=pyarrow.schema(list(types)))
    with atomic_write(path) as temporary:
        parquet.write_table(content, temporary)


FORMATS: dict[str, Callable[[Table, Path], None]] = {"csv": _write_csv, "parquet": _write_parquet}


def export(records: Sequence[Record], folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write both tables into ``folder``.

    :param records: of the study
    :param folder: made if need be
    :param formats: of :data:`FORMATS`
    :return: the files
    :raises ModuleNotFoundError: Parquet is asked for, and pyarrow is not installed
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables, written = (runs_table(records), evaluations_table(records)), []
    for form in formats:
        for table in tables:
            written.append(folder / f"{table.name}.{form}")
            FORMATS[form](table, written[-1])
    return written
