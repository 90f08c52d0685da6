"""The published names of the origin (Spark, Lakebase). Nothing imports this folder."""
