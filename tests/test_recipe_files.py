"""Recipe files: what they mean, and mistakes, each of which is an error with its line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gossamer as gs
from gossamer import pruning
from gossamer.quantization import METHODS
from gossamer.recipe_files import RecipeFile, TextCalibration, is_recipe, load_recipe, recipe_names
from gossamer.recipe_yaml import parse

pytest.importorskip("yaml")


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def read(text: str | bytes) -> RecipeFile:
        Path("recipe.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe("recipe.yaml")

    return read


class TestMeaning:
    def test_everything(self, load: Any) -> None:
        found = load("""
steps:
  - prune: {sparsity: 0.5, method: sparsegpt}
  - quantize: {scheme: int4, group_size: 64, method: [awq, gptq]}
  - correct: {rank: 16}
targets: [model.layers, "re:.*proj"]
ignore: [lm_head]
overrides:
  "*.down_proj": int8
  "*.gate_proj": [prune: 0.25, int8]
  "*.up_proj": {prune: {pattern: 2:4}}
calibration: {text: corpus.txt, windows: 64, tokens: 256, seed: 7}
batch: [1, large]
""")
        assert found == RecipeFile(
            path="recipe.yaml",
            steps=(
                gs.Prune(0.5, method="sparsegpt"),
                gs.Quantize("int4", group_size=64, method=("awq", "gptq")),
                gs.LowRankCorrection(16),
            ),
            targets=("model.layers", "re:.*proj"),
            ignore=("lm_head",),
            overrides={
                "*.down_proj": (gs.Quantize("int8"),),
                "*.gate_proj": (gs.Prune(0.25), gs.Quantize("int8")),
                "*.up_proj": (gs.Prune(pattern="2:4"),),
            },
            calibration=TextCalibration("corpus.txt", 64, 256, 7),
            batch=(1, "large"),
        )

    def test_short_forms(self, load: Any) -> None:
        found = load("steps: [prune: 0.5, quantize: int8, correct: 8]\nignore: lm_head\nbatch: 1\n")
        assert found.steps == (gs.Prune(0.5), gs.Quantize("int8"), gs.LowRankCorrection(8))
        assert (found.ignore, found.batch) == (("lm_head",), (1,))
        assert load("steps: [int4-g64]").steps == (gs.Quantize("int4-g64"),)
        assert load("steps: [prune: .5, correct: ]").steps[1] == gs.LowRankCorrection()

    def test_settings_of_methods(self, load: Any) -> None:
        (step,) = load("""
steps:
  - prune:
      sparsity: 0.7
      method: {sparsegpt: {damping: 1e-1}}
      allocation:
        owl: {outlier: 7, per: layer}
""").steps
        owl = pruning.OWL(outlier=7, per="layer")
        assert step == gs.Prune(0.7, method=pruning.SparseGPT(damping=0.1), allocation=owl)
        assert load("steps: [prune: {sparsity: 0.7, method: {wanda: }}]").steps == (
            gs.Prune(0.7, method=pruning.Wanda()),
        )

    def test_settings_of_quantization_methods(self, load: Any) -> None:
        (step,) = load(
            "steps:\n  - quantize:\n      scheme: int4\n"
            "      method: [awq, {autoround: {iterations: 50}}]\n"
        ).steps
        autoround = METHODS["autoround"](iterations=50)
        assert step == gs.Quantize("int4", method=("awq", autoround))
        (step,) = load("steps: [quantize: {scheme: int4, method: {gptq: {damping: 0.05}}}]").steps
        assert step == gs.Quantize("int4", method=METHODS["gptq"](damping=0.05))

    def test_yaml_has_no_traps(self, load: Any) -> None:
        """In YAML 1.1 ``2:4`` is 124, ``no`` is false and ``1e-2`` is text."""
        (step,) = load("steps: [prune: {pattern: 2:4, method: {sparsegpt: {damping: 1e-2}}}]").steps
        assert step.pattern == "2:4"
        assert step.method.damping == 0.01
        assert load("steps: [int8]\nignore: [no, 'null']").ignore == ("no", "null")

    def test_a_text_is_beside_the_recipe(self, tmp_path: Path) -> None:
        folder = tmp_path / "there"
        folder.mkdir()
        for text, expected in (("a.txt", folder / "a.txt"), ("/b.txt", Path("/b.txt"))):
            (folder / "r.yaml").write_text(f"steps: [int8]\ncalibration: {{text: {text}}}\n")
            assert load_recipe(folder / "r.yaml").calibration == TextCalibration(str(expected))
        (folder / "r.yaml").write_text("steps: [int8]\ncalibration: {windows: 8}\n")
        assert load_recipe(folder / "r.yaml").calibration == TextCalibration(windows=8)


class TestNames:
    @pytest.mark.parametrize("name", recipe_names())
    def test_shipped_recipes_load(self, name: str) -> None:
        found = load_recipe(name)
        assert found.path == name
        assert found.steps
        assert is_recipe(name)
        assert name not in gs.schemes.SCHEMES

    def test_what_they_are(self) -> None:
        assert recipe_names() == ("balanced", "fast", "smallest")
        assert load_recipe("fast").steps == (gs.Quantize("int8"),)
        assert load_recipe("fast").calibration is None
        balanced = gs.Quantize("int4", group_size=64, method=("awq", "gptq"))
        assert load_recipe("balanced").steps == (balanced,)
        smallest = gs.Quantize("int4-per-channel", method="autoround")
        assert load_recipe("smallest").steps == (smallest,)

    def test_what_is_a_recipe(self) -> None:
        assert is_recipe("somewhere/r.yaml")
        assert is_recipe("r.yml")
        assert is_recipe(Path("anything"))
        for other in ("int8", "int4-g64", gs.Quantize("int8"), ["int8"], None):
            assert not is_recipe(other)

    def test_nothing_of_that_name(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"load_recipe: source: 'balansed' is no .* mean balanced\?"
        ):
            load_recipe("balansed")
        with pytest.raises(ValueError, match=r"is no file and none of balanced, fast, smallest"):
            load_recipe(tmp_path)

    def test_without_yaml(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "yaml", None)
        with pytest.raises(RuntimeError, match=r"pip install 'gossamer\[cli\]'"):
            load_recipe("fast")


MISTAKES = {
    "": r":1: is empty",
    "# only a comment\n": r":1: is empty",
    "int8": r":1: recipe: got 'int8', wanted a mapping with the keys steps, targets",
    "ignore: [a]": r":1: recipe: has no steps",
    "steps:\n": r":1: steps: got nothing, wanted a list",
    "steps: []": r":1: steps: got an empty list, wanted a list",
    "steps: int8": r":1: steps: got 'int8', wanted a list",
    "\nsteps: [int8]\nignroe: [a]": r":3: recipe: unknown key 'ignroe', .*did you mean ignore\?",
    "steps:\n- int8\nsteps:\n- int4": r":3: key 'steps' occurs twice, first in line 1",
    "steps:\n- prune: {sparsity: 0.5,\n    sparsity: 0.6}": r":3: key 'sparsity' occurs twice",
    "steps:\n- pruen: 0.5": r":2: step: unknown key 'pruen', .*did you mean prune\?",
    "steps:\n- prune: 0.5\n  quantize: int8": r":2: step: got 2 keys, wanted one of prune",
    "steps:\n- 8": r":2: step: got 8, wanted a mapping with the keys prune, quantize, correct",
    "steps:\n- int9": r":2: Quantize: scheme: got 'int9', wanted one of int8",
    "steps:\n- prune:\n    sparsity: 1.5": r":3: Prune: sparsity: got 1.5, wanted a number in",
    "steps:\n- prune:\n    sparsity: half": r":3: Prune: sparsity: got 'half', wanted a number or",
    "steps:\n- prune:\n    sparsity: true": r":3: Prune: sparsity: got True, wanted a number or",
    "steps:\n- prune:\n    sparsty: 0.5": r":3: Prune: unknown key 'sparsty', .* mean sparsity\?",
    "steps:\n- prune:\n    scope: [row]": r":3: Prune: scope: got a list, wanted text or nothing",
    "steps:\n- prune:\n    scope: {row: 1}": r":3: Prune: scope: got a mapping, wanted text or",
    "steps:\n- prune: [0.5]": r":2: Prune: got a list, wanted a mapping with the keys sparsity",
    "steps:\n- prune:": r":2: Prune: sparsity: got None",
    "steps:\n- prune:\n    sparsity: 0.5\n    method: wonda": r":4: Prune: method: got str 'wonda'",
    "steps:\n- prune: {sparsity: 0.5, method: {wonda: }}": r":2: Prune: method: unknown .* wanda\?",
    "steps:\n- prune:\n    method: {wanda: , magnitude: }": r":3: Prune: method: got 2 keys, want",
    "steps:\n- prune:\n    method: [wanda]": r":3: Prune: method: got a list, wanted a mapping",
    "steps:\n- prune:\n    method:\n      sparsegpt:\n        damping: 0": (
        r":5: SparseGPT: damping: got 0, wanted a number above 0"
    ),
    "steps:\n- prune:\n    method:\n      sparsegpt:\n        dampin: 1": (
        r":5: SparseGPT: unknown key 'dampin', .* did you mean damping\?"
    ),
    "steps:\n- quantize:\n    scheme: int4\n    group_size: 60": r":4: Quantize: group_size: got",
    "steps:\n- quantize:\n    group_size: 64": r":2: .*scheme",
    "steps:\n- correct: {rank: 0}": r":2: LowRankCorrection: rank: got int 0",
    "steps:\n- correct: {rank: 2.5}": r":2: LowRankCorrection: rank: got 2.5, wanted a whole num",
    "steps:\n- int8\n- prune: 0.5": r":1: compress: scheme: got ",
    "steps: [int8]\ntargets: []": r":2: targets: got an empty list",
    "steps: [int8]\nignore: [a,\n  3]": r":3: ignore: got 3, wanted a pattern",
    "steps: [int8]\noverrides: [a]": r":2: overrides: got a list, wanted a mapping",
    "steps: [int8]\noverrides:\n  a: int9": r":3: Quantize: scheme: got 'int9'",
    "steps: [int8]\noverrides:\n  a:": r":3: step: got nothing, wanted a mapping",
    "steps: [int8]\ncalibration: {windows: 0}": r":2: TextCalibration: windows: got int 0, wanted",
    "steps: [int8]\ncalibration: {windows: x}": r":2: TextCalibration: windows: got 'x', wanted a",
    "steps: [int8]\ncalibration: {text: 5}": r":2: TextCalibration: text: got 5, wanted text or",
    "steps: [int8]\nbatch: small": r":2: compress: batch: got str 'small'",
    "steps: [int8": r":1: is not YAML: ",
    "steps:\n- int8\n- }": r":3: is not YAML: ",
    "a: b: c": r":1: is not YAML: ",
    "steps: [int8]\n---\nsteps: [int8]": r":2: is not YAML: ",
    "steps: &a [int8]\nignore: *a": r":2: an alias \(\*a\) is not allowed",
    "steps: !!python/object:os.system [int8]": r":1: a tag \(.*\) is not allowed",
    "steps:\n- ? [int8]\n  : 1": r":2: a key is a list or a mapping, wanted a name",
    "steps: " + 50 * "[": r":1: is nested deeper than 16",
    "steps:\n- \x07": r":2: is not YAML: ",
}


class TestMistakes:
    @pytest.mark.parametrize("text", MISTAKES)
    def test_the_line_is_named(self, text: str, load: Any) -> None:
        with pytest.raises(ValueError, match=r"^recipe\.yaml" + MISTAKES[text]):
            load(text)

    def test_bytes_that_are_no_text(self, load: Any) -> None:
        with pytest.raises(ValueError, match=r"recipe.yaml:2: is not YAML: is not UTF-8"):
            load(b"steps:\n- \xff\xfe")

    @given(text=st.text(alphabet="a:-[]{}, \n'\"&*!?#|>%@\t1", max_size=40))
    @settings(max_examples=200)
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        message = ""
        try:
            parse("recipe.yaml", text)
        except ValueError as error:
            message = str(error)
        assert not message or re.match(r"recipe\.yaml:\d+: ", message)

    def test_settings_are_checked(self) -> None:
        with pytest.raises(ValueError, match="TextCalibration: tokens: got bool True, wanted a wh"):
            TextCalibration(tokens=True)
        with pytest.raises(ValueError, match=r"TextCalibration: seed: got int -1, wanted .* >= 0"):
            TextCalibration(seed=-1)
