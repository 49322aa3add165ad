"""Deployments, containers, cloud resources, and SQL. It reads Parquet and is not part of the package."""
