"""Samples that are equal or nearly so: as metrics of an index, and as clusters to look at.

column of the data --find--> digests, or near--> signatures and bands --clusters--> duplicate_of, cluster_size
"""

from arrowds.duplicates.find import find_duplicates, largest_clusters

__all__ = ["find_duplicates", "largest_clusters"]
