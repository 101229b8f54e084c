"""A chat template with payments put in: where it takes a step, and where it makes a value."""

from __future__ import annotations

from typing import TypeVar

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

Body = TypeVar("Body", nodes.For, nodes.Macro, nodes.CallBlock)


class Metered(NodeTransformer):
    """Puts calls of the environment's `step` and `charged` into a template."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [_charged(operand) for operand in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _charged(node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return _charged(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _charged(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _charged(node) if node.ctx == "load" else node

    def _counted(self, node: Body) -> Body:
        self.generic_visit(node)
        own = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        own += sum(len(str(text.value)) for text in node.find_all(nodes.Const))
        payment = nodes.ExprStmt(_call("step", nodes.Const(own)))
        node.body.insert(0, payment.set_lineno(node.lineno))
        return node


def _charged(node: nodes.Expr) -> nodes.Expr:
    return _call("charged", node)


def _call(name: str, argument: nodes.Expr) -> nodes.Expr:
    found = nodes.Call(nodes.EnvironmentAttribute(name), [argument], [], None, None)
    found.set_lineno(argument.lineno)
    return found
