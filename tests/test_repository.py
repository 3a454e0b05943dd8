"What must hold for the repository as a whole."

import ast
import hashlib
import inspect
import os
import pkgutil
import subprocess
import sys
import tarfile
import textwrap
import typing
from configparser import ConfigParser
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import natrig_nb

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from check import export_differences, notebooks, untidy  # noqa: E402

def settings():
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]


def tracked():
    "Files that git knows, where this is a git checkout."
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("expected a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def modules():
    return [
        import_module(m.name)
        for m in pkgutil.walk_packages(natrig_nb.__path__, "natrig_nb.")
        if not m.name.endswith("_modidx")
    ]


def public_functions():
    "Functions of every module whose names have no leading underscore, offered to `import *` or not."
    found = {}
    for module in modules():
        for name, f in vars(module).items():
            own = inspect.isfunction(f) and f.__module__ == module.__name__
            if own and not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = f
    return found


def exported_functions():
    "Those that `import *` gives."
    modules_by_name = {module.__name__: module for module in modules()}
    found = {}
    for name, f in public_functions().items():
        module, _, short = name.rpartition(".")
        if short in getattr(modules_by_name[module], "__all__", []):
            found[name] = f
    return found


def test_package_equals_notebooks():
    found = export_differences()
    assert not found, "\n".join(found)


def test_notebooks_are_clean():
    found = [fault for path in notebooks() for fault in untidy(path)]
    assert not found, "\n".join(found)


def test_ruff_is_clean():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "natrig_nb", "tools"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_metadata_agree_with_settings():
    cfg, dist = settings(), distribution("natrig_nb")
    needed = {str(r) for r in map(Requirement, dist.requires) if not r.marker}
    assert (dist.metadata["Name"], dist.version, natrig_nb.__version__) == (
        cfg["lib_name"],
        cfg["version"],
        cfg["version"],
    )
    assert needed == {str(Requirement(r)) for r in cfg["requirements"].split()}
    assert {f"{e.name}={e.value}" for e in dist.entry_points} == set(cfg["console_scripts"].split())


def test_every_dependency_but_torch_is_pinned():
    pinned = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().split()}
    wanted = settings()["requirements"].split() + settings()["dev_requirements"].split()
    assert {canonicalize_name(Requirement(r).name) for r in wanted} - pinned == {"torch"}


def test_pictures_are_small():
    assert [
        p.name
        for p in (ROOT / "figures").rglob("*")
        if p.suffix != ".svg" and p.stat().st_size > 300_000
    ] == []


def test_no_photograph_of_a_person_is_committed():
    if "NATRIG_FACES" not in os.environ:
        pytest.skip("set NATRIG_FACES to the folder of real photographs")
    archives = list(Path(os.environ["NATRIG_FACES"]).glob("*.tar"))
    assert archives, f"expected a .tar in {os.environ['NATRIG_FACES']}"
    photographs = set()
    for path in archives:
        with tarfile.open(path) as tar:
            photographs |= {
                hashlib.sha256(tar.extractfile(m).read()).digest() for m in tar if m.isfile()
            }
    assert [
        str(p) for p in tracked() if hashlib.sha256(p.read_bytes()).digest() in photographs
    ] == []


def test_docstrings_start_with_one_short_line():
    docs = {name: inspect.getdoc(f) or "" for name, f in exported_functions().items()}
    wrong = []
    for name, doc in docs.items():
        first, _, rest = doc.partition("\n")
        if not 0 < len(first) <= 90 or (rest and not rest.startswith("\n")):
            wrong.append(f"{name}: {first!r}")
    assert not wrong, "\n".join(wrong)


def named(f):
    "Parameters of a function but for `*args` and `**settings`."
    return [
        p.name
        for p in inspect.signature(f).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def commented(f):
    "Parameters of a function with a comment behind them."
    source = textwrap.dedent(inspect.getsource(f))
    lines, arguments = source.splitlines(), ast.parse(source).body[0].args
    every = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    missing = [None] * (len(arguments.posonlyargs + arguments.args) - len(arguments.defaults))
    defaults = missing + arguments.defaults + arguments.kw_defaults
    ends = {a.arg: (d or a).end_lineno for a, d in zip(every, defaults, strict=True)}
    return {name for name, end in ends.items() if "  # " in lines[end - 1]}


def silent_parameters(functions):
    "(function, parameter) without a comment."
    found = []
    for name, wrapped in functions.items():
        f = inspect.unwrap(wrapped)
        texts = commented(f)
        found += [(name, p) for p in named(f) if p not in texts]
    return found


def test_parameters_say_what_they_are():
    functions = exported_functions()
    silent = []
    for name, parameter in silent_parameters(functions):
        if not says_its_type(inspect.unwrap(functions[name]), parameter, "natrig_nb"):
            silent.append(f"{name}({parameter})")
    assert not silent, "\n".join(silent)


# Words of the glossary, and fields of the settings of runs: they mean the same wherever they are.
KNOWN_WORDS = {
    *("seed", "resolution", "psi", "eps", "steps", "budget", "epochs", "batch", "rate", "rng", "n"),
    *("victim", "benign", "model", "models", "references", "detector", "network", "defense"),
    *("metric", "state", "settings", "experiment", "label_mode", "noise_eps", "hub", "sampling"),
    *("n_train", "n_held_out", "n_substitute", "n_references", "n_people", "n_studies"),
}


def says_its_type(f, parameter, *known):
    "Whether the type says enough: a class of the package, which has a docstring, or an artifact's path."
    kind = typing.get_type_hints(f).get(parameter)
    texts = [str(part) for part in (kind, *typing.get_args(kind))]
    return any(word in text for text in texts for word in known)


def test_parameters_of_helpers_say_what_they_are():
    functions = public_functions()
    silent = []
    for name, parameter in silent_parameters(functions):
        f = inspect.unwrap(functions[name])
        if parameter not in KNOWN_WORDS and not says_its_type(f, parameter, "natrig_nb", "Path"):
            silent.append(f"{name}({parameter})")
    assert not silent, "\n".join(silent)
