"""Compiles a chat template to Python in which every operation is a call that the sandbox bounds."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from types import CodeType
from typing import Any

from jinja2 import Environment, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser

from tinylm.chat_template.budget import LimitError

LARGEST_TEMPLATE = 100_000  # characters; the longest published ones have some 30,000
LONGEST_EXPRESSION = (
    2_000  # words and signs between `{{` and `}}`; each may stand one deeper than the one before
)
LARGEST_SYNTAX = 10_000  # nodes of the syntax tree
DEEPEST_SYNTAX = (
    100  # nodes in nodes: Python's own compiler needs stack for each, and a thread may have little
)
MOST_BRANCHES = 500_000  # branches times names: compiling a branch goes through all the names
SYNTAX_NAMES = """
    Template Output TemplateData For If Macro CallBlock FilterBlock With ExprStmt Assign AssignBlock Name
    NSRef Const Tuple List Dict Pair Keyword CondExpr Filter Test Call Getitem Getattr Slice Concat Compare
    Operand Mul Div FloorDiv Add Sub Mod Pow And Or Not Neg Pos Continue Break EnvironmentAttribute
"""
ALLOWED_SYNTAX = frozenset(SYNTAX_NAMES.split())


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`: marks what the model wrote; its body is printed as it is.

    A call block, as in transformers, so that what is set inside stays inside.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Reads up to the closing tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = nodes.Call(nodes.EnvironmentAttribute("generation_body"), [], [], None, None)
        return nodes.CallBlock(call, [], [], body).set_lineno(line)


class LimitedCodeGenerator(CodeGenerator):
    """Writes a call of the environment where Jinja writes a bare operator or literal."""

    def visit(self, node: nodes.Node, *arguments: Any, **keywords: Any) -> Any:
        """Compiles one node, and looks at the clock now and then."""
        self.environment.charge(50)  # type: ignore[attr-defined]
        return super().visit(node, *arguments, **keywords)

    def write_call(self, method: str, arguments: Iterable[nodes.Node | None], frame: Frame) -> None:
        """Writes `environment.method(a, b, ...)`."""
        self.write(f"environment.{method}(")
        for argument in arguments:
            if argument is None:
                self.write("None")
            else:
                self.visit(argument, frame)
            self.write(", ")
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b ~ c`."""
        self.write_call("concatenate", node.nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        """`a == b`, `a < b < c`."""
        self.write("environment.compare(")
        self.visit(node.expr, frame)
        for operand in node.ops:
            # Delayed: in `a < b < c` the c is not looked at when a < b is false.
            self.write(f", ({operand.op!r}, lambda: ")
            self.visit(operand.expr, frame)
            self.write(")")
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """`a[b]`, `a[b:c]`."""
        if isinstance(node.arg, nodes.Slice):
            part = node.arg
            self.write_call("slice", (node.node, part.start, part.stop, part.step), frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        """`f(a)`; and the charge of a loop or macro, which needs no check of what is called."""
        if isinstance(node.node, nodes.EnvironmentAttribute) and node.node.name == "charge":
            self.write_call("charge", node.args, frame)
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """`[a, b]`."""
        self.write("environment.made(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """`(a, b)`, or the names on the left of `=`."""
        if node.ctx == "store":
            super().visit_Tuple(node, frame)
            return
        self.write("environment.made(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """`{a: b}`."""
        self.write("environment.made({")
        for pair in node.items:
            self.write("environment.key(")
            self.visit(pair.key, frame)
            self.write("): ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("})")

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        # Nothing but text is worked out while compiling, where no budget is kept.
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


def check_words(environment: Environment, source: str) -> None:
    """Refuses an expression whose syntax tree could be so deep that walking it or freeing it takes all the stack."""
    words = 0
    for _, kind, _ in environment.lex(source):
        words = 0 if kind in ("block_begin", "variable_begin") else words + (kind != "whitespace")
        if words > LONGEST_EXPRESSION:
            raise LimitError(f"an expression of the template is longer than {LONGEST_EXPRESSION:,} words")


def check_syntax(tree: nodes.Template) -> None:
    """Refuses tags that have no place in a chat template, and makes loops and macros pay for each round."""
    visited = branches = 0
    names = set()

    def walk(node: nodes.Node, depth: int) -> int:
        nonlocal visited, branches
        if depth > DEEPEST_SYNTAX:
            raise LimitError(f"the template is nested more than {DEEPEST_SYNTAX} deep")
        visited += 1
        if visited > LARGEST_SYNTAX:
            raise LimitError(f"the template is larger than {LARGEST_SYNTAX:,} syntax nodes")
        kind = type(node).__name__
        if kind not in ALLOWED_SYNTAX:
            raise TemplateSyntaxError(f"{kind.lower()!r} is not allowed in a chat template", node.lineno)
        if isinstance(node, nodes.Name):
            names.add(node.name)
        branches += isinstance(node, (nodes.If, nodes.CondExpr, nodes.For, nodes.Macro, nodes.CallBlock))
        if branches * len(names) > MOST_BRANCHES:
            raise LimitError("the template has too many branches and names")
        size = 1
        for child in node.iter_child_nodes():
            size += walk(child, depth + 1)
        if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            cost = nodes.Const(2 + size // 8)
            charge = nodes.Call(nodes.EnvironmentAttribute("charge"), [cost], [], None, None)
            node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(charge, node.test)
        return size

    walk(tree, 0)


@lru_cache(maxsize=32)
def compile_template(source: str, environment_class: type[Environment]) -> CodeType:
    """The compiled template; it holds no state and is run once for each rendering."""
    if len(source) > LARGEST_TEMPLATE:
        raise LimitError(f"the template is longer than {LARGEST_TEMPLATE:,} characters")
    environment = environment_class()
    check_words(environment, source)
    tree = environment.parse(source)
    check_syntax(tree)
    return environment.compile(tree, "chat template", "<chat template>")
