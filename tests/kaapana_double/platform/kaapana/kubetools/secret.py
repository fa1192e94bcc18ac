"""A value of a Kubernetes Secret that a pod gets in its environment."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Secret:
    deploy_type: str
    deploy_target: str
    secret: str
    key: str
