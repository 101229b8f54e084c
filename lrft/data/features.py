"""`FeatureColumns`: what `data.features` names of a row, for adapters that go by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lrft.data.encoded import Notes
from lrft.data.rows import Rows, placed
from lrft.registry.errors import DataError
from lrft.registry.json import Json

Features = tuple[str, ...]


@dataclass(frozen=True)
class FeatureColumns:
    """Reads the features of a row, each as `column=value`.

    Attributes:
        columns: every row has each of them: a text, a number, true or false, or a list of these; null for none.
        known: the features that what trains knows; of a column without any here, all values are taken.
    """

    columns: tuple[str, ...] = ()
    known: Features = ()
    _seen: dict[Features, Features] = field(default_factory=dict, compare=False, repr=False)

    def of(self, row: Mapping[str, Json]) -> Features:
        """The features of a row, in the order of the columns.

        Raises:
            DataError: a column is missing, or holds what is no feature, or one that nothing knows.
        """
        found = tuple(name for column in self.columns for name in self._column(row, column))
        return self._seen.setdefault(found, found)

    def read(self, notes: Notes) -> Notes:
        """What a format does not read of a row, without what is read here."""

        def left(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in names if name not in self.columns)

        return Notes(left(notes.unwritten), left(notes.unread), notes.left_out) if self.columns else notes

    def _column(self, row: Mapping[str, Json], column: str) -> list[str]:
        if column not in row:
            names = ", ".join(sorted(row)) or "none"
            raise DataError(
                f"data.features names column {column!r}, and the row has {names}; give every row one, null for none"
            )
        value = row[column]
        values = value if isinstance(value, list) else [] if value is None else [value]
        return [self._feature(column, one) for one in values]

    def _feature(self, column: str, value: Json) -> str:
        if not isinstance(value, str | int | float):
            raise DataError(
                f"column {column!r} holds {value!r}; a feature is a text, a number, true or false"
            )
        name = f"{column}={str(value).lower() if isinstance(value, bool) else value}"
        listed = [one for one in self.known if one.startswith(f"{column}=")]
        if listed and name not in listed:
            values = ", ".join(one.partition("=")[2] for one in listed)
            raise DataError(
                f"column {column!r} holds {value!r}, and the adapter goes by {values}; name it there, or write null"
            )
        return name


NO_FEATURES = FeatureColumns()


def placed_features(rows: Rows, columns: FeatureColumns) -> list[Features]:
    """The features of every row.

    Raises:
        DataError: as `FeatureColumns.of`, with the row's place in front.
    """
    found = []
    for index, row in enumerate(rows):
        with placed(rows, index):
            found.append(columns.of(row))
    return found


def counted(found: Iterable[Features]) -> dict[str, Json]:
    """Rows that have each feature, by name."""
    return dict(sorted(Counter(name for one in found for name in one).items()))
