"""Random damage to files and folders: bytes, JSON, safetensors files, and what stands in their place."""

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, -(10**9), 10**6, 10**9, 10**12, 2**31, 2**63, 2**64, 10**30, 0.0, -0.5, 0.5, 1e-300, 1e300,
    float("nan"), float("inf"), -float("inf"), "", "x", "none", "relu", "topk", "NaN", "1", "../../etc/passwd", "a" * 10_000,
    "\ud800", "line\nline", "\0", "torch.float16", "__import__('os').system('true')", [], [1], [None], ["x"], {}, {"k": 3}, {"": None},
    [[]], [1] * 1000,
]  # fmt: skip
"""Values of JSON that are of the wrong type, absurd, or in the wrong place."""

ADDED_KEYS = ("metadata", "architecture", "k", "auto_map", "extra", "hook_point", "quantization_config", "num_labels")
ADDED_TENSORS = ("extra", "scaling_factor", "threshold", "b_enc", "lm_head.weight")
ADDED_FILES = (
    "pytorch_model.bin", "ae.pt", "modeling_evil.py", "__init__.py", "custom_generate/generate.py", "adapter_config.json",
)  # fmt: skip
CANARY = "CRUX_CAMPAIGN_CANARY"


class _Malicious:
    """An object whose unpickling sets a variable of the environment."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.putenv, (CANARY, "ran")


def nested(depth: int, *, kind: str) -> str:
    """Return JSON of lists or objects in each other."""
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Damage the bytes of a file; return what was done."""
    content = bytearray(path.read_bytes())
    what = rng.choice(
        ["truncate", "flip", "flip many", "insert", "empty", "append", "zeros", "utf-16", "bom", "latin-1"]
    )
    place = rng.randrange(len(content)) if content else 0
    match what:
        case "truncate":
            del content[place:]
        case "flip":
            content[place] ^= 1 << rng.randrange(8)
        case "flip many":
            for _ in range(rng.randrange(2, 40)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case "insert":
            content[place:place] = rng.randbytes(rng.randrange(1, 9))
        case "empty":
            content.clear()
        case "append":
            content += rng.randbytes(rng.randrange(1, 99))
        case "zeros":
            content[place : place + 64] = bytes(64)
        case "utf-16":
            content = bytearray(bytes(content).decode("latin-1").encode("utf-16"))
        case "bom":
            content[:0] = b"\xef\xbb\xbf"
        case _:
            content[place:place] = b"\xe4\xf6"
    path.write_bytes(bytes(content))
    return f"{path.name}: {what} at {place}"


def damage_json(path: Path, rng: random.Random) -> str:
    """Change one place of a JSON file; return what was done."""
    content = json.loads(path.read_text("utf-8"))
    parent, key = rng.choice(_places(content))
    what = rng.choice(["value"] * 6 + ["delete", "rename", "deep", "duplicate", "add", "wrap", "number"])
    text = None
    match what:
        case "value":
            parent[key] = rng.choice(ODD_VALUES)
        case "delete":
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        case "deep":
            parent[key] = "@@"
            deep = nested(rng.choice([50, 500, 5_000, 200_000]), kind=rng.choice(["list", "object"]))
            text = json.dumps(content).replace('"@@"', deep)
        case "duplicate" if isinstance(content, dict):
            again = rng.choice(list(content))
            text = json.dumps(content)[:-1] + f", {json.dumps(again)}: {json.dumps(rng.choice(ODD_VALUES))}}}"
        case "add" if isinstance(parent, dict):
            parent[rng.choice(ADDED_KEYS)] = rng.choice(ODD_VALUES)
        case "wrap":
            parent[key] = [parent[key]]
        case _:
            parent[key] = -parent[key] if isinstance(parent[key], int | float) else str(parent[key])
    path.write_text(json.dumps(content) if text is None else text, encoding="utf-8", errors="surrogatepass")
    return f"{path.name}: {what} at {key!r}" + (f" = {str(parent[key])[:60]!r}" if what in ("value", "number") else "")


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Return all places of JSON values, as containers with keys; deep containers are entered to a depth of six."""
    places: list[tuple[Any, Any]] = []
    waiting = [(content, 0)]
    while waiting:
        container, depth = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(min(len(container), 20))
        for key in list(keys)[:200]:
            places.append((container, key))
            if isinstance(container[key], dict | list) and depth < 6:
                waiting.append((container[key], depth + 1))
    return places


def _as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype)


_TENSOR_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda x: torch.full_like(x, torch.nan),
    "inf": lambda x: torch.full_like(x, torch.inf),
    "zeros": torch.zeros_like,
    "huge": lambda x: torch.full_like(x, 3e38),
    "large": lambda x: x * 1e20,
    "denormal": lambda x: x * 1e-40,
    "small": lambda x: x * 1e-20,
    "negative": lambda x: -x,
    "float64 overflow": lambda x: x.double() * 1e300,
    "float64": _as(torch.float64),
    "float16": _as(torch.float16),
    "bfloat16": _as(torch.bfloat16),
    "float8": _as(torch.float8_e4m3fn),
    "complex": _as(torch.complex64),
    "int64": _as(torch.int64),
    "int8": _as(torch.int8),
    "bool": lambda x: x > 0,
    "transposed": lambda x: x.mT if x.ndim > 1 else x[:, None],
    "flat": torch.flatten,
    "added axis": lambda x: x[None],
    "empty": lambda x: x[:0],
    "shorter": lambda x: x[:-1],
    "scalar": lambda x: x.flatten()[0],
    "random": torch.randn_like,
}


def damage_tensors(path: Path, rng: random.Random) -> str:
    """Change one tensor of a safetensors file, or the set of its tensors; return what was done."""
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    what = rng.choice(["one nan", "one inf", "one huge", "delete", "rename", "add", "swap", *_TENSOR_CHANGES])
    match what:
        case "one nan" | "one inf" | "one huge":
            tensors[name] = tensors[name].clone()
            value = {"one nan": torch.nan, "one inf": -torch.inf, "one huge": 1e38}[what]
            tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = value
        case "delete":
            del tensors[name]
        case "rename":
            tensors[name + rng.choice(["_", ".weight", "s"])] = tensors.pop(name)
        case "add":
            tensors[rng.choice(ADDED_TENSORS)] = torch.full((rng.randrange(1, 30),), 2.0)
        case "swap":
            other = rng.choice(sorted(tensors))
            tensors[name], tensors[other] = tensors[other], tensors[name]
        case _:
            tensors[name] = _TENSOR_CHANGES[what](tensors[name])
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})
    return f"{path.name}: {what} of {name}"


def damage_header(path: Path, rng: random.Random) -> str:
    """Change the header of a safetensors file; return what was done."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    what = rng.choice(["length", "dtype", "shape", "offsets", "metadata", "not an object", "deep", "key"])
    name = rng.choice([key for key in header if key != "__metadata__"])
    text = None
    match what:
        case "length":
            new = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1])
            path.write_bytes(struct.pack("<Q", new) + content[8:])
            return f"{path.name}: header of {new} bytes"
        case "dtype":
            header[name]["dtype"] = rng.choice(["F64", "F16", "C64", "I64", "BOOL", "F8_E4M3", "F4", "X", None, 3])
        case "shape":
            header[name]["shape"] = rng.choice(
                [[], [0], [-1], [2**40, 2**40], [1.5], "x", None, [2**63], header[name]["shape"][::-1]]
            )
        case "offsets":
            header[name]["data_offsets"] = rng.choice([[0, 0], [0, 2**40], [2**62, 2**63], [5, 1], [-4, 0], None, []])
        case "metadata":
            header["__metadata__"] = rng.choice([*ODD_VALUES[:20], {"format": None}, {"format": "tf"}, {"a": {"b": 1}}])
        case "not an object":
            text = "[]"
        case "deep":
            text = nested(5_000, kind="object")
        case _:
            header[rng.choice(["", "__metadata", "../x", "a" * 300])] = header.pop(name)
    raw = (json.dumps(header) if text is None else text).encode("utf-8", "replace")
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return f"{path.name}: header, {what} of {name}"


def replace_file(path: Path, rng: random.Random) -> str:
    """Put something else in the place of a file; return what."""
    what = rng.choice(
        ["nothing", "folder", "dangling link", "loop", "pipe", "link to a folder", "pickle", "device", "html"]
    )
    path.unlink()
    match what:
        case "nothing":
            pass
        case "folder":
            path.mkdir()
        case "dangling link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "link to a folder":
            path.symlink_to("/")
        case "pickle":
            path.write_bytes(pickle.dumps(_Malicious()))
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    return f"{path.name}: {what} in its place"


def add_code(folder: Path, rng: random.Random) -> str:
    """Add files that a careless loader would run; return which."""
    name = rng.choice(ADDED_FILES)
    (folder / name).parent.mkdir(exist_ok=True)
    code = f"import os\nos.putenv({CANARY!r}, 'ran')\nos.environ[{CANARY!r}] = 'ran'\n"
    (folder / name).write_bytes(pickle.dumps(_Malicious()) if not name.endswith(".py") else code.encode())
    config = folder / "config.json"
    if name == "modeling_evil.py" and config.is_file():
        values = json.loads(config.read_text("utf-8"))
        values["auto_map"] = {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
        config.write_text(json.dumps(values))
    return f"{name} added"


def damage_folder(
    intact: Path, folder: Path, rng: random.Random, *, kinds: Mapping[str, tuple[str, ...]], at_most: int
) -> list[str]:
    """Copy a folder and damage the copy one or several times; return what was done.

    Args:
        kinds: file endings, and the kinds of damage to files with that ending.
        at_most: largest number of changes.
    """
    shutil.copytree(intact, folder)
    done: list[str] = []
    for _ in range(rng.choice([1] * 4 + list(range(1, at_most + 1)))):
        if rng.random() < 0.03:
            done.append(add_code(folder, rng))
            continue
        files = [
            path for path in sorted(folder.iterdir())
            if path.suffix in kinds and path.is_file() and not path.is_symlink() and path.stat().st_size
        ]  # fmt: skip
        if not files:
            break
        path = rng.choice(files)
        try:
            done.append(DAMAGES[rng.choice(kinds[path.suffix])](path, rng))
        except (
            ValueError,
            KeyError,
            IndexError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
            ArithmeticError,
        ) as error:
            done.append(f"{path.name}: could not be damaged again ({type(error).__name__})")  # it is broken already
        except Exception as error:  # safetensors' own error for a file that is broken already
            done.append(f"{path.name}: could not be damaged again ({type(error).__name__})")
    return done


DAMAGES: dict[str, Callable[[Path, random.Random], str]] = {
    "bytes": damage_bytes,
    "json": damage_json,
    "tensors": damage_tensors,
    "header": damage_header,
    "replace": replace_file,
}
