"""Results on disk: one row a case, so that long work can stop and go on."""

import json
from pathlib import Path


class UsageError(ValueError):
    """A request that cannot be met: which argument, its value, why, and the remedy."""

    def __init__(self, argument: str, value: object, reason: str, remedy: str):
        super().__init__(f"{argument} = {value}: {reason}. {remedy}.")


class Store:
    """Rows by part and case, in a JSON file of one row a line.

    Rows of different machines or versions must not be compared, so a file is only ever
    added to under the header it was begun with.

    Args:
      path: of the file, which need not exist.
      header: the conditions of all rows.
      redo: begin a file anew that holds rows of other conditions.
    """

    remedy = (
        "Name another --out, such as runs/bench.json, or begin this file anew with "
        "--redo, which drops its rows"
    )

    def __init__(self, path: Path, header: dict, *, redo: bool = False):
        self._path = path
        self.document = json.loads(json.dumps(header)) | {"results": {}}
        if not path.exists():
            return
        stored = load(path)
        changed = differences(stored, self.document)
        if not changed:
            self.document = stored
        elif not redo:
            raise UsageError(
                "--out",
                path.name,
                "it was measured under another " + " and ".join(changed),
                self.remedy,
            )

    def row(self, part: str, case: str) -> dict | None:
        return self.document["results"].get(part, {}).get(case)

    def put(self, part: str, case: str, row: dict) -> None:
        """Set a row, and write the whole file so that a crash cannot truncate it."""
        self.document["results"].setdefault(part, {})[case] = row
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".tmp")
        draft.write_text(text(self.document))
        draft.replace(self._path)


def load(path: Path) -> dict:
    """The document in a file of results."""
    if not path.exists():
        raise UsageError(
            "--out",
            path.name,
            "there is no such file",
            "Measure first: run without this flag",
        )
    return json.loads(path.read_text())


def differences(stored: dict, header: dict) -> list[str]:
    """What differs between two headers, by name."""
    names = [name for name in header if name not in ("environment", "results")]
    here, there = header["environment"], stored["environment"]
    return [name for name in names if stored.get(name) != header[name]] + [
        name for name in here if there.get(name) != here[name]
    ]


def text(document: dict) -> str:
    """The document as JSON, with each row on a line of its own."""
    head = {name: value for name, value in document.items() if name != "results"}
    parts = [
        f"    {json.dumps(part)}: {{\n"
        + ",\n".join(f"      {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items())
        + "\n    }"
        for part, rows in document["results"].items()
    ]
    opened = json.dumps(head, indent=2).removesuffix("\n}")
    return f'{opened},\n  "results": {{\n' + ",\n".join(parts) + "\n  }\n}\n"
