"""gs.load: a model from what gs.save wrote, or from a quantized checkpoint of another library."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from . import checkpoint, interop
from .checkpoint.manifest import FILE


def load(
    folder: str | Path, model: nn.Module | None = None, *, progress: bool | None = None
) -> nn.Module:
    """Read a model that :func:`gossamer.save` wrote, or one that others have quantized.

    Parameters
    ----------
    folder : str or Path
        What :func:`gossamer.save` wrote; a folder of GPTQ, AWQ or compressed-tensors; or a GGUF
        file. :func:`gossamer.interop.load` reads the last four, and has more settings.
    model : nn.Module, optional
        For a folder of :func:`gossamer.save`: a model of the same architecture, dense, on meta
        (``with torch.device("meta"): ...``) or compressed already. Its layers are replaced by those
        of the checkpoint, and all its other parameters and buffers are filled, in place. None: a
        model of transformers is made, as config.json in the folder describes it, or the layer that
        was saved by itself.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None).

    Returns
    -------
    nn.Module
        The same `model`, but where that is itself a layer to be replaced; or a new one, in eval
        mode.

    Raises
    ------
    ValueError
        Where a file is missing, was changed or truncated, or is of a newer version; where a tensor
        is missing, surplus or of another shape; and where the checkpoint does not fit the model.
        The error names the file, and the tensor or module. What the names show is noticed before
        the model is changed; after a later error it is partly loaded.
    TypeError
        Where an argument has another type.
    RuntimeError
        Where transformers is needed and not installed.

    Notes
    -----
    Files are memory-mapped, and each tensor is compared with its checksum and packed, or copied,
    before the next one is read: the peak of memory is the model and one layer. No class is imported
    by a name in the checkpoint, but models of transformers from that library itself.

    Parameters have the dtype of the checkpoint, and ``requires_grad`` as in the model. Hooks and
    the training mode stay. Layers that computed as one when they were saved do so again.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> gs.save(gs.nn.Linear.from_dense(torch.nn.Linear(64, 8), "int4-g32"), folder)
    >>> gs.load(folder)
    Linear(in_features=64, out_features=8, bias=True, format=int4, group_size=32)
    """
    is_path = isinstance(folder, str | Path)
    if not is_path or (Path(folder) / FILE).exists() or not interop.is_foreign(folder):
        return checkpoint.load(folder, model, progress=progress)
    if model is not None:
        raise ValueError(
            f"load: model: {folder} is no checkpoint of gs.save; a model is made for it, none given"
        )
    return interop.load(folder, progress=progress)
