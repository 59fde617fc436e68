"""Reading the cluster file, and what the command line says in its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from gpu_actor.paths.locations import is_local_model, looks_like_path
from gpu_actor.paths.urls import is_url, without_file_scheme
from orchestrator.cluster.cluster_config import ClusterConfig, ClusterFileError
from orchestrator.scheduler.policy import POLICIES
from orchestrator.validation.field_index import dotted
from orchestrator.validation.problems import Problem, ProblemsError, explain, show
from orchestrator.validation.yaml_file import read_document


def load_cluster_config(path: Path | None) -> ClusterConfig:
    """The settings of a cluster file, its paths absolute; without a file, the defaults.

    Raises:
        ClusterFileError: With every problem of the file.
    """
    if path is None:
        return ClusterConfig()
    source = str(path)
    try:
        data, problems = read_document(Path(path))
    except ProblemsError as error:
        raise ClusterFileError(error.problems) from None
    if not isinstance(data, Mapping):
        message = f"{show(data)} is not a cluster file; give a mapping of fields such as storage and actors"
        raise ClusterFileError([*problems, Problem(source, "", message)])
    try:
        config = ClusterConfig.model_validate(data)
    except ValidationError as error:
        explained = explain(error, data, ClusterConfig, "cluster")
        problems += [Problem(source, dotted(field), message) for field, message in explained]
    if problems:
        raise ClusterFileError(problems)
    return _with_absolute_paths(config, Path(path).parent)


def with_policy(config: ClusterConfig, policy: str | None) -> ClusterConfig:
    """The settings with another policy, named on the command line; None leaves them as they are.

    Raises:
        ClusterFileError: There is no such policy.
    """
    if policy is None:
        return config
    if policy not in POLICIES:
        message = f"{show(policy)} is no policy; allowed: {', '.join(POLICIES)}"
        raise ClusterFileError([Problem("--policy", "", message)])
    return config.model_copy(update={"scheduler": config.scheduler.model_copy(update={"policy": policy})})


def with_http(config: ClusterConfig, port: int | None) -> ClusterConfig:
    """The settings with the door at a port, named on the command line; None leaves them as they are."""
    if port is None:
        return config
    return config.model_copy(update={"http": config.http.model_copy(update={"port": port})})


def _with_absolute_paths(config: ClusterConfig, folder: Path) -> ClusterConfig:
    def absolute(value: str) -> str:
        value = without_file_scheme(value)
        if is_url(value):
            return value
        return os.path.abspath(folder / os.path.expanduser(value))

    actors = config.actors
    if not isinstance(actors, str):
        actors = [
            actor.model_copy(update={"base_model": absolute(actor.base_model)})
            if actor.base_model and (looks_like_path(actor.base_model) or is_local_model(absolute(actor.base_model)))
            else actor
            for actor in actors
        ]
    hooks = [
        hook.model_copy(update={"command": [absolute(hook.command[0]), *hook.command[1:]]})
        if hook.command and "/" in hook.command[0]
        else hook
        for hook in config.on_end
    ]
    shared = [absolute(root) for root in config.http.allowed_roots]
    return config.model_copy(
        update={
            "http": config.http.model_copy(update={"allowed_roots": shared}),
            "storage": absolute(config.storage),
            "allowed_roots": [absolute(root) for root in config.allowed_roots] if config.allowed_roots else None,
            "actors": actors,
            "on_end": hooks,
        }
    )
