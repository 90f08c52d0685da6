"""The published names for Spark and Lakebase. No other part of voxtier imports this folder."""
