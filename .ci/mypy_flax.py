"""Tells mypy what flax's own annotations leave out; `pyproject.toml` loads it."""

from mypy.nodes import ARG_STAR2, Argument, Var
from mypy.plugin import ClassDefContext, MethodContext, Plugin
from mypy.plugins.common import add_method_to_class
from mypy.types import AnyType, Instance, Type, TypeOfAny
from mypy.typevars import fill_typevars

_ANY = AnyType(TypeOfAny.explicit)


def _add_replace(context: ClassDefContext) -> None:
  """`flax.struct.dataclass` gives its classes `replace(**fields)`."""
  fields = Argument(Var('fields', _ANY), _ANY, None, ARG_STAR2)
  itself = fill_typevars(context.cls.info)
  add_method_to_class(context.api, context.cls, 'replace', [fields], itself)


def _result(context: MethodContext) -> Type:
  """`Module.apply` returns what its method returns, for nobody here asks for state beside it."""
  receiver = context.type
  if isinstance(receiver, Instance) and receiver.type.has_base('flax.linen.module.Module'):
    return _ANY
  return context.default_return_type


class FlaxPlugin(Plugin):
  """The hooks above."""

  def get_class_decorator_hook(self, fullname: str):
    return _add_replace if fullname == 'flax.struct.dataclass' else None

  def get_method_hook(self, fullname: str):
    return _result if fullname.endswith('.apply') else None


def plugin(version: str) -> type[Plugin]:
  """Returns the plugin, as mypy asks for it."""
  return FlaxPlugin
