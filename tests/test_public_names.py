"""What `goat_jax` offers: a list that changes on purpose only, every name of it documented."""

import importlib.resources
import inspect

import goat_jax

PUBLIC = [
    "METHODS",
    "Adapted",
    "AdapterSpec",
    "AdapterStart",
    "Context",
    "Dense",
    "Factor",
    "Head",
    "InjectReport",
    "Loaded",
    "Method",
    "Override",
    "Report",
    "RunFailed",
    "UserError",
    "adapt_linen",
    "adapt_nnx",
    "apply_adapter",
    "init_adapter",
    "inject",
    "load_model",
    "merge_adapter",
    "merge_model",
    "merge_nnx",
    "method_spec",
    "run_adapted",
    "run_model",
    "split_model",
]
"""Names that a release must not lose. A new one is added here and to `__all__`."""


def test_the_public_names_are_these():
    assert goat_jax.__all__ == PUBLIC
    assert all(hasattr(goat_jax, name) for name in PUBLIC)


def test_every_public_name_is_documented():
    for name in PUBLIC:
        value = getattr(goat_jax, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert value.__doc__ and len(value.__doc__.split()) > 3, name
        assert not value.__doc__.startswith(f"{name}("), f"{name} has no text of its own"
        arguments = inspect.signature(value).parameters if inspect.isfunction(value) else {}
        for argument in arguments.values():
            assert argument.annotation is not inspect.Parameter.empty, f"{name}({argument})"


def test_it_is_typed():
    assert importlib.resources.files("goat_jax").joinpath("py.typed").is_file()
