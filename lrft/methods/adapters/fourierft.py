"""FourierFT: a few Fourier coefficients of the change, at places drawn once, train."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive, PeftForm, Shared
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.shared import kept_apart
from lrft.ops.formula import formula_linear, is_formed
from lrft.ops.sparse_spectrum import spectrum_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal
from lrft.registry.json import Json


def fourierft_form_keys(config: FourierFT.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "FOURIERFT",
        "n_frequency": config.frequencies,
        "scaling": config.scale,
        "random_loc_seed": config.seed,
    }


class Places(Shared):
    """Where the coefficients stand, the same at all sites with as many entries: drawn once and saved once."""

    def __init__(self, config: FourierFT.Config, sites: Mapping[str, Site]) -> None:
        super().__init__()
        for total in sorted({site.in_features * site.out_features for site in sites.values()}):
            generator = torch.Generator().manual_seed(config.seed)
            places = torch.randperm(total, generator=generator)[: config.frequencies]
            self.register_buffer(f"of_{total}", places.to(torch.int32 if total < 2**31 else torch.int64))

    def at(self, site: Site) -> tuple[Tensor, Tensor]:
        """Row and column of every coefficient in the spectrum of a site, (n,) int64 each."""
        places = self.get_buffer(f"of_{site.in_features * site.out_features}").long()
        return places // site.in_features, places % site.in_features

    def peft_tensors(self) -> dict[str, Tensor]:
        """None: PEFT draws them anew from the seed."""
        return {}


@ADAPTERS.register
class FourierFT(Additive):
    """Fourier-transform fine-tuning: n coefficients of the change's two-dimensional spectrum train.

        F  = 0 but for F[j_l, k_l] = c_l,  l = 1 ... n
        W' = W + s Re(IDFT2(F)),  so  delta_pq = s / (out in) sum_l c_l cos(2 pi (p j_l / out + q k_l / in))
        y  = x W'^T + b

    with n = `frequencies`, s = `scale`. The places (j_l, k_l) are drawn from `seed` without repetition, all equally
    likely; they depend on the seed and on out in alone, so sites of one shape have the same, and PEFT draws the same.
    Training transforms x, multiplies n of its coefficients, and transforms back: neither the change nor its spectrum is
    formed. Where products are in float32 and the weight is small beside the tokens, the change is formed instead, in
    both passes, and added to W. Transforms are in float32 whatever the activations are.

    Shapes: c (n) ~ N(0, 1), so W' is not W at step 0; with `start: zeros` it is. A restart starts from 0.
    Trains: n numbers per site, whatever its size; the change has rank up to 2 n. Places are saved once for all sites of
    a size. x is kept for the backward pass, in its own precision, and nothing of the transforms. Where it is formed a
    step takes one product more that is as large as W's, for its gradient.
    Source: Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", ICML 2024, arXiv 2405.03003;
    formula, places and start are those of PEFT's layer, checked on the same numbers; the paper was not read.
    Departures: none in the function. Places that favour a band of frequencies are left out.
    Advice: entries of the change are of the size s sqrt(n) / (out in), so narrow models want a smaller `scale`; the
    coefficients are of size 1, so learning rates are far above those of LoRA. PEFT's documentation has `scale: 300` for
    instruction tuning of LLaMA.
    """

    aliases = {"fourier": "adapter: fourierft"}
    provides = {"adapters", "mergeable", "linear_delta", "moved_start"}
    roles = {"c": "core"}
    peft = PeftForm(fourierft_form_keys, names={"c": "fourierft_spectrum"})

    config: Config

    class Config(AdapterConfig):
        frequencies: int = Field(1000, gt=0, description="coefficients that train at every site")
        scale: float = Field(150.0, gt=0, le=1_000_000)
        seed: int = Field(777, ge=0, description="of the places of the coefficients")
        start: Literal["normal", "zeros"] = Field("normal", description="what the coefficients start from")

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Places(config, sites)

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> FourierFT:
        return cls(config, site, shared)

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        total = site.in_features * site.out_features
        if config.frequencies > total:
            raise ValueError(
                f"frequencies is {config.frequencies}, and the weight has {total}; use at most that"
            )
        self.places = kept_apart(shared, Places, lambda: Places(config, {site.name: site}))
        draw = torch.randn if config.start == "normal" else torch.zeros
        self.c = nn.Parameter(draw(config.frequencies))
        self.scaling = config.scale / total

    def reset(self) -> None:
        nn.init.zeros_(self.c)

    def change(self) -> Tensor:
        out, width = self.site.out_features, self.site.in_features
        rows, columns = self.places[0].at(self.site)
        spectrum = self.c.new_zeros(out, width).index_put((rows, columns), self.c)
        change: Tensor = self.config.scale * torch.fft.ifft2(spectrum).real
        return change

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        if is_formed(x, self.site.out_features):
            return formula_linear(x, base, lambda weight: self.change(), [self.c])
        return base(x) + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        return spectrum_linear(
            x, self.scaling * self.c, *self.places[0].at(self.site), self.site.out_features
        )

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(config.frequencies)
