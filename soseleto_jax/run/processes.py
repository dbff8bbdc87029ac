"""Several processes that train together: how they join, agree, hand arrays around, and end."""

import errno
import functools
import importlib.util
import os
import socket
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

T = TypeVar("T")
_NAMES: list[socket.socket] = []
_TEXT_BYTES = 1024  # of an error that processes tell one another


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  peer_timeout: int = 60,
) -> None:
  """Joins the other processes of the run; does nothing where there is one. Call it before JAX looks for devices.

  Without the first three, JAX finds them where a cluster started several processes: Slurm, Open MPI, an indexed Job of
  Kubernetes, the workers of a Cloud TPU.

  Args:
    coordinator: "host:port" of process 0; the port is any free one.
    num_processes: how many processes there are.
    process_id: which one this is, from 0.
    peer_timeout: seconds without a sign of life after which a process counts as dead, which ends the others.

  Raises:
    ValueError: some of the first three are missing or impossible, or the cluster does not tell them.
  """
  given: dict[str, Any] = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  shown = " ".join(f"--{name}={value}" for name, value in given.items() if value is not None)
  if shown and None in given.values():
    missing = ", ".join(f"--{name}" for name, value in given.items() if value is None)
    raise ValueError(f"{shown} without {missing}: give all three, or none where a cluster tells them")
  if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
    raise ValueError(f"{shown}: give processes numbers from 0 to num_processes - 1")
  if num_processes is not None and num_processes < 1:
    raise ValueError(f"{shown}: give at least one process")
  if num_processes == 1 or not (shown or _in_cluster()):
    return
  if coordinator is not None:
    _check_coordinator(shown, coordinator, process_id)
  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which the trainer answers
  try:
    jax.distributed.initialize(
      **{"coordinator_address" if name == "coordinator" else name: value for name, value in given.items()},
      cluster_detection_method="deactivate" if shown else None,
      heartbeat_timeout_seconds=peer_timeout,
    )
  except ValueError as error:
    raise ValueError(f"{error} Give --coordinator, --num_processes and --process_id") from error


def _check_coordinator(shown, coordinator, process_id):
  """Raises ValueError for an address that JAX would wait minutes for, or die of."""
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
    raise ValueError(f"{shown}: give the coordinator as host:port, with a port from 1 to 65535")
  host = host.removeprefix("[").removesuffix("]")
  try:
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
  except (OSError, UnicodeError) as error:
    raise ValueError(f"{shown}: the host {host!r} cannot be found: {error}") from error
  _check_alone(shown, coordinator, process_id)
  if process_id != 0:
    return
  with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just been closed is free
    try:
      probe.bind(("", int(port)))
      probe.listen()
    except OSError as error:
      raise ValueError(
        f"{shown}: port {port} cannot be used: {error.strerror}; is there another run, or another process with "
        "--process_id=0? Choose another port"
      ) from error


def _check_alone(shown, coordinator, process_id):
  """Raises ValueError where a process of this machine joined under this number; JAX would abort both."""
  name = socket.socket(socket.AF_UNIX)
  try:
    name.bind(f"\0soseleto_jax {coordinator} {process_id}")
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      raise ValueError(f"{shown}: another process has --process_id={process_id}; give each its own") from error
  _NAMES.append(name)  # which lasts as long as this process


def _in_cluster() -> bool:
  """Whether a cluster that JAX knows started several processes, or may have: a Cloud TPU tells only when asked."""
  if "OMPI_MCA_orte_hnp_uri" in os.environ:
    return os.environ.get("OMPI_COMM_WORLD_SIZE") != "1"
  if "SLURM_STEP_NODELIST" in os.environ:
    return os.environ.get("SLURM_NTASKS", "1") != "1"
  if importlib.util.find_spec("libtpu"):  # JAX skips the query where it sees no TPU
    return "TPU_WORKER_HOSTNAMES" in os.environ or "TPU_SKIP_MDS_QUERY" not in os.environ
  return "JOB_COMPLETION_INDEX" in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ


def is_main() -> bool:
  """Whether this is the process that writes what is written once: records, reports, logs."""
  return jax.process_index() == 0


def check_same(what: str, value: bytes) -> None:
  """Raises ValueError in every process unless all of them hold the same bytes."""
  if jax.process_count() == 1:
    return
  sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(value)))
  for process in np.flatnonzero(sums != sums[0]):
    raise ValueError(f"{what} of process {process} differs from that of process 0; start all with the same command")


def agree(do: Callable[[], T], failures: Sequence[type[Exception]]) -> T:
  """Calls `do` in every process; raises in all of them where it raises in one, so that none waits for another.

  Args:
    do: no collective operation may be in it.
    failures: the types of error that it may raise, the worst first: where processes meet different ones, all raise an
      error of the worst type. One of another type is raised where it comes up, and is RuntimeError elsewhere.

  Returns:
    What this process's call returned.
  """
  if jax.process_count() == 1:
    return do()
  value, error, kind = None, None, len(failures) + 1
  try:
    value = do()
  except Exception as raised:
    error = raised
    kind = next((number for number, types in enumerate(failures) if isinstance(raised, types)), -1)
  text = np.zeros(_TEXT_BYTES, np.uint8)
  encoded = np.frombuffer(str(error).encode()[:_TEXT_BYTES], np.uint8)
  text[: len(encoded)] = encoded
  kinds, texts = multihost_utils.process_allgather((np.int32(kind), text))
  worst = int(np.argmin(kinds))
  if error is not None and kind == kinds[worst]:
    raise error
  if kinds[worst] > len(failures):
    return cast(T, value)
  what = texts[worst].tobytes().rstrip(b"\0").decode(errors="replace")
  raise (failures[kinds[worst]] if kinds[worst] >= 0 else RuntimeError)(f"process {worst}: {what}")


def wait_for_all() -> None:
  """Returns when every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.process_allgather(np.zeros(()))


class Vote:
  """Tells every process, at the same call, that one of them was asked to stop."""

  def __init__(self):
    self._last = None

  def __call__(self, asked: bool) -> bool:
    """Votes; each process calls it equally often.

    Returns:
      With one process `asked`; with several, whether any of them asked in the call before, so that none has to wait.
    """
    if jax.process_count() == 1:
      return asked
    last, self._last = self._last, _any()(asked)
    return last is not None and bool(last)


@functools.cache
def _any():
  mesh = Mesh(np.asarray(jax.devices()), ("devices",))
  split, replicated = NamedSharding(mesh, P("devices")), NamedSharding(mesh, P())
  reduce = jax.jit(jnp.any, out_shardings=replicated)
  return lambda flag: reduce(jax.make_array_from_callback((mesh.size,), split, lambda _: np.array([flag])))


def describe(error: BaseException) -> str:
  """Returns an error's text; where there are several processes, with the one that it came up in."""
  if not are_several():
    return str(error)
  hint = "; has another process ended? Its output says why" if isinstance(error, jax.errors.JaxRuntimeError) else ""
  return f"process {jax.process_index()} of {jax.process_count()}: {error}{hint}"


def are_several() -> bool:
  """Whether other processes train together with this one."""
  return jax.distributed.is_initialized() and jax.process_count() > 1
