"""Every field of a config and every option of a method: how it is typed, and that a wrong value is
one line."""

import contextlib
import dataclasses
import io
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goat_jax.adapters.methods import METHODS
from goat_jax.adapters.spec import OF_THE_RUN, PARTS, AdapterSpec
from goat_jax.cli.arguments.config import override, with_adapter
from goat_jax.cli.arguments.field_help import attribute_help, describe_fields, field_help
from goat_jax.cli.main import main
from goat_jax.cli.verbs.compare import entry_config, read_entries
from goat_jax.cli.verbs.sweep import config_at, read_axis
from goat_jax.config.fields import (
    config_from_json,
    field_kinds,
    flatten,
    method_options,
    with_fields,
)
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig
from goat_jax.data.tasks.registry import EvalTask, LanguageTask, digits, files
from goat_jax.errors import UserError
from goat_jax.injection.selection import Override
from goat_jax.registry import REGISTRY
from reproduction.labels import read_label

DETERMINISTIC = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

TASKS = {
    "text": files("a.csv", "b.csv", labels=("bad", "good")),
    "language": LanguageTask("notes", "a.jsonl", "b.jsonl"),
    "eval": EvalTask("sums", "a.jsonl", "a.jsonl", eval="number"),
    "image": digits(),
}
CONFIGS = {kind: RunConfig(ModelConfig("m"), task) for kind, task in TASKS.items()}
FIELDS = [(kind, name) for kind, config in CONFIGS.items() for name in field_kinds(config)]


def options_of(holder):
    """Option -> value, of the parts that a spec or part holds."""
    found = {}
    for field in dataclasses.fields(holder):
        value = getattr(holder, field.name)
        if not isinstance(holder, AdapterSpec):
            found[field.name] = value
        if dataclasses.is_dataclass(value):
            found |= options_of(value)
    return found


OPTIONS = [(m, o, v) for m, row in METHODS.items() for o, v in options_of(row.spec).items()]
IDS = [f"{method}-{option}" for method, option, _ in OPTIONS]


def other(option, value):
    """Another valid value of an option."""
    if option == "first":
        return "alpha_over_rank"
    if callable(value):
        return "minor"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.5
    words = {"x": "zero", "moments": "full", "activation": "tanh", "size": "unit"}
    words |= {"directions": "random"}
    return words[option] if isinstance(value, str) else ["core"] if value else 0.01


def text_of(value):
    return value if isinstance(value, str) else json.dumps(value)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(
        "from goat_jax.config.run import *\n"
        "from goat_jax.data.tasks.registry import files\n"
        "def get_config(method='goat', rank: int | None = None, task=None, seed: int = 0):\n"
        "    return RunConfig(ModelConfig('nowhere'), files('a.csv', 'b.csv', labels=('x', 'y')),\n"
        "                     AdapterConfig(method, total_rank=rank))\n"
    )
    return path


@pytest.mark.parametrize(("method", "option", "value"), OPTIONS, ids=IDS)
def test_every_option_of_every_method_is_typed_alike_everywhere(config_file, method, option, value):
    """A spelling has one result in train, compare, sweep, the table programs, config files,
    run.json and overrides of some modules."""
    new = other(option, value)
    text = text_of(new)
    expected = METHODS[method].spec.replace(**{option: new})
    assert expected != METHODS[method].spec
    label = f"{method}:{option}={text}"
    (entry,) = read_entries([label])
    base = with_fields(CONFIGS["text"], {"adapter.method": method})
    dashed = f"--adapter.{option.replace('_', '-')}"
    configs = {
        "train": override(CONFIGS["text"], ["--adapter.method", method, dashed, text], "train"),
        "train, =": override(base, [f"--adapter.{option}={text}"], "train"),
        "compare": entry_config(str(config_file), entry),
        "table": with_adapter(base, read_label(label).adapter),
        "file": dataclasses.replace(base, adapter=AdapterConfig(method, options={option: new})),
    }
    if not isinstance(new, list):  # an axis of a sweep has single values
        axis = read_axis(f"adapter.{option}={text}")
        configs["sweep"] = config_at(base, ((axis.field, axis.values[0]),))
    for door, config in configs.items():
        assert config.adapter.spec() == expected, door
        assert config_from_json(json.loads(json.dumps(flatten(config)))).adapter.spec() == expected
    run_options = {o for part in OF_THE_RUN for o in options_of_part(method, part)}
    if option not in run_options:
        assert Override(".*", {option: new}).spec(METHODS[method].spec) == expected


def options_of_part(method, part):
    value = getattr(METHODS[method].spec, part)
    return options_of(value) | {} if dataclasses.is_dataclass(value) else {part: value}


@pytest.mark.parametrize("kind", PARTS)
def test_every_part_is_named_on_a_command_line(kind):
    for name in REGISTRY[kind]:
        config, part = CONFIGS["text"], f"--adapter.{kind.replace('_', '-')}"
        try:
            found = override(config, [part, name], "train").adapter.spec()
        except UserError as error:  # it does not go with GOAT's other parts
            assert "not known" not in str(error) and "no field" not in str(error)
        else:
            assert type(getattr(found, kind)) is REGISTRY[kind][name]


@pytest.mark.parametrize("kind", TASKS)
def test_every_field_has_help(kind):
    texts = field_help(CONFIGS[kind])
    assert set(texts) == set(field_kinds(CONFIGS[kind]))
    assert [name for name, text in texts.items() if len(text) < 8] == []


def test_every_option_has_help():
    parts = {part for parts in method_options().values() for part in parts}
    for part in parts:
        texts = attribute_help(part)
        assert [f.name for f in dataclasses.fields(part) if not texts.get(f.name)] == [], part


def test_the_help_has_every_field_and_every_option():
    shown = describe_fields(CONFIGS["eval"], "goat-jax train")
    names = [*field_kinds(CONFIGS["eval"]), *(f"adapter.{o}" for o in method_options())]
    assert [n for n in names if f"  --{n.replace('_', '-')}\n" not in shown] == []


WRONG = [
    math.nan, math.inf, -math.inf, -1, -0.5, 0, 0.5, 1e300, 1e-300, 10**400, 2**31, "", "abc",
    "nan", "1", True, False, None, [], [1, 2], ["a"], [math.nan], {}, {"a": math.nan}, {"a": 1},
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(WRONG),
    st.floats(),
    st.integers(),
    st.text(max_size=6),
    st.lists(st.one_of(st.floats(), st.text(max_size=3), st.integers()), max_size=3),
)


def sensible(config):
    """It is the same after run.json, and every number of its method is finite."""
    flat = flatten(config)
    text = json.dumps(flat, allow_nan=False)
    assert flatten(config_from_json(json.loads(text))) == flat
    spec = config.adapter.spec()
    sizes = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    for value in [*sizes.values(), *options_of(spec).values()]:
        if isinstance(value, int | float):
            assert abs(value) < 3.5e38


def taken_or_one_line(make):
    try:
        config = make()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) > 10
    else:
        sensible(config)


@pytest.mark.slow
@DETERMINISTIC
@given(place=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_of_any_field_is_sensible_or_one_line(place, value):
    kind, name = place
    taken_or_one_line(lambda: with_fields(CONFIGS[kind], {name: value}))


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_listed_values_of_every_field_are_sensible_or_one_line(value):
    for kind, name in FIELDS:
        taken_or_one_line(lambda: with_fields(CONFIGS[kind], {name: value}))  # noqa: B023


@DETERMINISTIC
@given(place=st.sampled_from(OPTIONS), value=VALUES)
def test_any_value_of_any_option_is_sensible_or_one_line(place, value):
    method, option, _ = place
    values = {"adapter.method": method, f"adapter.{option}": value}
    taken_or_one_line(lambda: with_fields(CONFIGS["text"], values))


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_listed_values_of_every_option_are_sensible_or_one_line(value):
    for method, option, _ in OPTIONS:
        values = {"adapter.method": method, f"adapter.{option}": value}
        taken_or_one_line(lambda: with_fields(CONFIGS["text"], values))  # noqa: B023


@DETERMINISTIC
@given(place=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_in_run_json_is_sensible_or_one_line(place, value):
    kind, name = place
    taken_or_one_line(lambda: config_from_json(flatten(CONFIGS[kind]) | {name: value}))


@pytest.mark.parametrize("value", [None, 3, [], {}, {"model": 3}, {"task.kind": 3}, {"a.b.c": 1}])
def test_what_is_no_config_is_one_line(value):
    with pytest.raises(UserError):
        config_from_json(value)


class Reached(Exception):
    """All words were taken: the run would begin."""


def stop(*arguments, **options):
    raise Reached


def ends_well(words):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(words)
    except Reached:
        return None
    assert code == 2 and len(said.getvalue().splitlines()) == 1, (words, said.getvalue())
    return said.getvalue()


ARGUMENTS = st.one_of(
    st.sampled_from(
        [
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1e999",
            "9" * 400,
            "",
            "abc",
            "true",
            "None",
            "none",
            "[]",
            '["a"]',
            "{}",
            '{"a": NaN}',
            "a=1",
            "=",
            "1e-320",
        ]
    ),
    st.text(max_size=5).filter(lambda text: not text.startswith("-")),
)


@pytest.mark.slow
@DETERMINISTIC
@given(
    name=st.sampled_from(
        [*field_kinds(CONFIGS["text"]), *(f"adapter.{option}" for option in method_options())]
    ),
    words=st.lists(ARGUMENTS, max_size=2),
)
def test_any_words_of_a_command_line_end_well(config_file, name, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("goat_jax.cli.verbs.train.fit", stop)
        ends_well(["train", "--quiet", "--config", str(config_file), f"--{name}", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter.eta", "-1"], "adapter.eta -1.0 is not valid"),
        (["--adapter.target-modules", "query", "key"], None),
        (["--adapter.target-modules", '["query"]'], None),
        (["--optimizer.lr", "1"], "did you mean --optimizer.learning-rate 1?"),
        (["--optimizer.max_grad_norm", "none"], None),
        (
            ["--optimizer.max_grad_norm", "nan"],
            "optimizer.max_grad_norm nan is not valid: give a number above 0",
        ),
        (["--train.best-by", "acc"], "train.best_by 'acc' is not known"),
        (["--steps", "5"], "did you mean --train.steps 5?"),
        (["--model.remat", "nosuch"], "model.remat 'nosuch' is not known"),
        (["--logging.no-utilization"], None),
        (["--model.options", "pooling=mean"], None),
        (["--adapter.method", "lora_dash", "--adapter.change-step", "20"], None),
        (["--adapter.change-step", "20"], "no option 'change_step'"),
        (["5"], "'5' is not a field: give fields as --NAME VALUE"),
        (["--train.steps"], "train.steps takes one value, not 0"),
        (["--train.steps", "5", "6"], "train.steps takes one value, not 2"),
        (["--train", "5"], "train is a group of fields"),
        (["--adapter.overrides", '[{"modules": ".*", "options": {"rho": 5}}]'], None),
        (["--adapter.overrides", '[{"modules": ".*", "options": {"rho": -5}}]'], "rho -5"),
        (["--adapter.overrides", '[{"module": ".*"}]'], "has no field 'module'"),
    ],
)
def test_words_of_a_command_line(config_file, monkeypatch, words, message):
    monkeypatch.setattr("goat_jax.cli.verbs.train.fit", stop)
    said = ends_well(["train", "--quiet", "--config", str(config_file), *words])
    assert said is None if message is None else message in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rank=abc", "rank 'abc' is not valid: give a whole number"),
        ("rank=NaN", "rank nan is not valid"),
        ("rank=8.5", "rank 8.5 is not valid"),
        ("rank=true", "rank True is not valid"),
        ("rnk=8", "did you mean 'rank'?"),
        ("rank", "not of the form name=value"),
        ("rank=8,rank=16", "rank is given twice"),
        ("method=lore", "unknown method 'lore'"),
        ("rank=-8", "adapter.total_rank -8 is not valid"),
    ],
)
def test_options_of_a_config_file(config_file, options, message):
    assert message in ends_well(["train", "--config", f"{config_file}:{options}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nosuch", "ModuleNotFoundError"),
        ("def get_config():\n    return 1 // 0", "line 2: ZeroDivisionError"),
        ("def get_config():\n    return {}", "returns a dict, not a RunConfig"),
        ("x = 1", "no function get_config"),
    ],
)
def test_errors_of_a_config_file_are_one_line(tmp_path, text, message):
    path = tmp_path / "config.py"
    path.write_text(text)
    assert message in ends_well(["train", "--config", str(path)])
