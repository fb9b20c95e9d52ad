"""What a model and its tokenizer are, by content, and the one copy of them that a process loads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from arrowds.digests import CallableDigest, content_digest
from arrowds.errors import MetricError, MissingExtraError
from arrowds.store import record

if TYPE_CHECKING:
    import torch

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_NOT_CONTENT = ("_name_or_path", "transformers_version", "architectures", "use_cache")
"""What the configuration of a model says beside what the model computes."""


def folder_of(model: str) -> Path:
    """Return the folder of a model: itself, or where a model of the Hugging Face hub lies in the local cache.

    Raises:
        MetricError: when there is no such folder, and the hub has no such model or can't be reached.
        MissingExtraError: for a name, without transformers.
    """
    folder = Path(model).expanduser()
    return folder.resolve() if folder.is_dir() else _from_hub(model)


@cache
def _from_hub(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError("transformers", "models") from error
    try:
        return Path(snapshot_download(model, allow_patterns=["config.json", *_WEIGHTS, *_TOKENIZER]))
    except (OSError, ValueError) as error:
        raise MetricError(
            f"{model!r} is neither a folder nor a model that the Hugging Face hub gives ({error}); expected a folder "
            "with config.json and *.safetensors, or a name such as 'org/model'"
        ) from error


def model_digest(model: Any) -> CallableDigest:
    """Digest what decides the logits of a model: of a folder its configuration and weights, whatever else lies there.

    A model in memory counts by its class, configuration and weights, in whichever mode it is.

    Raises:
        MetricError: when the folder has no model.
    """
    if not isinstance(model, str):
        config: Any = getattr(model, "config", None)
        if not hasattr(config, "to_dict"):
            return content_digest([model, [str(tensor.dtype) for tensor in model.parameters()]], modes=False)
        said = {name: value for name, value in config.to_dict().items() if name not in _NOT_CONTENT}
        tensors = [(name, str(tensor.dtype), tensor) for name, tensor in model.state_dict().items()]
        return content_digest([type(model), json.dumps(said, sort_keys=True, default=str), tensors])
    folder = folder_of(model)
    weights = _files(folder, _WEIGHTS) or _files(folder, _OLD_WEIGHTS)
    if (folder / "adapter_config.json").exists():
        raise MetricError(
            f"{folder} holds an adapter, whose base model lies elsewhere; merge the two and save the result"
        )
    if not weights or not (folder / "config.json").exists():
        raise MetricError(
            f"{folder} holds no model; expected config.json and *.safetensors, as save_pretrained of transformers "
            "writes them"
        )
    return CallableDigest(_digest_of([folder / "config.json", *weights]), "")


def tokenizer_digest(tokenizer: Any) -> CallableDigest:
    """Digest what decides the tokens of a text: the files of a tokenizer in a folder, or its state in memory."""
    if isinstance(tokenizer, str):
        return CallableDigest(_digest_of(_files(folder_of(tokenizer), _TOKENIZER)), "")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return content_digest(tokenizer)
    state = json.loads(backend.to_str())
    said = {name: part for name, part in state.items() if name not in ("truncation", "padding")}  # set by each call
    return content_digest([json.dumps(said, sort_keys=True), tokenizer.bos_token_id, tokenizer.eos_token_id])


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _digest_of(paths: Iterable[Path]) -> str:
    said = []
    for path in paths:
        status = path.stat()
        said.append(f"{path.name}={_file_digest(path, status.st_size, status.st_mtime_ns)}")
    return xxhash.xxh3_128_hexdigest("|".join(said).encode())


@lru_cache(maxsize=1024)
def _file_digest(path: Path, size: int, modified: int) -> str:
    return record(path).xxh3


@lru_cache(maxsize=4)
def loaded_model(model: str, digest: str, dtype: str | None, device: str | None) -> torch.nn.Module:
    """Return the model of a folder, loaded once in this process for all that ask for the same content.

    Args:
        model: folder or name.
        digest: what :func:`model_digest` gave for it.
        dtype: the name of a torch type; None for that of the files.
        device: None for the current CUDA device where there is one, else the CPU.

    Raises:
        MetricError: when it can't be loaded, lacks weights, or was changed since it was digested.
        MissingExtraError: without transformers or torch.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtraError("transformers", "models") from error
    folder = folder_of(model)
    if model_digest(model).digest != digest:
        raise MetricError(
            f"{folder} was changed since this run began, or differs between machines; start the run again"
        )
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", output_loading_info=True)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise MetricError(f"{folder} can't be loaded as a causal language model: {error}") from error
    loaded, report = found
    if missing := sorted(report["missing_keys"]):
        raise MetricError(
            f"{folder} lacks {len(missing)} weights that its configuration calls for, such as {missing[0]}; they would "
            "be random numbers"
        )
    moved: torch.nn.Module = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    return moved


@lru_cache(maxsize=4)
def loaded_tokenizer(tokenizer: str, digest: str) -> Any:
    """Return the tokenizer of a folder, loaded once in this process.

    Raises:
        MetricError: when the folder has none.
        MissingExtraError: without transformers.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "models") from error
    folder = folder_of(tokenizer)
    if not _files(folder, _TOKENIZER):
        raise MetricError(f"{folder} holds no tokenizer; pass tokenizer=..., or measure a column of token ids")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise MetricError(f"the tokenizer in {folder} can't be loaded: {error}") from error


@cache
def refuse_other_vocabulary(tokenizer: str, digest: str, other: str) -> None:
    """Refuse to compare two models by token whose folders have tokenizers of different ids.

    Raises:
        MetricError: where they differ.
    """
    if not _files(folder_of(other), _TOKENIZER):
        return
    theirs = tokenizer_digest(other).digest
    if theirs == digest:
        return
    if loaded_tokenizer(tokenizer, digest).get_vocab() != loaded_tokenizer(other, theirs).get_vocab():
        raise MetricError(
            f"{tokenizer} and {other} have different tokenizers, so that their losses for a token can't be compared; "
            "measure the bits per byte of each"
        )
