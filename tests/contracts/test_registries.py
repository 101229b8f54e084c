"""What is read from a method's source is what its class says, and every method declares itself fully."""

import inspect
import subprocess
import sys

import pytest

from lrft.registry import axes
from lrft.registry.config import MethodConfig
from lrft.registry.declared import declarations
from lrft.registry.errors import LrftError
from lrft.registry.registry import Registry
from lrft.registry.traits import TRAITS
from tests.each import each

REGISTRIES = {name: found for name, found in vars(axes).items() if isinstance(found, Registry)}
METHODS = [(registry, name) for registry in REGISTRIES.values() for name in registry.names()]
SOURCED = [
    (registry, name)
    for registry in (axes.ADAPTERS, axes.INITS, axes.OPTIMIZERS, axes.QUANTIZERS)
    for name in registry.names()
    if not name.endswith("_reference")
]

every_method = each(("registry", "name"), METHODS)


@pytest.mark.parametrize("name", axes.ADAPTERS.names())
def test_the_roles_that_are_declared_are_all_that_the_class_has(name):
    """Parts that sites share may add some; s2_lora and smore say theirs as they are built."""
    declared = axes.ADAPTERS.declared(name).roles
    if declared is not None:
        assert set(axes.ADAPTERS.get(name).roles.values()) <= declared


def test_every_axis_of_a_recipe_is_a_registry_with_methods():
    assert set(axes.AXES.values()) <= set(REGISTRIES.values())
    assert all(registry.names() for registry in axes.AXES.values())


@every_method
def test_what_is_declared_is_what_is_imported(registry, name):
    declared, cls = registry.declared(name), registry.get(name)
    assert (declared.name, declared.class_name) == (name, cls.__name__)
    assert cls.name == name
    assert declared.doc == (inspect.cleandoc(cls.__doc__) if cls.__doc__ else "")
    config = getattr(cls, "Config", registry.config)
    assert declared.config.model_json_schema() == config.model_json_schema()
    assert declared.provides == set(getattr(cls, "provides", set()))
    assert declared.requires == set(getattr(cls, "requires", set()))
    assert declared.aliases == vars(cls).get("aliases", {})


def test_declarations_are_read_without_importing_torch():
    code = (
        "import sys; from lrft.registry import axes; from lrft.registry.registry import Registry\n"
        "for registry in [held for held in vars(axes).values() if isinstance(held, Registry)]:\n"
        "    for name in registry.names(): registry.declared(name).config.model_json_schema()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@every_method
def test_nothing_is_owed(registry, name):
    assert registry.unfinished(name) == []


@every_method
def test_traits_come_from_the_vocabulary(registry, name):
    declared = registry.declared(name)
    assert declared.provides | declared.requires <= TRAITS.keys()


@every_method
def test_the_docstring_begins_with_one_sentence_that_fits_a_table(registry, name):
    summary = registry.declared(name).summary
    assert summary.endswith((".", ":")) and len(summary) <= 110


@every_method
def test_settings_survive_json(registry, name):
    config = registry.declared(name).config
    if any(field.is_required() for field in config.model_fields.values()):
        return  # what it needs to be told, its smoke recipe tells
    settings = config(method=name)
    assert config.model_validate_json(settings.model_dump_json()) == settings


@each(("registry", "name"), SOURCED)
def test_the_docstring_names_its_source_and_its_departures(registry, name):
    doc = registry.declared(name).doc
    assert "Source:" in doc, f"{name}: say where the method comes from"
    assert "Departures:" in doc, f"{name}: say what differs from the source, or none"


def declared_in(tmp_path, before, setting):
    """The settings of a method whose file has a line before its class."""
    path = tmp_path / "strange.py"
    path.write_text(
        "from lrft.registry.config import Field, Literal, MethodConfig\n"
        f"{before}\n"
        "@SOME.register\n"
        "class Strange:\n"
        "    class Config(MethodConfig):\n"
        f"        {setting}\n"
    )
    return declarations("lrft.methods.strange", path, MethodConfig)["Strange"].config


@pytest.mark.parametrize("literal", ["4", "-4", "(4, 5)", "'four'", "None", "{'four': 4}"])
def test_a_default_may_be_a_literal_constant_of_the_file(tmp_path, literal):
    config = declared_in(tmp_path, f"DEFAULT = {literal}", "size: object = Field(DEFAULT)")
    assert config().size == eval(literal)


@pytest.mark.parametrize(
    ("before", "setting"),
    [
        ("DEFAULT = 2 * 2", "size: int = Field(DEFAULT)"),
        ("from lrft.ops.linalg import DEFAULT", "size: int = DEFAULT"),
        ("DEFAULT = Literal['a', 'b']", "size: DEFAULT = 'a'"),
    ],
)
def test_what_only_running_the_file_would_tell_is_named_with_the_file(tmp_path, before, setting):
    with pytest.raises(LrftError, match=r"strange\.py:5: Config uses DEFAULT, .*write the value itself"):
        declared_in(tmp_path, before, setting)


def test_an_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(KeyError, match="did you mean nf4"):
        axes.QUANTIZERS.get("nf5")
