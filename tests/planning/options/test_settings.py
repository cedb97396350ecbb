"""Options are declared once: as flags, with --set, and in a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import typer
from support.command import refused, run

from tenp_edge.cli.flags.declared import said_here, settings_rows
from tenp_edge.cli.main import loaded_verb
from tenp_edge.errors import UserError
from tenp_edge.planning.budget.allocators import BUILDERS
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.methods import METHODS
from tenp_edge.planning.options.settings import assigned, listed, make, options_of
from tenp_edge.planning.options.spec import Knobs, PlanOptions
from tenp_edge.scoring.expert_scores import EXPERT_SCORES
from tenp_edge.scoring.neuron_scores import NEURON_SCORES
from tenp_edge.verbs.options import CompressOptions
from tenp_edge.verbs.recipe_files import read_recipe, recipe_text

KNOWN = options_of(PlanOptions)


def shown(verb: str) -> list[str]:
    """The flags that the help of ``verb`` shows, --help among them."""
    command = loaded_verb(verb)
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    return [*(p.opts[0] for p in options), "--help"]


def test_the_help_can_be_read() -> None:
    assert len(shown("plan")) <= 24
    assert len(shown("compress")) <= 32


def test_every_option_is_a_flag_or_a_setting() -> None:
    for name, option in options_of(CompressOptions).items():
        assert (f"--{name}" in shown("compress")) != option.flag.knob, name
    assert {field.name for field in fields(Knobs)} < {field.name for field in fields(PlanOptions)}


def test_the_help_names_every_method_and_score() -> None:
    assert all(name in KNOWN["method"].flag.help for name in METHODS)
    assert all(name in KNOWN["expert-score"].flag.help for name in EXPERT_SCORES)
    assert all(name in KNOWN["neuron-score"].flag.help for name in NEURON_SCORES)
    assert all(score.formula for score in (*EXPERT_SCORES.values(), *NEURON_SCORES.values()))


def test_every_method_is_built() -> None:
    assert BUILDERS.keys() == METHODS.keys()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("keep", "60%", 0.6),
        ("keep", "0.6", 0.6),
        ("quant", "q4_k_m", "Q4_K_M"),
        ("quant", "Q4_K", "Q4_K_M"),
        ("quant", "INT8", "int8"),
        ("quant", "Q9", "Q9"),
        ("kv-type", "q8_0", "Q8_0"),
        ("ram", "auto", this_machine().budget_bytes),
        ("ram", "1GiB", 2**30),
    ],
)
def test_words_in_any_case(name: str, text: str, value: object) -> None:
    assert KNOWN[name].parse(text) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep", "half"), "--keep half: 'half' is not a number\ntry:   --keep 0.6\n"),
        (
            ("--keep", ".5", "--context", "4k"),
            "--context 4k: '4k' is not a whole number\ntry:   --context 4096\n",
        ),
    ],
)
def test_numbers_are_refused_in_our_words(words: tuple[str, ...], said: str) -> None:
    assert refused("plan", "demo", *words) == f"error: {said}"


def test_a_switch_has_no_value_in_the_help() -> None:
    command = loaded_verb("plan")
    parameters = command.get_params(typer.Context(command))
    switches = [p for p in parameters if getattr(p, "is_flag", False)]
    assert switches[-1].opts == ["--help"] and {p.metavar for p in switches} == {""}


def test_names_are_listed() -> None:
    assert listed(["a", "b", "c"]) == "a, b or c" and listed("ab", "and") == "a and b"


def test_settings_are_listed() -> None:
    listed = run("plan", "--help-set")
    assert listed.returncode == 0
    for name, _, _, only in settings_rows():
        assert name in listed.stdout
        assert (only == "") == (name in KNOWN)


def test_values_have_their_types() -> None:
    words = ("tilt=-0.5", "guard=super", "guard=tail", "imatrix=no", "shard-size=2GiB", "ubatch=64")
    options = make(PlanOptions, assigned(words, KNOWN, CompressOptions))
    assert options == PlanOptions(
        tilt=-0.5, guards=("super", "tail"), imatrix=False, shard_bytes=2**31, ubatch=64
    )


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("tilt", "--set tilt is not NAME=VALUE", "--set tilt=0.5; {help}"),
        ("tilted=1", "--set tilted is not known", "{help}"),
        ("ram=8GiB", "--set ram is not needed: it is a flag", "--ram 8GiB"),
        ("twin=yes", "--set twin is for compress", "leave it out"),
        ("tilt=much", "--set tilt=much: 'much' is not a number", "--set tilt=0.5"),
        ("ubatch=1.5", "--set ubatch=1.5: '1.5' is not a whole number", "--set ubatch=512"),
        ("imatrix=maybe", "--set imatrix=maybe: 'maybe' is not yes or no", "--set imatrix=yes"),
        ("guard=soft", "--set guard=soft is not known", "--set guard=super|tail"),
        ("whole-share=2", "--set whole-share=2 is not at least 0 and at most 1",
         "--set whole-share=0.3"),
    ],
)  # fmt: skip
def test_what_is_no_setting(word: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        assigned((word,), KNOWN, CompressOptions)
    help = "tenp-edge plan --help-set lists them"
    assert (caught.value.message, caught.value.hint) == (message, hint.format(help=help))


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("--tensor-type 'a=b' is not", "--set tensor-type='a=b' is not"),
        ("--no-imatrix, or --keep 0.6", "--set imatrix=no, or --keep 0.6"),
        ("leave --latent-cache out", "leave --set latent-cache=yes out"),
        ("--batch 4 and --batch are for", "--set batch=4 and --set batch are for"),
        ("another --target, --target qnn|nnapi", "another --set target, --set target=qnn|nnapi"),
        ("--set tilt=0.5; tenp-edge plan --help-set", "--set tilt=0.5; tenp-edge plan --help-set"),
    ],
)
def test_errors_say_what_this_verb_takes(said: str, typed: str) -> None:
    """Libraries that several verbs call say flags; plan and compress have settings for some."""
    found = said_here(UserError(said, said), options_of(CompressOptions))
    assert (found.message, found.hint) == (typed, typed)


def test_a_refused_setting_is_said_as_typed(checkpoint_of: Callable[[str], Path]) -> None:
    said = refused("plan", checkpoint_of("olmoe"), "--keep", "0.6", "--set", "tensor-type=x")
    assert said.splitlines()[-2] == "error: --set tensor-type='x' is not REGEX=TYPE"
    assert said.splitlines()[-1] == "try:   --set tensor-type='attn_v=Q8_0'"


def test_a_setting_is_given_once() -> None:
    with pytest.raises(UserError) as caught:
        assigned(("tilt=0", "tilt=1"), KNOWN, CompressOptions)
    assert caught.value.message == "--set tilt is given twice"


# -- recipes ---------------------------------------------------------------------------------------


def test_a_recipe_says_everything_again(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "ram": 3 * 2**29,
        "profile-file": Path("my board.toml"),
        "tilt": 0.5,
        "guard": ("super",),
        "tensor-type": ('attn_v\\."x"=Q8_0', "ffn=Q6_K"),
        "refine": True,
        "repair": False,
        "data": ("code=a.jsonl",),
        "split": False,
        "seed": 3,
        "output": Path("OUT"),
    }
    options = make(CompressOptions, values)
    file = tmp_path / "recipe.toml"
    file.write_text(recipe_text(options), encoding="utf-8")
    known = options_of(CompressOptions)
    assert make(CompressOptions, read_recipe(file, known, CompressOptions)) == options
    assert 'ram = "1.5GiB"' in file.read_text(encoding="utf-8")
    of_plan = read_recipe(file, KNOWN, CompressOptions)  # what is compress's own is passed over
    assert make(PlanOptions, of_plan) == options.plan


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("keep 0.5", "{file} is not a recipe: Expected '=' after a key in a key/value pair "
         "(at line 1, column 6)", "NAME = VALUE"),
        ("keeps = 0.5", "{file}: keeps is not known",
         "a flag's name; tenp-edge plan --help-set lists them"),
        ("force = true", "{file}: force is not known",
         "a flag's name; tenp-edge plan --help-set lists them"),
        ('keep = "half"', '{file}: keep = "half" is malformed', "keep = 0.6"),
        ("keep = true", "{file}: keep = true is malformed", "keep = 0.6"),
        ("ram = 8", "{file}: ram = 8 is malformed", 'ram = "8GiB"'),
        ('guard = "super"', '{file}: guard = "super" is malformed', 'guard = ["super"]'),
        ('guard = ["soft"]', "--set guard=soft is not known", "--set guard=super|tail"),
        ("imatrix = 1", "{file}: imatrix = 1 is malformed", "imatrix = true"),
        ("keep = 2.0", "--keep 2 is not above 0 and at most 1", "--keep 0.6"),
    ],
)  # fmt: skip
def test_what_is_no_recipe(text: str, message: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_recipe(file, KNOWN, CompressOptions)
    assert (caught.value.message, caught.value.hint) == (message.format(file=file), hint)


def digests(directory: Path) -> Mapping[str, str]:
    names = ("model.gguf", "plan.safetensors")
    return {name: sha256((directory / name).read_bytes()).hexdigest() for name in names}


def test_a_run_is_repeated_by_its_recipe(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same plan and the same bytes; a flag goes before the recipe, a size too."""
    model, first, second = checkpoint_of("qwen3_moe"), tmp_path / "first", tmp_path / "second"
    small = ("--samples", 2, "--seq-len", 64, "--no-validate", "--skip-checkpoint", "--no-repair")
    chosen = ("--keep", "0.6", "--set", "tilt=0.7", "--set", "width-multiple=8", *small)
    assert run("compress", model, *chosen, "-o", first).returncode == 0
    recipe = first / "recipe.toml"
    again = run("compress", model, "--recipe", recipe, "-o", second)
    assert again.returncode == 0, again.stderr
    assert digests(first) == digests(second)
    assert (second / "recipe.toml").read_text("utf-8") == recipe.read_text("utf-8").replace(
        str(first), str(second)
    )
    done = run("compress", model, "--recipe", recipe)
    assert f"nothing to do: {first} is complete" in done.stderr
    planned = run("plan", model, "--recipe", recipe, "--ram", "1GiB", "--json")
    record = json.loads(planned.stdout)["record"]
    assert (record["width_multiple"], record["keep_ratio"]) == (8, 1.0)
    assert refused("compress", model, "--keep", "0.6") == (
        "error: -o is missing: where the model is to be written\ntry:   -o OUT\n"
    )


def test_plan_leaves_a_recipe_beside_its_file(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "small.json"
    done = run("plan", checkpoint_of("olmoe"), "--keep", "0.5", "--method", "enp", "-o", file)
    assert done.returncode == 0, done.stderr
    options = read_recipe(tmp_path / "small.recipe.toml", KNOWN, CompressOptions)
    assert (options["keep"], options["method"]) == (0.5, "enp")
