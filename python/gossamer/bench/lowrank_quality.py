"""``gossamer bench quality-lowrank``: what corrections and factorizations leave of real models.

Perplexity of SmolLM2 and similarity of MiniLM: quantized with and without a low-rank correction,
in smaller groups, and factorized; without data and with the statistics of calibration text. Only
linear layers are touched, so embeddings and the head tied to them are left out of the bytes, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from gossamer.bench import environment, models, quality
from gossamer.bench.assets import TEXTS, fetch
from gossamer.bench.harness import Progress
from gossamer.bench.results import Results, Row
from gossamer.bench.subjects import SUBJECTS

DENSE = "dense fp32"
SCHEMES = ("int4-g64", "int4-per-channel")
SMALLER_GROUPS = ("int4-g32", "int4-g16")
RANKS = (16, 32, 64)
PARAMETERS = (0.9, 0.8, 0.7, 0.6)
TOKENS = 512  # of a window
DATA_FREE, AWARE = "data-free", "activation-aware"
# Embeddings, and the output head that shares their weight.
IGNORED = {"smollm2": ["model.embed_tokens", "lm_head"], "minilm": ["embeddings.*"]}
COMPRESS_STEPS = 4  # of progress: about as long as so many windows


@dataclass(frozen=True)
class Entry:
    """One form of a model: quantized by ``scheme``, corrected by ``rank``, or factorized.

    ``parameters`` is the share that is left by a factorization; ``aware`` says whether calibration
    text is looked at.
    """

    scheme: str = ""
    rank: int = 0
    parameters: float = 0.0
    aware: bool = False

    @property
    def name(self) -> str:
        """The line of the table; two entries share it that differ in ``aware`` only."""
        if self.parameters:
            return f"factorized to {self.parameters:.0%} of the parameters"
        if self.rank:
            return f"{self.scheme} + rank {self.rank}"
        return self.scheme or DENSE

    @property
    def method(self) -> str:
        """One of "data-free" and "activation-aware"; "" where there is nothing to fit."""
        fitted = self.rank or self.parameters
        return (AWARE if self.aware else DATA_FREE) if fitted else ""


@dataclass(frozen=True)
class QualitySettings:
    """How a run judges; rows of an earlier run with other settings are no substitute.

    ``windows`` and ``calibration`` are windows of 512 tokens: to judge by, and to calibrate with.
    """

    threads: int
    windows: int = 16
    calibration: int = 32
    seed: int = 0
    subjects: tuple[str, ...] = ("smollm2", "minilm")
    schemes: tuple[str, ...] = SCHEMES
    smaller_groups: tuple[str, ...] = SMALLER_GROUPS
    ranks: tuple[int, ...] = RANKS
    parameters: tuple[float, ...] = PARAMETERS

    def __post_init__(self) -> None:
        if unknown := [name for name in self.subjects if name not in SUBJECTS]:
            known = ", ".join(SUBJECTS)
            raise ValueError(f"QualitySettings: subjects: {unknown} unknown; there are {known}")
        if min(self.windows, self.calibration) < 1:
            given = f"{self.windows}, {self.calibration}"
            raise ValueError(f"QualitySettings: windows, calibration: got {given}, wanted >= 1")

    def entries(self) -> list[Entry]:
        """Every form, in the order of the table."""
        ways = (False, True)
        return [
            Entry(),
            *(
                entry
                for scheme in self.schemes
                for entry in (
                    Entry(scheme),
                    *(Entry(scheme, rank, aware=a) for rank in self.ranks for a in ways),
                )
            ),
            *(Entry(scheme) for scheme in self.smaller_groups),
            *(Entry(parameters=share, aware=a) for share in self.parameters for a in ways),
        ]


@dataclass
class _Told:
    """Steps done so far, told on; those of one row end at ``row_end``."""

    total: int
    on_progress: Progress | None
    done: int = 0
    row_end: int = 0
    text: str = ""

    def begin(self, text: str, steps: int) -> None:
        self.text, self.row_end = text, self.done + steps
        self.step(0)

    def step(self, count: int = 1) -> None:
        self.done = min(self.done + count, self.row_end)
        if self.on_progress:
            self.on_progress(self.done, self.total, self.text)


class _CountedBatches(list[Any]):
    """Batches that tell how far somebody has read them."""

    def __init__(self, batches: Sequence[Any], told: _Told) -> None:
        super().__init__(batches)
        self._told = told

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            yield batch
            self._told.step()


def run_quality(
    settings: QualitySettings,
    *,
    before: Results | None = None,
    on_row: Callable[[Results], None] | None = None,
    on_progress: Progress | None = None,
) -> Results:
    """Judge every form of every model, and return a row for each.

    Parameters
    ----------
    settings
        What to judge, and by how much text.
    before
        An earlier run: its rows of the same settings, if they did not fail, are taken over.
    on_row
        Called with all that there is after every row.
    on_progress
        Called with (steps done, steps in all, what comes next).

    Returns
    -------
    Results
        Rows of kind ``lowrank-quality``: model, form, method, windows, calibration, seed, bytes (of
        all but the embeddings), seconds (to compress), quality (by metric), failure.
    """
    kept = {_key(row): row for row in before.rows if row["failure"] is None} if before else {}
    record = before.environment if before and kept else environment.describe(settings.threads)
    wanted = [
        (subject, entry, _head(subject, entry, settings))
        for subject in settings.subjects
        for entry in settings.entries()
    ]
    left = [(s, entry) for s, entry, head in wanted if _key(head) not in kept]
    told = _Told(sum(_steps(s, entry, settings) for s, entry in left), on_progress)
    with environment.held_threads(settings.threads):
        for subject, entry, head in wanted:
            if _key(head) in kept:
                continue
            text = f"{subject}: {entry.name} {entry.method}".strip()
            told.begin(text, _steps(subject, entry, settings))
            kept[_key(head)] = head | _judged(subject, entry, settings, told)
            told.step(told.row_end - told.done)
            if on_row:
                on_row(Results(record, _in_order(wanted, kept)))
    return Results(record, _in_order(wanted, kept))


def apply(model: nn.Module, entry: Entry, subject: str, batches: Sequence[Any] | None) -> nn.Module:
    """The model in the form of ``entry``, in place; ``batches`` are looked at where it is aware."""
    import gossamer as gs

    ignore = IGNORED[subject]
    calibration = batches if entry.aware else None
    if entry.parameters:
        from gossamer.factorization import factorize

        method = AWARE if entry.aware else "plain"
        factorized: nn.Module = factorize(
            model,
            parameters=entry.parameters,
            method=method,
            calibration=calibration,
            ignore=ignore,
            progress=False,
        )
        return factorized
    if entry.rank:
        from gossamer.factorization.correction import LowRankCorrection

        recipe: Any = [entry.scheme, LowRankCorrection(rank=entry.rank)]
        compress: Any = gs.compress
        corrected: nn.Module = compress(
            model, recipe, ignore=ignore, calibration=calibration, progress=False
        )
        return corrected
    return gs.compress(model, entry.scheme, ignore=ignore, progress=False)


def linear_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers but those of embeddings (and of heads tied to them)."""
    tables = {
        id(module.weight): module.weight.nbytes
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    }
    return models.model_bytes(model) - sum(tables.values())


def calibration_batches(
    subject: str, tokenizer: Any, windows: int, seed: int
) -> list[dict[str, torch.Tensor | int | bool]]:
    """Text that no judgement is made on, about ``windows`` times 512 tokens, drawn by ``seed``.

    SmolLM2: windows of the first half of the Wikipedia articles, of which the second half is what
    perplexity is measured on. MiniLM: the background documents of Lee, Pincombe and Welsh.
    """
    generator = torch.Generator().manual_seed(seed)
    if subject == "smollm2":
        articles = quality.wikipedia_articles(fetch(TEXTS) / "wiki.xml.bz2")
        ids = torch.tensor(tokenizer("\n\n".join(articles[: len(articles) // 2]))["input_ids"])
        whole = ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)
        chosen = whole[torch.randperm(len(whole), generator=generator)[:windows]]
        # The head is not touched, so logits of one token are enough.
        return [
            {"input_ids": window[None], "use_cache": False, "logits_to_keep": 1}
            for window in chosen
        ]
    texts = (fetch(TEXTS) / "lee_background.cor").read_text("latin-1").splitlines()
    batches: list[dict[str, torch.Tensor | int | bool]] = []
    room = windows * TOKENS
    for number in torch.randperm(len(texts), generator=generator).tolist():
        ids = torch.tensor(
            tokenizer(texts[number], truncation=True, max_length=models.MINILM_MAX_TOKENS)[
                "input_ids"
            ]
        )
        room -= len(ids)
        if room < 0 and batches:
            break
        batches.append({"input_ids": ids[None]})  # one at a time: padding would be counted
    return batches


def _judged(subject: str, entry: Entry, settings: QualitySettings, told: _Told) -> Row:
    try:
        return _compress_and_judge(subject, entry, settings, told)
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return {"failure": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def _compress_and_judge(subject: str, entry: Entry, settings: QualitySettings, told: _Told) -> Row:
    model, tokenizer = SUBJECTS[subject].load()
    batches = None
    if entry.aware:
        text = calibration_batches(subject, tokenizer, settings.calibration, settings.seed)
        batches = _CountedBatches(text, told)
    start = time.perf_counter()
    if entry != Entry():
        model = apply(model, entry, subject, batches)
    seconds = time.perf_counter() - start
    told.step(COMPRESS_STEPS)
    judged = SUBJECTS[subject].judge(model, tokenizer, settings.windows, lambda *_: told.step())
    if subject == "minilm":
        judged["similarity"] = similarity(model, tokenizer)
    size = linear_bytes(model)
    return {"bytes": size, "seconds": seconds, "quality": judged, "failure": None}


def similarity(model: nn.Module, tokenizer: Any) -> float:
    """Mean cosine between embeddings by ``model`` and by dense MiniLM, of the documents of Lee."""
    ours = torch.from_numpy(models.encode(model, tokenizer, _documents()))
    return float((ours * _dense_embeddings()).sum(1).mean())


def _documents() -> list[str]:
    return (fetch(TEXTS) / "lee.cor").read_text("latin-1").splitlines()


@cache
def _dense_embeddings() -> torch.Tensor:
    return torch.from_numpy(models.encode(*models.load_minilm(), _documents()))


def _steps(subject: str, entry: Entry, settings: QualitySettings) -> int:
    calibrating = settings.calibration if entry.aware else 0
    return COMPRESS_STEPS + calibrating + SUBJECTS[subject].steps(settings.windows)


def _head(subject: str, entry: Entry, settings: QualitySettings) -> Row:
    return {
        "kind": "lowrank-quality",
        "model": subject,
        "form": entry.name,
        "method": entry.method,
        "windows": settings.windows,
        "calibration": settings.calibration if entry.aware else 0,
        "seed": settings.seed if entry.aware else 0,
    }


def _key(row: Row) -> tuple[object, ...]:
    names = ("model", "form", "method", "windows", "calibration", "seed")
    return tuple(row[name] for name in names)


def _in_order(
    wanted: Sequence[tuple[str, Entry, Row]], kept: dict[tuple[object, ...], Row]
) -> list[Row]:
    """Rows that were asked for, in their order, then those that were there beside."""
    first = [_key(head) for _, _, head in wanted]
    return [kept[key] for key in [*first, *(set(kept) - set(first))] if key in kept]
