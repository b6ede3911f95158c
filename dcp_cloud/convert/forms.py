"""The three forms that checkpoints have, and how a URI tells which one is meant."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from dcp_cloud.checkpoint.catalog import explain_absence
from dcp_cloud.checkpoint.location import Location, URILike, part_file
from dcp_cloud.errors import BucketNotFoundError, ConfigError, NotFoundError
from dcp_cloud.format.layout import metadata_key
from dcp_cloud.format.safetensors import SUFFIX
from dcp_cloud.transfer.retrying import RetryingStore

CheckpointForm: TypeAlias = Literal["dcp", "torch", "safetensors"]
"""``dcp``: torch's distributed checkpoints; ``torch``: one file of ``torch.save``; ``safetensors``: one file or a place
with several and an index."""

FORMS: tuple[CheckpointForm, ...] = get_args(CheckpointForm)
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
FILE_SUFFIXES = (*TORCH_SUFFIXES, SUFFIX)


def form_of_name(uri: URILike) -> CheckpointForm | None:
    """Tell the form from the end of a URI.

    Args:
        uri: Any URI.

    Returns:
        The form of a file, or None for a place.
    """
    name = part_file(uri, FILE_SUFFIXES)[1]
    return None if name is None else form_of_file(name)


def form_of_file(name: str) -> CheckpointForm:
    """Tell the form from the name of a file.

    Args:
        name: The name, with one of the known endings.

    Returns:
        The form.
    """
    return "safetensors" if name.endswith(SUFFIX) else "torch"


def is_place(name: str, store: RetryingStore) -> bool:
    """Tell whether a name like a file's is that of a distributed checkpoint, as trainers name them: ``epoch=1.ckpt``.

    Args:
        name: The last part of the source's URI.
        store: Store rooted at what is before it, with retries.

    Returns:
        Whether there is no such file, but a checkpoint's ``.metadata`` below the name.
    """
    for key in (name, f"{name}/{metadata_key()}"):
        try:
            store.head(key)
        except BucketNotFoundError:
            raise
        except NotFoundError:
            continue
        return key != name
    return False


def form_of_source(name: str | None, location: Location, store: RetryingStore) -> CheckpointForm:
    """Tell the form of what is stored: from its name, or from what lies there.

    Args:
        name: Name of the source, if it is a file.
        location: The source's place.
        store: Store rooted there, with retries.

    Returns:
        The form.

    Raises:
        CheckpointNotFoundError: There is no checkpoint.
        IncompleteCheckpointError: There is one that was not finished.
    """
    if name is not None:
        return form_of_file(name)
    try:
        store.head(metadata_key())
    except BucketNotFoundError:
        raise
    except NotFoundError as error:
        if any("/" not in meta.key and meta.key.endswith(SUFFIX) for meta in store.list()):
            return "safetensors"
        raise explain_absence(location.store, uri=location.uri.root, cause=error) from error
    return "dcp"


def form_of_target(uri: URILike, source: CheckpointForm, wanted: CheckpointForm | None) -> CheckpointForm:
    """Tell the form to make: the one that is asked for, else the one that the target's name and the source leave.

    Args:
        uri: The target.
        source: Form of the source.
        wanted: What was asked for.

    Returns:
        The form.

    Raises:
        ConfigError: The name contradicts the form, or there would be nothing to convert.
    """
    named = form_of_name(uri)
    if wanted is not None and wanted not in FORMS:
        raise ConfigError(f"there is no form {wanted!r}", hint=f"the forms are {', '.join(FORMS)}")
    form = wanted or named or ("safetensors" if source == "dcp" else "dcp")
    if named is not None and named != form:
        raise ConfigError(
            f"the name of the target is one of a file of form {named!r}, and {form!r} was asked for",
            hint="give a place instead of a file, or leave the form out",
        )
    if form == "torch" and named is None:
        raise ConfigError(
            "a file of torch.save needs a name", hint=f"let the target end in one of {', '.join(TORCH_SUFFIXES)}"
        )
    if form == "dcp" == source:
        raise ConfigError("both are distributed checkpoints", hint="'dcp-cloud cp' copies a checkpoint as it is")
    return form
