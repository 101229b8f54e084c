"""Which linear maps of a model exist, and which of them the target patterns choose."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn

from lrft.core.params import HOLDERS, Site
from lrft.model.causal_lm import SCORE, CausalLM
from lrft.model.experts import paths_apart
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import RecipeError

ALL = "all-linear"
BLOCKS = ("mlp", "feed_forward", "mlp_block")  # what families call the module whose output joins the residual


@dataclass(frozen=True)
class TargetRow:
    """One line of the target table: a pattern, how many modules it hit, and their share of all matrices."""

    pattern: str
    modules: int
    share: float


def linear_sites(model: CausalLM) -> dict[str, Site]:
    """Module path -> site, for every linear map that something can stand in for, less the heads.

    GPT-2's transposed Conv1D counts as (out, in).
    """
    head = model.hf.get_output_embeddings()
    experts, found = paths_apart(model.hf), {}
    for name, module in model.hf.named_modules():
        shape = linear_shape(module)
        if shape is not None and module is not head and name != SCORE and name not in model.direct:
            kind = "expert" if experts and name.startswith(experts) else "linear"
            found[name] = Site(name, shape[1], shape[0], has_bias=module.bias is not None, kind=kind)
    return found


def sites_of(model: CausalLM, kinds: tuple[str, ...]) -> dict[str, Site]:
    """The sites of some kinds, in model order; the linear layers inside a block that is a site are then none.

    Matrices of experts are there wherever linear maps are asked for.

    Raises:
        ValueError: there is no such kind of site.
    """
    for kind in kinds:
        if kind not in FINDERS:
            raise ValueError(f"{kind} is no kind of site{did_you_mean(kind, FINDERS)}")
    found = {name: site for kind in kinds for name, site in FINDERS[kind](model).items()}
    held = tuple(f"{name}." for name, site in found.items() if site.kind in HOLDERS)
    order = {name: place for place, (name, _) in enumerate(model.hf.named_modules())}
    kept = {name: site for name, site in found.items() if not held or not name.startswith(held)}
    return dict(sorted(kept.items(), key=lambda item: order[item[0]]))


def mlp_sites(model: CausalLM) -> dict[str, Site]:
    """Whole feed-forward blocks: the modules that bear one of the names of `BLOCKS`, mixtures of experts among them.

    Raises:
        ValueError: there is none.
    """
    hidden, linear = model.hf.config.get_text_config().hidden_size, linear_sites(model)
    found: dict[str, Site] = {}
    for name, module in model.hf.named_modules():
        if name.rpartition(".")[2] in BLOCKS and linear_shape(module) is None:
            held = [
                site for path, site in linear.items() if path.startswith(f"{name}.") and site.kind == "linear"
            ]
            inner = max((max(site.in_features, site.out_features) for site in held), default=0)
            found[name] = Site(name, hidden, hidden, kind="mlp", inner_features=inner)
    if not found:
        raise ValueError(f"it has no feed-forward block called {', '.join(BLOCKS[:-1])} or {BLOCKS[-1]}")
    return found


def embedding_sites(model: CausalLM) -> dict[str, Site]:
    """The input embedding."""
    embedding = model.hf.get_input_embeddings()
    name = next(name for name, module in model.hf.named_modules() if module is embedding)
    size, hidden = embedding.get_parameter("weight").shape
    return {name: Site(name, size, hidden, kind="embedding")}


def norm_sites(model: CausalLM) -> dict[str, Site]:
    """Norms whose only parameters are a weight, and maybe a bias, for every channel.

    Raises:
        ValueError: there is none.
    """
    found = {}
    for name, module in model.hf.named_modules():
        held = {key: p for key, p in module._parameters.items() if p is not None}
        plain = "weight" in held and held.keys() <= {"weight", "bias"} and not module._modules
        if plain and "Norm" in type(module).__name__ and held["weight"].ndim == 1:
            width = len(held["weight"])
            found[name] = Site(name, width, width, has_bias="bias" in held, kind="norm")
    if not found:
        raise ValueError("it has no norm with a weight for every channel")
    return found


def attention_sites(model: CausalLM) -> dict[str, Site]:
    """Whole attentions with a linear layer for the keys and one for the values, of the same width.

    Raises:
        ValueError: there is none.
    """
    linear, found = linear_sites(model), dict[str, Site]()
    for name, keys in linear.items():
        parent, _, leaf = name.rpartition(".")
        values = linear.get(f"{parent}.v_proj")
        if leaf == "k_proj" and values is not None and values.out_features == keys.out_features:
            found[parent] = Site(parent, keys.in_features, keys.out_features, kind="attention")
    if not found:
        raise ValueError("it has no attention with layers k_proj and v_proj of one width")
    return found


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear map, or None for anything else."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if is_transposed(module):
        weight = module.get_parameter("weight")
        return weight.shape[1], weight.shape[0]
    return None


def is_transposed(module: nn.Module) -> bool:
    """Whether the module is transformers' Conv1D, a linear map stored as (in, out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def expert_sites(model: CausalLM) -> dict[str, Site]:
    """Matrices of single experts, of mixtures that were taken apart."""
    return {name: site for name, site in linear_sites(model).items() if site.kind == "expert"}


FINDERS: dict[str, Callable[[CausalLM], dict[str, Site]]] = {
    "linear": linear_sites,
    "expert": expert_sites,
    "mlp": mlp_sites,
    "embedding": embedding_sites,
    "attention": attention_sites,
    "norm": norm_sites,
}


def choose(
    sites: dict[str, Site],
    targets: str | list[str],
    total: int | None = None,
    direct: Collection[str] = (),
    left_out: Collection[str] = (),
    aside: Collection[str] = (),
) -> tuple[dict[str, Site], list[TargetRow]]:
    """The targeted sites, in model order, and the table that says what each pattern hit.

    A pattern matches a whole module path or its end (`q_proj`, `self_attn.*_proj`, `layers.0.mlp.up_proj`);
    `all-linear` matches everything.

    Args:
        total: numbers in all matrices, which shares are of; by default those of `sites`.
        direct: linear layers that nothing can stand in for.
        left_out: sites that are not chosen, whatever matches them.
        aside: sites that text never runs through, which are none of `sites`.

    Raises:
        RecipeError: a pattern matches nothing; names near ones.
    """
    patterns = [targets] if isinstance(targets, str) else list(targets)
    total = total or sum(map(site_size, sites.values()))
    chosen: set[str] = set()
    table = []
    for pattern in patterns:
        hits = [name for name in sites if pattern == ALL or matches(name, pattern)]
        if not hits and any(matches(name, pattern) for name in direct):
            raise RecipeError(
                f"pattern {pattern!r} names layers whose weight the model's code reads, past any adapter; name others",
                "adapter.targets",
            )
        if not hits and any(matches(name, pattern) for name in aside):
            message = f"pattern {pattern!r} names layers that text never runs through; name others"
            raise RecipeError(message, "adapter.targets")
        if not hits:
            ends = {part for name in sites for part in (name.rpartition(".")[2], name)}
            leaves = {name.rpartition(".")[2] for name in sites}
            known = leaves if "." not in pattern else ends
            what = "linear layer" if any(site.is_matrix for site in sites.values()) else "site of the adapter"
            raise RecipeError(
                f"pattern {pattern!r} matches no {what}{did_you_mean(pattern, known)}",
                "adapter.targets",
            )
        hits = [name for name in hits if name not in left_out]
        chosen |= set(hits)
        size = sum(site_size(sites[name]) for name in hits)
        table.append(TargetRow(pattern, len(hits), size / total))
    return {name: site for name, site in sites.items() if name in chosen}, table


def site_size(site: Site) -> int:
    """Numbers in the weights that an adapter acts on: a block's three maps, the keys and values of an attention."""
    if site.kind in ("embedding", "norm"):
        return 0  # a table or a vector, and no matrix that is multiplied
    if site.kind == "attention":
        return 2 * site.in_features * site.out_features
    return site.in_features * (3 * site.inner_features or site.out_features)


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` matches the module path `name`, whole or from a dot on."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*.{pattern}")
