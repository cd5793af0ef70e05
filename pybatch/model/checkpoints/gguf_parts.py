"""A model in one GGUF file, or in several as llama-gguf-split makes them: NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import re
from pathlib import Path

from pybatch.model.checkpoints.gguf_file import GGUFFile
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short
from pybatch.model.rows import Rows

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
MAX_PARTS = 99_999


def parts_of(path: Path) -> list[Path]:
    """All files of the model that this is a file of, in order. Raises ModelError if one is missing."""
    found = NAME.fullmatch(path.name)
    if found is None or int(found[3]) < 2:
        return [path]
    count = int(found[3])
    parts = [path.with_name(f"{found[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise ModelError(f"{path}: expected the {count:,} parts of its model beside it; not there: {missing[0]}{more}")
    return parts


class GGUFModel(GGUFFile):
    """The file, or all parts of the model: the first has the metadata, each has some of the tensors."""

    def __init__(self, path: Path) -> None:
        first, *others = parts_of(path)
        super().__init__(first)
        self._parts = [self, *map(GGUFFile, others)]
        self._check_parts()
        self._part_of = {name: part for part in self._parts for name in part.tensors}
        count = sum(len(part.tensors) for part in self._parts)
        expected = self.metadata.get("split.tensors.count", count)
        if not len(self._part_of) == count == expected:
            raise ModelError(
                f"{self.path}: expected {short(expected)} tensors in {len(self._parts)} parts, each once, got {count} "
                f"of {len(self._part_of)} names"
            )
        self.tensors = {name: part.tensors[name] for name, part in self._part_of.items()}

    def rows(self, name: str) -> Rows:
        part = self._part_of[name]
        return super().rows(name) if part is self else part.rows(name)

    def files(self) -> list[Path]:
        return [part.path for part in self._parts]

    def _check_parts(self) -> None:
        for number, part in enumerate(self._parts):
            fields = Fields(part.metadata, str(part.path), "split.")
            count = fields.integer("count", 1, low=0, high=MAX_PARTS) or 1
            if count != len(self._parts):
                raise ModelError(
                    f"{part.path}: expected a name such as NAME-00001-of-{count:05}.gguf, for the file says that "
                    f"it is one of {count:,} parts"
                )
            if fields.integer("no", number, low=0, high=MAX_PARTS) != number:
                raise ModelError(f"{part.path}: expected part {number + 1} of its model, got {fields.get('no') + 1}")
