"""Write rows in every format that can be read, for tests."""

import csv
import gzip
import json
from pathlib import Path


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    match ending:
        case "jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        case "json":
            text = json.dumps(rows, ensure_ascii=False)
        case "tsv":
            text = "\n".join("\t".join(map(str, line)) for line in (rows[0], *(row.values() for row in rows)))
        case "csv":
            with path.open("w", encoding="utf-8", newline="") as handle:
                writer = csv.DictWriter(handle, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            return path
        case _:
            raise AssertionError(ending)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path
