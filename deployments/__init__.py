"""Deployments: prefect.yaml names every ready-made run, for `winnow run` and `prefect deploy` alike."""
