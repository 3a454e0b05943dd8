"""The limits of the package's lines: syntax nodes, length, types of public parameters."""

import ast
import io
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "natrig_nb"
MAX_NODES_PER_LINE = 14.0
MAX_NODES_P90 = 260
MAX_LINE = 110
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_modidx.py")
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def nodes_of(kind):
    """All nodes of a kind with their files."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield path.relative_to(ROOT), node


def function_sizes():
    """Syntax nodes and code lines of each function's body, docstring aside."""
    sizes = []
    for _, function in nodes_of((ast.FunctionDef, ast.AsyncFunctionDef)):
        has_docstring = ast.get_docstring(function) is not None
        body = function.body[1:] if has_docstring else function.body
        nodes = [node for statement in body for node in ast.walk(statement)]
        lines = {node.lineno for node in nodes if hasattr(node, "lineno")}
        if nodes:
            sizes.append((len(nodes), len(lines)))
    return sizes


def test_nodes_per_line():
    sizes = function_sizes()
    mean = sum(nodes for nodes, _ in sizes) / sum(lines for _, lines in sizes)
    assert mean <= MAX_NODES_PER_LINE


def test_size_of_functions():
    nodes = sorted(nodes for nodes, _ in function_sizes())
    assert nodes[int(0.9 * (len(nodes) - 1))] <= MAX_NODES_P90


def test_length_of_lines():
    long = []
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > MAX_LINE and not line.lstrip().startswith("#"):
                long.append(f"{path.relative_to(ROOT)}:{number}")
    assert not long


def test_no_lambda_has_a_name():
    found = [
        f"{path}:{node.lineno}"
        for path, node in nodes_of(ast.Assign)
        if isinstance(node.value, ast.Lambda)
    ]
    assert not found


def test_no_tuple_is_a_statement():
    found = [
        f"{path}:{node.lineno}"
        for path, node in nodes_of(ast.Expr)
        if isinstance(node.value, ast.Tuple)
    ]
    assert not found


def test_no_assignment_of_three():
    found = []
    for path, node in nodes_of(ast.Assign):
        targets, value = node.targets[0], node.value
        both = isinstance(targets, ast.Tuple) and isinstance(value, ast.Tuple)
        if both and len(value.elts) > 2:
            found.append(f"{path}:{node.lineno}")
    assert not found


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def test_no_comprehension_in_a_comprehension():
    found = []
    for path, node in nodes_of(COMPREHENSIONS):
        inside = [n for n in ast.walk(node) if isinstance(n, COMPREHENSIONS) and n is not node]
        if inside:
            found.append(f"{path}:{node.lineno}")
    assert not found


def test_public_parameters_are_typed():
    found = []
    for path, function in nodes_of((ast.FunctionDef, ast.AsyncFunctionDef)):
        if function.name.startswith("_"):
            continue
        arguments = function.args
        for argument in arguments.posonlyargs + arguments.args + arguments.kwonlyargs:
            if argument.annotation is None and argument.arg not in ("self", "cls"):
                found.append(f"{path}:{function.lineno} {function.name}({argument.arg})")
    assert not found


def test_public_parameters_have_names():
    forbidden = {"e", "t", "g", "f"}  # say cfg, trigger, data, defense
    found = []
    for path, function in nodes_of((ast.FunctionDef, ast.AsyncFunctionDef)):
        names = [a.arg for a in function.args.args]
        short = [name for name in names if name in forbidden]
        if short and not function.name.startswith("_"):
            found.append(f"{path}:{function.lineno} {function.name}({', '.join(short)})")
    assert not found


def test_public_names_are_defined_once():
    places = defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body:
            is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if is_definition and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def code_lines(path):
    """Lines with code: no blank lines, no comments, no docstrings."""
    source = path.read_text(encoding="utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            text = node.body[0]
            docstrings.update(range(text.lineno, text.end_lineno + 1))
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.STRING):
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - docstrings)


def test_experiments_are_declarations():
    folder = PACKAGE / "runs" / "experiments"
    names = ("walkthrough", "grid", "perturbations", "crossing")
    lines = {name: code_lines(folder / f"{name}.py") for name in names}
    assert max(lines.values()) <= 80, lines
