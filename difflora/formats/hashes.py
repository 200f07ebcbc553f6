"""The hashes by which adapter files are known, each as its home defines it."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from difflora.formats.container import data_hash_of, window_of
from difflora.formats.safe import load_header, open_plain

CHUNK = 1 << 20
LEGACY_WINDOW = (0x100000, 0x110000)


@dataclass(frozen=True, slots=True)
class FileHashes:
    """The hashes of one safetensors file, in lower-case hex.

    `data_hash` covers the data section only, so it does not change with the metadata: kohya's
    sshs_model_hash. `sha256` covers the whole file. The short forms are Civitai's.
    """

    data_hash: str
    sha256: str
    autov1: str

    @property
    def autov2(self) -> str:
        """The first 10 digits of the file's sha256."""
        return self.sha256[:10]

    @property
    def autov3(self) -> str:
        """The first 12 digits of the data section's sha256."""
        return self.data_hash[:12]


def hashes(path: str | os.PathLike[str]) -> FileHashes:
    """The hashes of the safetensors file `path`. Raises AdapterFileError if its header is malformed."""
    with open_plain(path) as file:
        start = load_header(file, str(path)).data_start
        whole, data, window = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        file.seek(0)
        whole.update(file.read(start))
        while chunk := file.read(CHUNK):
            whole.update(chunk)
            data.update(chunk)
        file.seek(LEGACY_WINDOW[0])
        window.update(file.read(LEGACY_WINDOW[1] - LEGACY_WINDOW[0]))
    return FileHashes(data.hexdigest(), whole.hexdigest(), window.hexdigest()[:8])


def kohya_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`sshs_model_hash` and `sshs_legacy_hash` of a file of these tensors and this metadata.

    The legacy hash is of 64 KiB at 1 MiB into a file whose metadata holds the `ss_*` keys alone: not the
    file that is written. A smaller file has the hash of nothing, e3b0c442. Source:
    `precalculate_safetensors_hashes` of kohya's sd-scripts.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    window = window_of(tensors, training, *LEGACY_WINDOW)
    return {
        "sshs_model_hash": data_hash_of(tensors),
        "sshs_legacy_hash": hashlib.sha256(window).hexdigest()[:8],
    }
