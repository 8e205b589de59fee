"""Serves an unchanged program's `InferenceSession(path)` from the store, where that makes no difference to its answers.

`lamella store exec` puts `preload/` on the program's path; `install` then changes the class's `__init__`, so that its
name, its subclasses and `isinstance` stay what they were. A model is known by the SHA-256 of its file. A session goes
the ordinary way when the model is not known, no daemon answers, or anything is asked for that a model optimised
beforehand cannot honour: other providers, another optimisation level, initialisers, custom operators, a dump of the
optimised graph. What options were told by method is remembered as they are told it: a `SessionOptions` does not say.

The answers are those of lamella's packaged graph: within law 3 of the file's own, not always the last bit.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.documents import cache_dir, replacing
from lamella.errors import LamellaError

if TYPE_CHECKING:
    from lamella.store.client import Lease

CPU = {"CPUExecutionProvider", "AzureExecutionProvider"}
"""Azure's only runs operators of its own domain; every CPU wheel lists it."""
TELLING = (
    "add_external_initializers",
    "add_external_initializers_from_files_in_memory",
    "add_free_dimension_override_by_denotation",
    "add_free_dimension_override_by_name",
    "add_initializer",
    "add_provider",
    "add_provider_for_devices",
    "register_custom_ops_library",
    "set_ep_context_data_read_func",
    "set_load_cancellation_flag",
    "set_provider_selection_policy",
    "set_provider_selection_policy_delegate",
)
"""Methods of SessionOptions after which a session goes the ordinary way."""
COPIED = (
    "enable_cpu_mem_arena enable_mem_pattern enable_mem_reuse enable_profiling execution_mode execution_order "
    "inter_op_num_threads intra_op_num_threads log_severity_level log_verbosity_level logid profile_file_prefix "
    "use_deterministic_compute use_per_session_threads"
).split()
ENTRIES = {
    "session.intra_op.allow_spinning",
    "session.inter_op.allow_spinning",
    "session.force_spinning_stop",
    "session.set_denormal_as_zero",
    "session.dynamic_block_base",
    "session.intra_op_thread_affinities",
}
"""Config entries that are handed on; any other sends the session the ordinary way."""
SETTLED_S = 0.1
"""A file that changed so lately may change again under the same times, which tick every 10 ms at worst."""
LARGEST = 2 << 30
"""Bytes of a self-contained ONNX file, by protobuf's limit."""

_told: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()
_held: weakref.WeakKeyDictionary[Any, Lease] = weakref.WeakKeyDictionary()


def install(ort: Any) -> None:
    """Hook the module `onnxruntime`; a second time changes nothing."""
    original = ort.InferenceSession.__init__
    if hasattr(original, "__wrapped__"):
        return
    _remember(ort.SessionOptions)

    @functools.wraps(original)
    def init(self: Any, path_or_bytes: Any, sess_options: Any = None, *rest: Any, **more: Any) -> None:
        before = dict(self.__dict__)  # a subclass may have put something there
        served = _lease(path_or_bytes, sess_options, rest, more)
        if served is not None:
            try:
                _open(ort, original, self, served, sess_options)
            except Exception:  # noqa: BLE001 - whatever the store's copy does not do, the file may
                self.__dict__.clear()
                self.__dict__.update(before)
            else:
                return
        original(self, path_or_bytes, sess_options, *rest, **more)

    ort.InferenceSession.__init__ = init


def _remember(kind: Any) -> None:
    """Have SessionOptions remember what it is told by method."""
    for name in (*TELLING, "add_session_config_entry"):
        method = getattr(kind, name, None)
        if method is not None:
            setattr(kind, name, _remembering(name, method))


def _remembering(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: Any, *given: Any, **more: Any) -> Any:
        entry = (str(given[0]), str(given[1])) if name == "add_session_config_entry" and len(given) == 2 else (name, "")
        _told.setdefault(self, {})[entry[0]] = entry[1]
        return method(self, *given, **more)

    return told


def _honoured(ort: Any, options: Any) -> bool:
    """Whether a model of the store can be opened as these options want it."""
    if options is None:
        return True
    return (
        set(_told.get(options, ())) <= ENTRIES
        and options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        and not options.optimized_model_filepath
        and not options.has_providers()
    )


def _ordinary(providers: Any = None, provider_options: Any = None, **more: Any) -> bool:
    """Whether the arguments after the options ask for more than the CPU."""
    named = all(isinstance(p, str) and p in CPU for p in providers or ())
    return not named or any(provider_options or ()) or bool(set(more) - {"enable_fallback"})


def _lease(given: Any, options: Any, rest: tuple[Any, ...], more: dict[str, Any]) -> Lease | None:
    """The lease of the model that was made of this file, if the store may stand in for it."""
    import onnxruntime as ort

    try:
        if len(rest) > 2 or _ordinary(*rest, **more) or not _honoured(ort, options):
            return None
        from lamella.store.client import Connection, lease_of

        with Connection() as connection:  # first: without a daemon there is nothing to hash
            digest = digest_of(given)
            model = connection.find(digest) if digest else ""
        return lease_of(model) if model else None
    except (LamellaError, OSError, TypeError, ValueError):  # what is wrong with its arguments the runtime says itself
        return None


def digest_of(given: Any, clock: Callable[[], float] = time.time) -> str:
    """The SHA-256 of a model's file, remembered while the file is the same; of bytes; else nothing."""
    if isinstance(given, bytes):
        return hashlib.sha256(given).hexdigest()
    if not isinstance(given, str | os.PathLike) or not Path(given).is_file():  # a pipe can be read only once
        return ""
    with Path(given).open("rb") as file:
        state = os.fstat(file.fileno())
        if state.st_size > LARGEST:
            return ""
        key = f"{state.st_dev}-{state.st_ino}-{state.st_size}-{state.st_mtime_ns}-{state.st_ctime_ns}"
        known = cache_dir() / "sources" / key
        with suppress(OSError):
            return known.read_text()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if clock() - max(state.st_mtime, state.st_ctime) > SETTLED_S:
        with suppress(LamellaError), replacing(known) as written:
            written.write(digest.encode())
    return digest


def _open(ort: Any, original: Callable[..., None], session: Any, lease: Lease, wanted: Any) -> None:
    """Open the store's model with what the program asked for besides."""
    from lamella.runtime.function import as_written

    function = lease.record.function
    options = ort.SessionOptions()
    as_written(options, function.kind, prepack=function.prepack)
    source = wanted if wanted is not None else ort.SessionOptions()
    for name in COPIED:
        setattr(options, name, getattr(source, name))
    for key, value in _told.get(source, {}).items():
        options.add_session_config_entry(key, value)
    lease.apply(options)
    original(session, lease.graph, options, ["CPUExecutionProvider"], enable_fallback=0)
    lease.keep_for(session)
    _held[session] = lease
