"""Results on disk that grow by one row at a time, so long work can stop and go on."""

import json
from pathlib import Path

from usage import UsageError


class Records:
    """Rows measured under one header, in a JSON file of one row a line.

    Rows measured under different conditions must not be compared, so a file is only
    ever added to under the header it was begun with.
    """

    def __init__(self, path: Path, header: dict):
        self._path = path
        self._header = header = json.loads(json.dumps(header))  # as a file gives it
        self.rows = []
        if path.exists():
            stored = json.loads(path.read_text())
            self.rows = stored.pop("rows")
            changed = [key for key in header if stored.get(key) != header[key]]
            if changed:
                raise UsageError(
                    "--out",
                    path.name,
                    "its rows were measured under another " + " and ".join(changed),
                    "Name another --out, or delete that file to measure anew",
                )

    def append(self, row: dict) -> None:
        """Add a row, and write the whole file so that a crash cannot truncate it."""
        self.rows.append(row)
        head = json.dumps(self._header, indent=2).removesuffix("\n}")
        rows = ",\n".join(f"    {json.dumps(row)}" for row in self.rows)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".tmp")
        draft.write_text(f'{head},\n  "rows": [\n{rows}\n  ]\n}}\n')
        draft.replace(self._path)
