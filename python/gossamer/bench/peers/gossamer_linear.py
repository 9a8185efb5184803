"""gossamer's layers: for each scheme one with float32 and one with bfloat16 in and out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gossamer.bench.peers.peer import Arithmetic, Array, Peer, PrepareInput, Run
from gossamer.schemes import SCHEMES, Quantize

USUAL = ("int8",)
SUFFIXES = {"float32": "", "bfloat16": "-bf16"}


def build(weight: Array, scheme: str, dtype: str) -> PrepareInput:
    """Make a ``gossamer.nn.Linear`` fed with ``dtype`` (see ``Peer.build``)."""
    import gossamer as gs

    torch_dtype = getattr(torch, dtype)
    out_features, in_features = weight.shape
    dense = torch.nn.Linear(in_features, out_features, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(weight))
    # Not compress(): it takes a model, and this is one layer.
    layer = gs.nn.Linear.from_dense(dense, scheme)

    def prepare(x: Array) -> Run:
        tensor = torch.from_numpy(x).to(torch_dtype)
        return lambda: layer(tensor)

    return prepare


class GossamerPeer(Peer):
    """A scheme of gossamer's; how many bytes its weight takes, the format tells."""

    def weight_bytes(self, N: int, K: int) -> int:
        """Bytes of the packed weight (N, K): values, scales, padding and header."""
        return Quantize(self.arguments["scheme"]).quantize(torch.zeros(N, K)).nbytes


def of_scheme(scheme: str) -> list[Peer]:
    """Both peers of a scheme: ``gossamer-<scheme>`` and ``gossamer-<scheme>-bf16``."""
    return [
        GossamerPeer(
            f"gossamer-{scheme}{suffix}",
            build,
            _arithmetic(scheme),
            arguments={"scheme": scheme, "dtype": dtype},
            on_request=scheme not in USUAL,
        )
        for dtype, suffix in SUFFIXES.items()
    ]


def names(schemes: Sequence[str]) -> list[str]:
    """Names of the peers of several schemes.

    Raises
    ------
    ValueError
        For a name that is no scheme.
    """
    unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
    if unknown:
        raise ValueError(f"{unknown} is no scheme; there are {', '.join(SCHEMES)}")
    return [peer.name for scheme in schemes for peer in of_scheme(scheme)]


def _arithmetic(scheme: str) -> Arithmetic:
    """What carries the products of a scheme: integers, unless activations stay exact."""
    return "int8" if Quantize(scheme).resolved().activations == "int8" else "bf16"


PEERS = tuple(peer for scheme in SCHEMES for peer in of_scheme(scheme))
