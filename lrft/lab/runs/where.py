"""Where runs are made, by the name that a command line gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrft.lab.runs.executor import Executor
from lrft.registry.errors import UsageError

RAY = "ray"


def place_runs(cluster: str | None, settings: Sequence[str], out: Path, jobs: int) -> Executor | None:
    """The executor of a cluster; None for processes of this machine.

    Args:
        cluster: `ray`, or a cluster that submitit knows: `slurm`, `local`.
        settings: `key=value` of every job, as Ray or submitit names them.
        out: folder of the runs; what the cluster needs is below `out/cluster`.
        jobs: runs at a time.

    Raises:
        UsageError: no such cluster or setting, or settings of none.
        MissingExtra: Ray or submitit is not installed.
    """
    if cluster is None:
        if settings:
            raise UsageError(
                f"--cluster-set {settings[0]}: there is no cluster to set it for; add --cluster slurm"
            )
        return None
    if cluster == RAY:
        from lrft.lab.runs.on_ray import Ray

        return Ray(settings, out)
    from lrft.lab.runs.cluster import Cluster

    return Cluster(cluster, settings, out, jobs)
