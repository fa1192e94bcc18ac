"""Real Airflow servers for tests: the class is the demo's own, so that both run the same thing."""

from fedportal.demo.airflow_server import AirflowServer, free_port

__all__ = ["AirflowServer", "free_port"]
