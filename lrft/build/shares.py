"""Which training rows each client of a federation holds, and how that is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from lrft.build.text import Text
from lrft.data.partition import Share, by_length, by_value, dirichlet, even
from lrft.recipe.federate_section import FederateSection
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError

SHOWN = 10  # clients, and labels of each, that are told one by one


def shares_of(recipe: Recipe, text: Text) -> list[Share]:
    """The rows of every client, as indices of `text.train`: rows without a target are nobody's.

    Raises:
        DataError: they cannot be shared so.
    """
    asked = _asked(recipe)
    if text.mixture is not None:
        raise DataError(
            "data.train: the shares of several sources are those of an epoch, which no client sees whole; give one "
            "source, of which federate.partition.column may tell where a row is from"
        )
    usable = [index for index, row in enumerate(text.train) if row.targets]
    how, seed = asked.partition, recipe.train.seed
    if how.by == "even":
        return even(usable, asked.clients, seed)
    labels = labels_of(asked, text, usable)
    if how.by == "column":
        return by_value(usable, labels, asked.clients)
    return dirichlet(usable, labels, asked.clients, how.alpha, seed)


def labels_of(asked: FederateSection, text: Text, rows: Sequence[int]) -> list[str]:
    """The label of each of some rows: what the column holds, or a class by length where there is none.

    Raises:
        DataError: a row has no such column.
    """
    column = asked.partition.column
    if column is None:
        return by_length([len(text.train[index].input_ids) for index in rows])
    assert text.rows is not None, "rows that are trained on are kept"
    found = []
    for index in rows:
        row = text.rows[index]
        if column not in row:
            raise DataError(f"{text.rows.where(index)}: no column {column!r}; this row has {', '.join(row)}")
        found.append(str(row[column]))
    return found


def tell(recipe: Recipe, text: Text, shares: Sequence[Share]) -> Iterator[str]:
    """A sentence on all clients, and one on each of the first."""
    asked, sizes = _asked(recipe), [len(share) for share in shares]
    how = asked.partition
    way = {"dirichlet": f"Dirichlet({how.alpha:g})", "column": "value", "even": "drawn alike"}[how.by]
    of = "" if how.by == "even" else f" of {how.column or 'length'}"
    yield f"{asked.clients} clients by {way}{of}: {min(sizes)} to {max(sizes)} rows each, {sum(sizes):,} together"
    for client, share in enumerate(shares[:SHOWN]):
        counts = Counter(labels_of(asked, text, share)) if how.column is not None else Counter[str]()
        most = [f"{label} {count}" for label, count in sorted(counts.items(), key=lambda i: (-i[1], i[0]))]
        more = f" and {len(most) - SHOWN} more" if len(most) > SHOWN else ""
        inside = f" ({', '.join(most[:SHOWN])}{more})" if most else ""
        yield f"client {client}: {len(share)} rows{inside}"
    if len(shares) > SHOWN:
        yield f"and {len(shares) - SHOWN} clients more"


def _asked(recipe: Recipe) -> FederateSection:
    assert recipe.federate is not None, "a recipe of a federation"
    return recipe.federate
