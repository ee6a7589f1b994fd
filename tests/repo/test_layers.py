"""The architecture as rules: who may include or import what, and that nothing is without its twin or its test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC, PYTHON, TESTS = ROOT / "csrc", ROOT / "python" / "octavo", ROOT / "tests"
ISA_ROOT = CSRC / "kernels" / "isa"
INTRINSICS = {"immintrin.h", "arm_neon.h"}


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M)


def cpp_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in (".cpp", ".h"))


# ---- C++ ---------------------------------------------------------------------------------------------


def test_kernels_never_see_torch() -> None:
    files = cpp_files(CSRC / "kernels")
    assert len(files) > 20
    for path in files:
        for header in includes(path):
            assert not re.match(r"(torch|ATen|c10|pybind11|Python\.h|aoti)", header), (
                f"{path}: {header}"
            )


def test_ops_use_the_stable_interface_only() -> None:
    files = cpp_files(CSRC / "ops")
    assert files
    for path in files:
        for header in includes(path):
            if header.startswith(("torch/", "ATen", "c10")):
                assert header.startswith(("torch/csrc/stable/", "torch/headeronly/")), (
                    f"{path}: {header}"
                )
            elif "/" not in header and header.endswith(".h"):
                ours = [CSRC / folder / header for folder in ("ops", "kernels")]
                assert any(p.exists() for p in ours), f"{path}: {header}"


def isa_headers(folder: Path) -> set[str]:
    """What files of one ISA may include: plain structs and constants, C headers, intrinsics, their own headers.

    The shared headers are those that include nothing but each other and C headers, so that no inline function of
    the standard library is compiled with flags that other processors lack.
    """
    return {p.name for p in folder.glob("*.h")}


@pytest.mark.parametrize("folder", sorted(p.name for p in ISA_ROOT.iterdir() if p.is_dir()))
def test_isa_files_are_self_contained(folder: str) -> None:
    c_headers = {"cstdint", "cstddef", "cstring", "stdint.h", "stddef.h", "string.h"} | INTRINSICS
    shared = {p.name for p in (CSRC / "kernels").glob("*.h")}

    def check(path: Path, seen: set[Path]) -> None:
        if path in seen:
            return
        seen.add(path)
        for header in includes(path):
            if header in c_headers:
                continue
            near = (path.parent / header).resolve()
            common = (CSRC / "kernels" / header).resolve()
            target = near if near.exists() else common
            assert target.exists(), f"{path.relative_to(ROOT)} includes {header}"
            assert target.parent in (ISA_ROOT / folder, CSRC / "kernels") or target.is_relative_to(
                ISA_ROOT
            ), f"{path.relative_to(ROOT)} includes {header}"
            check(target, seen)

    assert shared
    for path in cpp_files(ISA_ROOT / folder):
        check(path, set())
        text = path.read_text()
        assert "std::vector" not in text and "new " not in re.sub(r"//.*", "", text), path
        assert not re.search(r"\b(throw|malloc|printf)\b", re.sub(r"//.*", "", text)), path


def test_every_isa_file_has_a_scalar_twin() -> None:
    scalar = {p.name for p in (ISA_ROOT / "scalar").glob("*.cpp")}
    assert {"gemm.cpp", "quantize.cpp", "pool.cpp", "elementwise.cpp", "minmax.cpp"} <= scalar
    for path in ISA_ROOT.glob("*/*.cpp"):
        # A variant that needs one more feature, or products with floats, stand beside the plain form.
        name = re.sub(r"_(vbmi|float)\.cpp$", ".cpp", path.name)
        assert name in scalar, f"{path.relative_to(ROOT)} has no scalar twin"


def test_every_cpp_file_says_its_place() -> None:
    for path in [*cpp_files(CSRC), *cpp_files(TESTS / "cpp")]:
        lines = path.read_text().splitlines()
        assert lines and lines[0].startswith("//"), (
            f"{path.relative_to(ROOT)} opens without a comment"
        )


def test_no_isa_conditions_inside_functions() -> None:
    for path in cpp_files(CSRC / "kernels"):
        if path.name in ("dispatch.cpp", "tile.h"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.match(r"\s*#\s*if.*__(AVX|SSE|ARM|AMX|FMA)", line), f"{path}:{number}"


# ---- Python ------------------------------------------------------------------------------------------


def test_only_ops_touch_torch_ops() -> None:
    for path in PYTHON.rglob("*.py"):
        if "ops" in path.relative_to(PYTHON).parts or path == PYTHON / "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("octavo", "library"):
                assert ast.unparse(node.value) not in ("torch", "torch.ops"), (
                    f"{path.name}:{node.lineno}"
                )


def test_only_rewrite_assigns_submodules() -> None:
    for path in PYTHON.rglob("*.py"):
        if path.name in ("surgery.py", "fold.py") or path.parent.name == "decomposed":
            continue  # The last take modules apart that hold no layers.
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in ("set_submodule", "add_module"), (
                    f"{path.name}:{node.lineno}"
                )
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                target = node.value
                if isinstance(target, ast.Attribute) and target.attr == "_modules":
                    own = isinstance(target.value, ast.Name) and target.value.id == "self"
                    assert own and path.name == "captured_forward.py", f"{path.name}:{node.lineno}"


BANNED = {
    "pickle": "files may come from strangers",
    "marshal": "files may come from strangers",
    "shelve": "files may come from strangers",
}


def test_banned_calls() -> None:
    """No way from the bytes of a file to code."""
    count = 0
    for path in PYTHON.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            count += 1
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not {a.name.split(".")[0] for a in node.names} & set(BANNED), where
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in BANNED, where
            if isinstance(node, ast.Call):
                function = node.func
                name = function.id if isinstance(function, ast.Name) else ""
                assert name not in ("eval", "exec", "compile", "__import__"), where
                if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                    dotted = f"{function.value.id}.{function.attr}"
                    assert dotted not in ("torch.load", "yaml.load", "mmap.mmap"), where
                    if dotted in ("np.load", "numpy.load"):
                        allowed = [k for k in node.keywords if k.arg == "allow_pickle"]
                        assert not any(
                            not (isinstance(k.value, ast.Constant) and k.value.value is False)
                            for k in allowed
                        ), where
                if path.parent.name == "checkpoint" and name in ("setattr", "getattr"):
                    assert isinstance(node.args[1], ast.Constant), where
        if path.parent.name == "checkpoint":
            assert "importlib" not in path.read_text(), path
    assert count > 1000


def test_no_assert_as_validation_of_user_input() -> None:
    """`python -O` removes assert; public stages must raise. Internal claims (isinstance for the type checker) pass."""
    for name in ("api.py", "checkpoint/load.py", "checkpoint/save.py", "numerics/scheme.py"):
        for node in ast.walk(ast.parse((PYTHON / name).read_text())):
            if isinstance(node, ast.Assert):
                text = ast.unparse(node.test)
                assert "isinstance" in text or "is not None" in text, (
                    f"{name}:{node.lineno}: {text}"
                )


# ---- operators, README, examples ------------------------------------------------------------------------


def schemas() -> list[str]:
    text = (CSRC / "ops" / "library.cpp").read_text()
    return re.findall(r'"(\w+)\(', text)


def test_every_op_has_schema_fake_and_test() -> None:
    names = schemas()
    assert {"quantize", "run_region", "pack_weight", "linear_dynamic"} <= set(names)
    fakes = "\n".join(p.read_text() for p in (PYTHON / "ops").rglob("*.py"))
    tests = "\n".join(p.read_text() for p in (TESTS / "python").rglob("*.py"))
    implementations = "\n".join(p.read_text() for p in (CSRC / "ops").glob("*.cpp"))
    readme = (CSRC / "README.md").read_text()
    for name in names:
        assert f"octavo::{name}" in fakes, f"{name} has no fake kernel"
        assert re.search(rf"\b{name}\b", tests), f"{name} has no test"
        assert re.search(rf'"{name}"', implementations), f"{name} has no implementation"
        assert re.search(rf"^{name}\(", readme, re.M), f"{name} is not in csrc/README.md"


def test_readme_paths_exist() -> None:
    checked = 0
    for readme in [
        ROOT / "README.md",
        *CSRC.rglob("README.md"),
        *(ROOT / "benchmarks").rglob("README.md"),
    ]:
        text = readme.read_text()
        for path in re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:md|toml|py|txt))`", text):
            if path.startswith(("http", "/")) or "<" in path or path.startswith("torch/"):
                continue
            places = (
                ROOT / path,
                readme.parent / path,
                CSRC / path,
                PYTHON / path,
                CSRC / "kernels" / path,
            )
            assert any(p.exists() for p in places), f"{readme.relative_to(ROOT)} names {path}"
            checked += 1
        for link in re.findall(r"\]\(([^)#:\s]+)\)", text):
            assert (readme.parent / link).exists(), f"{readme.relative_to(ROOT)} links {link}"
    assert checked > 5


def test_test_files_have_names_of_their_own() -> None:
    """pytest collects two files of one name only where both lie in packages; ours do not."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert len(names) > 40
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_nothing_machine_specific() -> None:
    for path in [ROOT / "CMakeLists.txt", ROOT / "setup.py", ROOT / "pyproject.toml"]:
        text = "\n".join(line.split("#")[0] for line in path.read_text().splitlines())
        assert "-march=native" not in text and "-mtune=native" not in text, path
        assert "find_package(Torch" not in text, path


def test_tensors_state_their_type() -> None:
    """torch.set_default_dtype is the user's: what octavo makes does not depend on it."""
    makers = {"zeros", "ones", "empty", "full", "tensor", "rand", "randn", "eye", "linspace"}
    found = 0
    for path in PYTHON.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "torch" and node.func.attr in makers:
                found += 1
                assert any(k.arg == "dtype" for k in node.keywords), f"{path}:{node.lineno}"
    assert found > 20


def test_one_module_replaces_forwards() -> None:
    """A forward on an instance is written and taken away by nn/forwards.py alone."""
    writes = re.compile(
        r'__dict__\["forward"\] =|__dict__\.pop\("forward"|del .*__dict__\["forward"\]|\.forward = '
    )
    found = [path.name for path in sorted(PYTHON.rglob("*.py")) if writes.search(path.read_text())]
    assert found == ["forwards.py"]


#: Files that still ask for the type of a layer, and why.
ASK_FOR_TYPES = {
    "graph/kinds.py": "it gives each call its kind of region step; no row of a module's class does that yet",
    "lowering/lower.py": "it reads the slopes of nn.PReLU; as above",
    "prepare/equalize.py": "it writes weights in the order of three classes",
    "prepare/fold.py": "it writes weights in the order of three classes, and reads BatchNorms",
    "prepare/smooth.py": "it writes the gains of two kinds of norms",
    "training/freeze.py": "it reads BatchNorms of two classes",
    "training/trainee.py": "it keeps the modes of BatchNorms",
}

#: Names of torch.nn that are no layers.
NOT_LAYERS = {
    "DataParallel",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "ParameterDict",
    "ParameterList",
    "Sequential",
    "LazyModuleMixin",
    "DistributedDataParallel",
}

#: Attributes that only layers have: asking whether a module has one is asking for its type.
OF_LAYERS = {
    "embedding_dim",
    "groups",
    "in_channels",
    "in_features",
    "in_proj_weight",
    "kernel_size",
    "nf",
    "num_embeddings",
    "num_features",
    "out_channels",
    "out_features",
    "padding_idx",
    "running_mean",
}


def types_asked(source: str) -> list[int]:
    """Lines that name a layer class of torch, but to make a layer or to annotate, or ask for an attribute of one.

    So isinstance, issubclass, ``type(x) is nn.Linear`` and tuples of classes under a name of their own all count.
    """
    tree, allowed = ast.parse(source), set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            allowed.add(id(node.func))
        for field in ("annotation", "returns"):
            annotation = getattr(node, field, None)
            if isinstance(annotation, ast.AST):
                allowed |= {id(part) for part in ast.walk(annotation)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in allowed:
            whole = re.fullmatch(r"(?:torch\.)?nn\.(?:\w+\.)*_?[A-Z]\w*", ast.unparse(node))
            if whole and node.attr not in NOT_LAYERS:
                found.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and re.match(
            r"torch\.nn\.modules\b", node.module or ""
        ):
            found += [node.lineno for alias in node.names if alias.name.strip("_")[0].isupper()]
        elif isinstance(node, ast.ImportFrom) and node.module == "torch.nn":
            names = {alias.name for alias in node.names} - NOT_LAYERS
            found += [node.lineno for name in names if name[0].isupper()]
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            called, name = ast.unparse(node.func), node.args[1]
            if called in ("hasattr", "getattr") and isinstance(name, ast.Constant):
                found += [node.lineno] if name.value in OF_LAYERS else []
    return sorted(set(found))


@pytest.mark.parametrize(
    "question",
    [
        "isinstance(x, nn.Linear)",
        "isinstance(x, (nn.Module, torch.nn.modules.conv._ConvNd))",
        "issubclass(cls, nn.RNNBase)",
        "type(x) in {nn.PReLU}",
        "_CLASSES = (nn.Conv1d, nn.Conv2d)",
        "from torch.nn import Embedding",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        'hasattr(x, "num_embeddings")',
        'int(getattr(x, "groups", 1))',
    ],
)
def test_questions_for_the_type_of_a_layer_are_found(question: str) -> None:
    assert types_asked(question) == [1]


@pytest.mark.parametrize(
    "fine",
    [
        "isinstance(x, nn.Module)",
        "isinstance(x, (nn.DataParallel, nn.parallel.DistributedDataParallel))",
        "model = nn.Linear(2, 3)",
        "def f(x: nn.Linear) -> nn.Conv2d: ...",
        "from torch.nn.modules import module",
        "nn.functional.relu(x)",
    ],
)
def test_making_layers_is_no_question(fine: str) -> None:
    assert types_asked(fine) == []


def test_only_nn_asks_for_the_type_of_a_layer() -> None:
    """Elsewhere facts about a layer come from the class registered for it (nn/facts.py, nn/registry.py)."""
    asking = {}
    for path in sorted(PYTHON.rglob("*.py")):
        name = path.relative_to(PYTHON).as_posix()
        lines = types_asked(path.read_text())
        if lines and not name.startswith("nn/"):
            asking[name] = lines
    assert {name: lines for name, lines in asking.items() if name not in ASK_FOR_TYPES} == {}
    assert sorted(asking) == sorted(ASK_FOR_TYPES), "A file that asks no longer is listed no longer"
