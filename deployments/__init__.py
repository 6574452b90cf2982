"""Deployments: prefect.yaml names every ready-made run; `winnow run` and `prefect deploy` read the same file."""
