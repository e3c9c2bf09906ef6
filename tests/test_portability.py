"""What code that has to run on any chip does without: the sources are searched, and every exception is listed."""

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import gossamer

PACKAGE = Path(gossamer.__file__).parent
STEP = ("model", "ops", "train/step.py", "train/muon.py", "train/optimizer.py", "train/balance.py", "train/parallel.py")
TRAINING = ("model", "ops", "train", "run", "infer")


@dataclass(frozen=True)
class Rule:
    """What is not to be in some of the sources.

    Attributes:
        found: whether a node is such a thing
        sample: code in which it is
        within: files and folders it is searched for in; none: all but device/, which may
        allowed: how often it stands in which file all the same, and why that does no harm
    """

    found: Callable[[ast.AST], bool]
    sample: str
    within: tuple[str, ...] = ()
    allowed: tuple[tuple[str, int, str], ...] = ()


def attribute(*names: str, of: str = "") -> Callable[[ast.AST], bool]:
    """`x.name` of anything, or of a plain name such as `torch`; importing it counts, too."""

    def found(node: ast.AST) -> bool:
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=attr):
                return attr in names and of in ("", owner)
            case ast.Attribute(attr=attr):
                return attr in names and not of
            case ast.ImportFrom(module=str(module), names=imported):
                parts = module.split(".")
                return any(part in names for part in parts[1:]) or any(
                    alias.name in names and of in ("", module) for alias in imported
                )
            case ast.Import(names=imported):
                return any(part in names for alias in imported for part in alias.name.split(".")[1:])
        return False

    return found


def method(*names: str) -> Callable[[ast.AST], bool]:
    """A call `x.name(…)`."""

    def found(node: ast.AST) -> bool:
        match node:
            case ast.Call(func=ast.Attribute(attr=attr)):
                return attr in names
        return False

    return found


def float64(node: ast.AST) -> bool:
    """`torch.float64`, `torch.double` and `x.double()`; to compare with one makes none."""
    return attribute("float64", "double", of="torch")(node) or method("double")(node)


def spelled(word: str) -> Callable[[ast.AST], bool]:
    """A string that contains the word; documentation, a statement of its own, is passed over below."""
    return lambda node: isinstance(node, ast.Constant) and isinstance(node.value, str) and word in node.value


RULES = {
    "an accelerator by name": Rule(attribute("cuda", "is_cuda", "cudnn"), "torch.cuda.stream(); x.cuda(); x.is_cuda"),
    "a collective library by name": Rule(spelled("nccl"), "backend = 'cpu:gloo,cuda:nccl'"),
    "float64 where a step computes": Rule(
        float64,
        "x = torch.zeros(3, dtype=torch.float64); y = x.double()",
        TRAINING,
        (
            ("ops/checks.py", 1, "a type that tensors may come in; none is made"),
            ("run/validate.py", 2, "sums over a held-out set, on the host"),
            ("run/cost.py", 1, "joules, on the host"),
            ("train/world.py", 1, "numbers of the host, such as seconds"),
            ("ops/orthogonalize.py", 1, "for matrices that are in float64 already"),
            ("ops/sample_tokens.py", 3, "the reference, on the host"),
        ),
    ),
    "complex numbers": Rule(
        attribute("complex64", "complex128", "cfloat", "view_as_complex", "polar", "fft"), "torch.view_as_complex(x)"
    ),
    "a layout that not every chip has": Rule(
        attribute("channels_last", "channels_last_3d"), "x.to(memory_format=torch.channels_last)"
    ),
    "TorchScript": Rule(attribute("jit", of="torch"), "torch.jit.script(f)"),
    "waiting for the device in a step": Rule(
        method("item", "tolist", "nonzero", "numpy"),
        "x.item(); x.tolist(); x.nonzero(); x.numpy()",
        STEP,
        (
            ("ops/checks.py", 1, "which id is wrong, on a CPU, in a message"),
            ("ops/grouped_mlp/sorted.py", 1, "how many tokens each expert has decides the shapes of its products"),
            ("model/decode/drafts.py", 2, "tokens, on the host"),
            ("model/decode/layers.py", 1, "the names in the native kernels' table, once"),
            ("model/sampled_vocabulary.py", 2, "which tokens a batch has is found on the host"),
            ("ops/linear_cross_entropy.py", 1, "which tokens have a label, on a CPU alone"),
            ("ops/token_logprobs.py", 1, "how many tokens have a label decides the shape of the result"),
            ("ops/packing.py", 1, "where documents begin is on the host already"),
            ("train/balance.py", 4, "for a line of metrics, between steps"),
            ("train/step.py", 1, "how many targets the step has: the losses are divided by it"),
        ),
    ),
}  # fmt: skip


def occurrences(rule: Rule, tree: ast.AST) -> Iterator[int]:
    """The lines on which it stands, but for documentation and comparisons."""
    passed_over = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) not in passed_over and rule.found(node):
            yield getattr(node, "lineno", 0)


def searched(rule: Rule) -> Iterator[tuple[str, list[int]]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        inside = any(name == place or name.startswith(f"{place}/") for place in rule.within)
        if (inside if rule.within else not name.startswith("device/")) and path.name != "reference.py":
            yield name, list(occurrences(rule, ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("what", RULES)
def test_the_sources_do_without(what: str) -> None:
    rule = RULES[what]
    found = {name: lines for name, lines in searched(rule) if lines}
    allowed = {name: count for name, count, _ in rule.allowed}
    assert Counter({name: len(lines) for name, lines in found.items()}) == allowed, found


@pytest.mark.parametrize("what", RULES)
def test_the_search_finds_it(what: str) -> None:
    rule = RULES[what]
    statements = [list(occurrences(rule, statement)) for statement in ast.parse(rule.sample).body]
    assert all(statements), rule.sample


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("an accelerator by name", "import torch.cuda"),
        ("an accelerator by name", "from torch import cuda"),
        ("an accelerator by name", "from torch.cuda import synchronize"),
        ("TorchScript", "from torch import jit"),
    ],
)
def test_the_search_finds_imports(what: str, code: str) -> None:
    assert list(occurrences(RULES[what], ast.parse(code)))


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("a collective library by name", '"""Not by nccl."""'),
        ("float64 where a step computes", "exact = x.dtype == torch.float64"),
        ("float64 where a step computes", "x = np.zeros(3, dtype=np.float64)"),
        ("TorchScript", "from triton import jit"),
    ],
)
def test_the_search_passes_over_what_is_none(what: str, code: str) -> None:
    assert not list(occurrences(RULES[what], ast.parse(code)))
