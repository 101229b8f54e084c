"""A client of a federation on a machine of its own: the server's start, its own rows, and one round after another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrft.build.adapt import adapt
from lrft.build.aggregating import check_whole
from lrft.build.clients import Clients
from lrft.build.dataset import read_text
from lrft.build.guess import with_format
from lrft.build.privacy import check_not_private
from lrft.build.reach import InTurn, Numbers
from lrft.build.shares import shares_of
from lrft.build.text import Text, check_text
from lrft.build.trained_values import read
from lrft.core.aggregate import Tensors, Turn
from lrft.data.partition import Share
from lrft.model.trained import load_trained_tensors
from lrft.recipe.load import as_loaded
from lrft.registry.errors import DataError, RecipeError
from lrft.training.device import make_accelerator
from lrft.training.numerics import numerics


@dataclass(frozen=True)
class Begin:
    """What a client has to be told once, beside the recipe and the base model that it has itself.

    Attributes:
        tensors: everything that a checkpoint keeps of the adapter, frozen parts too.
        plan: of every site, as plan.json has it.
        day: that chat templates are told.
    """

    tensors: Tensors
    plan: dict[str, Any]
    day: str

    @property
    def sum(self) -> str:
        """A sha256 (hex) of all of it: tensors alone are alike in runs of one seed whose scales or ranks differ."""
        digest = hashlib.sha256(f"{json.dumps(self.plan, sort_keys=True)}\n{self.day}\n".encode())
        for name in sorted(self.tensors):
            value = self.tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.view(-1).view(dtype=torch.uint8).numpy().tobytes() if value.numel() else b"")
        return digest.hexdigest()


class Participant:
    """Trains as client `client` of a recipe's federation.

    Args:
        recipe: file or packaged name, which has to be the server's but for `data`.
        own_rows: all rows of this recipe are the client's; else the share that the recipe's partition gives it.

    Raises:
        RecipeError, DataError: see `lrft.api.training.train.train`.
    """

    def __init__(
        self,
        recipe: str,
        overrides: tuple[str, ...],
        client: int,
        begin: Begin,
        own_rows: bool,
        trusted: bool = False,
    ) -> None:
        loaded = with_format(as_loaded(recipe, overrides)).recipe
        if loaded.federate is None:
            raise RecipeError("is missing", "federate")
        check_not_private(loaded)
        self.client, settings = client, loaded.train
        with numerics(settings.deterministic, settings.tf32):
            accelerator = make_accelerator(settings.device, loaded.model.dtype)
            text = read_text(loaded, trust_remote_code=trusted, today=begin.day)
            check_text(text, loaded)
            shares = self._shares(
                loaded.federate.clients, shares_of(loaded, text) if not own_rows else None, text
            )
            adaptation = adapt(
                loaded,
                device=accelerator.device,
                trust_remote_code=trusted,
                text=text,
                saved=begin.tensors,
                planned=begin.plan,
            )
            load_trained_tensors(adaptation.model, begin.tensors)
            self.clients = Clients(loaded, text, adaptation, shares, accelerator, only=client)
        self.aggregator = self.clients.aggregator
        check_whole(self.aggregator, loaded)
        self.turns = InTurn(self.clients, self.aggregator)

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return self.turns.rows(self.client)

    def train(self, round: int, message: Mapping[str, Tensor]) -> tuple[Tensors, Numbers]:
        """What it sends back after a round, and what it tells."""
        turn, settings = Turn(self.client, round), self.clients.recipe.train
        start = dict(message)
        if not self.aggregator.to_all:
            start = self.aggregator.taken(message, read(self.clients.infos), turn)
        with numerics(settings.deterministic, settings.tf32):
            reply, _, numbers = self.turns.train(turn, start)
        return reply, numbers

    def _shares(self, clients: int, shares: list[Share] | None, text: Text) -> list[Share]:
        if not 0 <= self.client < clients:
            raise DataError(f"client {self.client}: federate.clients has {clients}, counted from 0")
        if shares is not None:
            return shares
        own = [index for index, row in enumerate(text.train) if row.targets]
        return [own if client == self.client else [] for client in range(clients)]
